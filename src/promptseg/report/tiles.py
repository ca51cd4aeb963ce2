"""The page's gallery: pictures with layers that a reader lays over them (prediction, truth, difference)."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promptseg.datasets.preprocess import mask_from_canvas, read_picture
from promptseg.datasets.records import PHRASE_KINDS, Rle, Sample
from promptseg.report.gallery import EXAMPLE_BYTES, EXAMPLE_SIDE, pick
from promptseg.report.overlay import PREDICTION_RGB, encode_jpeg, overlay, shrink
from promptseg.scoring import SampleScore

PICTURES_BYTES = 2_400_000  # all JPEG files of a page together; base64 and the layers come on top
MOST_EACH = 6  # more would not fit into a page of 5 MB, nor into anybody's patience
HIT_RGB, MISSED_RGB, EXTRA_RGB = (46, 160, 67), (9, 105, 218), (207, 34, 46)


@dataclass(frozen=True)
class Tile:
    """One scored phrase: its picture as JPEG, and PNG layers of the same size, transparent where nothing is."""

    group: str
    row: SampleScore
    picture: bytes
    prediction: bytes
    truth: bytes
    difference: bytes


def make_tiles(
    rows: Sequence[SampleScore],
    samples: Sequence[Sample],
    predictions: Mapping[str, Rle],
    read: Callable[[str], BinaryIO],
    each: int,
) -> list[Tile]:
    """Make tiles of up to `each` best, median and worst phrases of every kind, no two of one picture, the best first.

    There are at most MOST_EACH of each. `predictions` and `read` are those of `pictures.draw_examples`. Raises
    ValueError when a picture is damaged.
    """
    chosen: list[tuple[str, SampleScore]] = []
    for kind in PHRASE_KINDS:
        taken = frozenset(row.image for _, row in chosen)
        groups = pick([row for row in rows if row.phrase_kind == kind], min(each, MOST_EACH), taken)
        chosen += [(group, row) for group, members in groups.items() for row in members]
    order = ("best", "median", "worst")
    chosen.sort(key=lambda entry: (order.index(entry[0]), -entry[1].iou, entry[1].sample_id))
    limit = min(EXAMPLE_BYTES, PICTURES_BYTES // max(1, len(chosen)))
    sample_of = {sample.sample_id: sample for sample in samples}
    return [
        _tile(group, row, sample_of[row.sample_id], predictions[row.sample_id], read, limit) for group, row in chosen
    ]


def _tile(
    group: str, row: SampleScore, sample: Sample, predicted: Rle, read: Callable[[str], BinaryIO], limit: int
) -> Tile:
    mask = mask_from_canvas(predicted.to_mask(), sample.height, sample.width)
    picture, truth, prediction = shrink(
        read_picture(read(row.image), row.image), sample.mask.to_mask(), mask, EXAMPLE_SIDE
    )
    nothing = np.zeros_like(truth)
    return Tile(
        group=group,
        row=row,
        picture=encode_jpeg(picture, limit),
        prediction=_layer(picture, nothing, prediction),
        truth=_layer(picture, truth, nothing),
        difference=difference_layer(truth, prediction),
    )


def difference_layer(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> bytes:
    """Return a PNG of two bool masks [h, w]: found, missed and too much in colours of their own, half transparent."""
    found, missed, extra = truth & prediction, truth & ~prediction, prediction & ~truth
    return _png({(*HIT_RGB, 190): found, (*MISSED_RGB, 190): missed, (*EXTRA_RGB, 190): extra})


def _layer(picture: NDArray[np.uint8], truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> bytes:
    """What `overlay` draws, alone: it knows three colours, and none of them is the grey that it is given here."""
    drawn = overlay(np.full_like(picture, 128), truth, prediction)
    colours = (PREDICTION_RGB, (255, 255, 255), (0, 0, 0))
    return _png({(*colour, 255): (drawn == np.array(colour, np.uint8)).all(axis=2) for colour in colours})


def _png(parts: Mapping[tuple[int, int, int, int], NDArray[np.bool_]]) -> bytes:
    """Return a PNG, of a palette, from disjoint bool masks [h, w] by their RGBA; the rest is transparent."""
    index = np.zeros(next(iter(parts.values())).shape, np.uint8)
    for place, part in enumerate(parts.values(), start=1):
        index[part] = place
    image = Image.fromarray(index, "P")
    image.putpalette(bytes((0, 0, 0, 0)) + b"".join(bytes(colour) for colour in parts), "RGBA")
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
