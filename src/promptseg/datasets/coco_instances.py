"""COCO's tables of pictures and annotations, read from JSON and checked."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
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
    """One object, or crowd, of a picture; `segmentation` as `coco_segmentation` reads it; CVAT's `attributes`."""

    annotation_id: int
    image_id: int
    segmentation: Any
    attributes: dict[str, Any] = field(default_factory=dict)


def parse_instances(content: bytes, origin: str) -> tuple[dict[int, CocoImage], dict[int, CocoAnnotation]]:
    """Read pictures and annotations, by their ids. Raises ValueError, with `origin`, when they are malformed."""
    try:
        tables = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{origin}: got text that is not JSON ({error}), wanted COCO's instances") from error
    tables = tables if isinstance(tables, dict) else {}
    images = parse_records(f"{origin}: image", tables.get("images"), _image)
    annotations = parse_records(f"{origin}: annotation", tables.get("annotations"), _annotation)
    return {image.image_id: image for image in images}, {entry.annotation_id: entry for entry in annotations}


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
    return CocoAnnotation(int(record["id"]), int(record["image_id"]), record["segmentation"], attributes)
