"""COCO's tables of pictures, annotations and classes, read from JSON and checked."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class CocoImage:
    """One picture's file and its size in stored pixels, before EXIF orientation."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class CocoAnnotation:
    """One object, or crowd, of a picture; `segmentation` as `coco_segmentation` reads it; CVAT's `attributes`.

    `class_id` is None where the table says nothing of classes.
    """

    annotation_id: int
    image_id: int
    segmentation: Any
    class_id: int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CocoTables:
    """What one file of instances holds, each by its id; `class_names` is empty where it names no classes."""

    images: dict[int, CocoImage]
    annotations: dict[int, CocoAnnotation]
    class_names: dict[int, str]

    @cached_property
    def annotations_of(self) -> dict[int, list[CocoAnnotation]]:
        """Annotations by picture, in the file's order; a picture without any is missing."""
        grouped: dict[int, list[CocoAnnotation]] = {}
        for annotation in self.annotations.values():
            grouped.setdefault(annotation.image_id, []).append(annotation)
        return grouped


def parse_instances(content: bytes, origin: str) -> CocoTables:
    """Read the tables of a file of instances. Raises ValueError, with `origin`, when they are malformed."""
    try:
        tables = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{origin}: got text that is not JSON ({error}), wanted COCO's instances") from error
    tables = tables if isinstance(tables, dict) else {}
    images = parse_records(f"{origin}: image", tables.get("images"), _image)
    annotations = parse_records(f"{origin}: annotation", tables.get("annotations"), _annotation)
    classes = parse_records(f"{origin}: category", tables.get("categories", []), _class)
    return CocoTables(
        {image.image_id: image for image in images},
        {entry.annotation_id: entry for entry in annotations},
        dict(classes),
    )


def parse_records(origin: str, records: Any, parse: Callable[[Any], _T]) -> list[_T]:
    """Return each of a list of records as `parse` reads it. Raises ValueError with the number of one that is wrong."""
    if not isinstance(records, list):
        raise ValueError(f"{origin}: got {type(records).__name__}, wanted a list of them; correct the file")
    parsed = []
    for number, record in enumerate(records):
        try:
            parsed.append(parse(record))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{origin} number {number}: {reason}, in {record!r:.200}; correct the file") from error
    return parsed


def _image(record: Any) -> CocoImage:
    file_name = record["file_name"]
    if not isinstance(file_name, str):
        raise TypeError(f"got the file_name {file_name!r}, wanted a string")
    return CocoImage(int(record["id"]), file_name, int(record["height"]), int(record["width"]))


def _annotation(record: Any) -> CocoAnnotation:
    attributes = record.get("attributes", {})
    if not isinstance(attributes, dict):
        raise TypeError(f"got the attributes {attributes!r}, wanted a mapping")
    class_id = record.get("category_id")
    return CocoAnnotation(
        int(record["id"]),
        int(record["image_id"]),
        record["segmentation"],
        None if class_id is None else int(class_id),
        attributes,
    )


def _class(record: Any) -> tuple[int, str]:
    name = record["name"]
    if not isinstance(name, str) or not name.strip():
        raise TypeError(f"got the name {name!r}, wanted a word")
    return int(record["id"]), name.strip()
