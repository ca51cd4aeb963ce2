"""COCO's tables of pictures, annotations and classes, read from JSON and checked; and its three ways to write a mask.

Source: cocodataset.org/#format-data. pycocotools reads and writes beyond its memory when run lengths do not add up, so
they are checked here first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from promptseg.datasets.records import Rle
from promptseg.sources.checks import Mistakes, file_name, load_json, shown, whole_number
from promptseg.sources.repack import Marked

MIN_COORDINATES = 6  # three corners; what has fewer covers nothing

_T = TypeVar("_T")


@dataclass(frozen=True)
class CocoImage:
    """One picture's file, and its size as the table has it, None where it says none; `split` as it stands there."""

    image_id: int
    file_name: str
    height: int | None
    width: int | None
    split: Any = None


@dataclass(frozen=True)
class CocoAnnotation:
    """One object, or crowd, of a picture; `segmentation` as `segmentation_to_rle` reads it; CVAT's `attributes`.

    `class_id` is None where the table says nothing of classes; `phrases` is what stands under that name, or "phrase".
    """

    annotation_id: int
    image_id: int
    segmentation: Any
    class_id: int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    phrases: Any = None
    crowd: bool = False


@dataclass(frozen=True)
class CocoTables:
    """What one file of instances holds, each by its id; `class_names` is empty where it names no classes."""

    origin: str
    images: dict[int, CocoImage]
    annotations: dict[int, CocoAnnotation]
    class_names: dict[int, str]

    @cached_property
    def annotations_of(self) -> dict[int, list[CocoAnnotation]]:
        """Annotations by picture, by number; a picture without any is missing."""
        grouped: dict[int, list[CocoAnnotation]] = {}
        for _, annotation in sorted(self.annotations.items()):
            grouped.setdefault(annotation.image_id, []).append(annotation)
        return grouped

    def place(self, what: str, number: int) -> str:
        """Name the place of an image, or an annotation, for messages."""
        return f"{self.origin}, {what} {number}"


def read_tables(content: bytes, origin: str, mistakes: Mistakes) -> CocoTables:
    """Read the tables of a file of instances. What is wrong is noted, with `origin`, and left out.

    Ids are whole, come once in a table, and those that name a picture or a class lead to one. Two pictures never share
    a file.
    """
    try:
        tables = load_json(content)
    except ValueError as error:
        mistakes.add(origin, f"{error}, wanted COCO's object of lists")
        tables = {"images": [], "annotations": []}
    lists = {"categories": [], **tables} if isinstance(tables, dict) else {}
    if not all(isinstance(lists.get(name), list) for name in ("images", "annotations", "categories")):
        mistakes.add(origin, "got no lists named 'images' and 'annotations', wanted COCO's object of lists")
        lists = {"images": [], "annotations": [], "categories": []}
    images, image_ids = _parsed(lists["images"], f"{origin}, image", _image, mistakes)
    annotations, _ = _parsed(lists["annotations"], f"{origin}, annotation", _annotation, mistakes)
    class_names, class_ids = _parsed(lists["categories"], f"{origin}, category", _class, mistakes)
    read = CocoTables(origin, images, annotations, class_names)
    _check_links(read, image_ids, class_ids, mistakes)
    return read


def _parsed(
    records: list[Any], origin: str, parse: Callable[[int, dict[str, Any]], _T], mistakes: Mistakes
) -> tuple[dict[int, _T], set[int]]:
    """Return what `parse` makes of each record, by id, and all ids that are there, those of wrong records too."""
    parsed: dict[int, _T] = {}
    at: dict[int, int] = {}
    for number, record in enumerate(records):
        where = f"{origin} number {number}"
        try:
            if not isinstance(record, dict):
                raise ValueError(f"got {shown(record)}, wanted an object")
            record_id = _of(record, "id")
            if record_id in at:
                raise ValueError(f"id: got {record_id} again, as of number {at[record_id]}; wanted distinct ids")
            at[record_id] = number
            where = f"{origin} {record_id}"
            parsed[record_id] = parse(record_id, record)
        except ValueError as error:
            mistakes.add(where, str(error))
    return parsed, set(at)


def _of(record: dict[str, Any], key: str, least: int = 0) -> int:
    try:
        return whole_number(record.get(key), least)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _image(image_id: int, record: dict[str, Any]) -> CocoImage:
    try:
        name = file_name(record.get("file_name"))
    except ValueError as error:
        raise ValueError(f"file_name: {error}") from error
    height, width = (_of(record, key, 1) if record.get(key) is not None else None for key in ("height", "width"))
    return CocoImage(image_id, name, height, width, record.get("split"))


def _annotation(annotation_id: int, record: dict[str, Any]) -> CocoAnnotation:
    attributes = record.get("attributes", {})
    if not isinstance(attributes, dict):
        raise ValueError(f"attributes: got {shown(attributes)}, wanted a mapping")
    class_id = None if record.get("category_id") is None else _of(record, "category_id")
    if "phrase" in record and "phrases" in record:
        raise ValueError("got 'phrase' and 'phrases', wanted one of them")
    phrases = record.get("phrases", record.get("phrase"))
    image_id = _of(record, "image_id")
    crowd = record.get("iscrowd", 0) == 1
    return CocoAnnotation(annotation_id, image_id, record.get("segmentation"), class_id, attributes, phrases, crowd)


def _class(_: int, record: dict[str, Any]) -> str:
    name = record.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name: got {shown(name)}, wanted a word")
    return name.strip()


def _check_links(tables: CocoTables, image_ids: set[int], class_ids: set[int], mistakes: Mistakes) -> None:
    for number, annotation in tables.annotations.items():
        where = tables.place("annotation", number)
        if annotation.image_id not in image_ids:
            mistakes.add(where, f"image_id: got {annotation.image_id}, which no image has; correct it")
        if annotation.class_id is not None and class_ids and annotation.class_id not in class_ids:
            mistakes.add(where, f"category_id: got {annotation.class_id}, which no category has; correct it")
    first: dict[str, int] = {}
    for number, image in tables.images.items():
        if first.setdefault(image.file_name, number) != number:
            mistakes.add(
                tables.place("image", number),
                f"file_name: got {image.file_name!r}, as of image {first[image.file_name]}; wanted one entry a picture",
            )


def size_of(tables: CocoTables, image: CocoImage, mistakes: Mistakes) -> tuple[int, int] | None:
    """Return (height, width) as the table has them, or None where it has none, which is noted."""
    if image.height is None or image.width is None:
        mistakes.add(
            tables.place("image", image.image_id), "width, height: got none, wanted the picture's size in px; add it"
        )
        return None
    return image.height, image.width


def objects_of(tables: CocoTables, image: CocoImage) -> tuple[Marked, ...]:
    """Return all that is annotated in a picture, by number."""
    return tuple(
        Marked(
            one.annotation_id,
            tables.place("annotation", one.annotation_id),
            partial(segmentation_to_rle, one.segmentation),
        )
        for one in tables.annotations_of.get(image.image_id, [])
    )


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> Rle:
    """Return the mask of an annotation's `segmentation`, in a picture of `height` x `width`; it may be empty.

    Polygons are united: a pixel in two of them is inside once. Raises ValueError for anything malformed.
    Source: cocodataset.org/#format-data; rasterised by pycocotools.
    """
    if isinstance(segmentation, list):
        return _polygons_to_rle([_checked_polygon(polygon, height, width) for polygon in segmentation], height, width)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), str | bytes | list):
        raise ValueError(f"got the segmentation {shown(segmentation)}, wanted polygons, or run lengths with 'counts'")
    if segmentation.get("size") != [height, width]:
        got = segmentation.get("size")
        raise ValueError(f"got run lengths of the size {shown(got)}, wanted [{height}, {width}]")
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
    for character in compressed.encode("utf-8", "replace") if isinstance(compressed, str) else compressed:
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
    fine = (type(number) in (int, float) and -reach <= number <= reach for number in numbers)  # NaN is in no range
    if len(numbers) % 2 or not all(fine):
        raise ValueError(f"got the polygon {shown(polygon)}, wanted [x, y, x, y, ...], none beyond {reach} px")
    return numbers


def _runs_to_rle(counts: list[Any], height: int, width: int) -> Rle:
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"got the run lengths {shown(counts)}, wanted whole numbers that add up to {height}x{width}")
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return Rle.from_mask(runs.reshape(width, height).T)
