"""COCO's three ways to write a mask (polygons, run lengths, compressed run lengths) -> Rle.

pycocotools reads and writes beyond its memory when run lengths do not add up, so they are checked here first.
"""

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from promptseg.datasets.records import Rle

MIN_COORDINATES = 6  # three corners; what has fewer covers nothing


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> Rle:
    """Return the mask of an annotation's `segmentation`, in a picture of `height` x `width`; it may be empty.

    Polygons are united: a pixel in two of them is inside once. Raises ValueError for anything malformed.
    Source: cocodataset.org/#format-data; rasterised by pycocotools.
    """
    if isinstance(segmentation, list):
        return _polygons_to_rle([_checked_polygon(polygon, height, width) for polygon in segmentation], height, width)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), str | bytes | list):
        raise ValueError(f"got the segmentation {segmentation!r:.80}, wanted polygons, or run lengths with 'counts'")
    if segmentation.get("size") != [height, width]:
        raise ValueError(f"got run lengths of the size {segmentation.get('size')}, wanted [{height}, {width}]")
    counts = segmentation["counts"]
    return _runs_to_rle(counts if isinstance(counts, list) else decompress_counts(counts), height, width)


def decompress_counts(compressed: str | bytes) -> list[int]:
    """Return the run lengths in COCO's compressed string; ValueError when it is none.

    Each number is 5 bits a character, lowest first, 32 marking that more follow and 16 the sign; from the fourth on it
    is the difference to the number two places before.
    Source: rleFrString in pycocotools' maskApi.c.
    """
    counts: list[int] = []
    value = shift = 0
    for character in compressed.encode() if isinstance(compressed, str) else compressed:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f"got the character {chr(character)!r} in compressed run lengths, wanted '0' to 'o'")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("got compressed run lengths that end inside a number, wanted whole ones")
    return counts


def _polygons_to_rle(polygons: list[list[float]], height: int, width: int) -> Rle:
    drawable = [polygon for polygon in polygons if len(polygon) >= MIN_COORDINATES]
    if not drawable:
        return Rle.from_mask(np.zeros((height, width), bool))
    united = coco_mask.merge(coco_mask.frPyObjects(drawable, height, width))
    return Rle(height, width, united["counts"].decode("ascii"))


def _checked_polygon(polygon: Any, height: int, width: int) -> list[float]:
    reach = 2 * max(height, width)  # farther out, rasterising takes memory without end
    numbers: list[Any] = polygon if isinstance(polygon, list) else [None]
    fine = (isinstance(number, int | float) and math.isfinite(number) and abs(number) <= reach for number in numbers)
    if len(numbers) % 2 or not all(fine):
        raise ValueError(f"got the polygon {polygon!r:.80}, wanted [x, y, x, y, ...], none beyond {reach} px")
    return numbers


def _runs_to_rle(counts: list[Any], height: int, width: int) -> Rle:
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"got the run lengths {counts!r:.80}, wanted whole numbers that add up to {height}x{width}")
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return Rle.from_mask(runs.reshape(width, height).T)
