"""REFER's annotations of COCO pictures, read and checked: which annotation each ref names, and in which words.

`refcocog/refs(<split_by>).p` is a pickled list of refs; `refcocog/instances.json` holds the pictures and annotations
that they name by number. Source: github.com/lichengunc/refer.
"""

import json
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from promptseg.datasets.archives import read_member
from promptseg.datasets.records import SPLITS, Split
from promptseg.datasets.restricted_pickle import load_plain_pickle

FOLDER = "refcocog"
PYTHON_2_STRINGS = "latin1"  # reads any byte; REFER's texts are ASCII

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Ref:
    """One object and its phrases, each with its sentence id."""

    ref_id: int
    annotation_id: int
    image_id: int
    split: Split
    phrases: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class CocoImage:
    """One picture's file and its size in stored pixels, before EXIF orientation."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class CocoAnnotation:
    """One object, or crowd, of a picture; `segmentation` as `coco_segmentation` reads it."""

    annotation_id: int
    image_id: int
    segmentation: Any


def read_refs(archive: zipfile.ZipFile, split_by: str) -> list[Ref]:
    """Read `refs(<split_by>).p`, in its order. Raises ValueError when it is missing, not plain, malformed, has a ref
    without sentences, in no known split, or twice.
    """
    member = f"{FOLDER}/refs({split_by}).p"
    if member not in archive.namelist():
        raise ValueError(f"{archive.filename}: has no {member!r}, only {archive.namelist()[:8]}; correct `split_by`")
    origin = f"{archive.filename}: {member}"
    refs = _parsed(f"{origin}: ref", load_plain_pickle(read_member(archive, member), origin, PYTHON_2_STRINGS), _ref)
    if len({ref.ref_id for ref in refs}) < len(refs):
        raise ValueError(f"{origin}: got a ref_id twice, wanted distinct ones; correct the file")
    return refs


def read_instances(archive: zipfile.ZipFile) -> tuple[dict[int, CocoImage], dict[int, CocoAnnotation]]:
    """Read `instances.json`: pictures and annotations by their ids. Raises ValueError when missing or malformed."""
    member = f"{FOLDER}/instances.json"
    origin = f"{archive.filename}: {member}"
    try:
        content = json.loads(read_member(archive, member))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{origin}: got text that is not JSON ({error}), wanted COCO's instances") from error
    tables = content if isinstance(content, dict) else {}
    images = _parsed(f"{origin}: image", tables.get("images"), _image)
    annotations = _parsed(f"{origin}: annotation", tables.get("annotations"), _annotation)
    return {image.image_id: image for image in images}, {entry.annotation_id: entry for entry in annotations}


def _parsed(origin: str, records: Any, parse: Callable[[Any], _T]) -> list[_T]:
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


def _ref(record: Any) -> Ref:
    split = record["split"]
    if split not in SPLITS:
        raise ValueError(f"got the split {split!r}, wanted one of {', '.join(SPLITS)}")
    phrases = [(int(sentence["sent_id"]), sentence["sent"].strip()) for sentence in record["sentences"]]
    worded = tuple((sentence_id, phrase) for sentence_id, phrase in phrases if phrase.strip(" ."))
    if not worded:
        raise ValueError("got no sentence with a word in it, wanted at least one")
    if len(worded) < len(phrases):
        _log.warning("left out %d empty sentences of the ref %s", len(phrases) - len(worded), record["ref_id"])
    return Ref(int(record["ref_id"]), int(record["ann_id"]), int(record["image_id"]), split, worded)


def _image(record: Any) -> CocoImage:
    file_name = record["file_name"]
    if not isinstance(file_name, str):
        raise TypeError(f"got the file_name {file_name!r}, wanted a string")
    return CocoImage(int(record["id"]), file_name, int(record["height"]), int(record["width"]))


def _annotation(record: Any) -> CocoAnnotation:
    return CocoAnnotation(int(record["id"]), int(record["image_id"]), record["segmentation"])
