"""REFER's annotations of COCO pictures, read and checked: which annotation each ref names, and in which words.

`refcocog/refs(<split_by>).p` is a pickled list of refs; `refcocog/instances.json` holds the pictures and annotations
that they name by number; likewise below `refcoco` and `refcoco+`. Source: github.com/lichengunc/refer.
"""

import logging
import zipfile
from dataclasses import dataclass
from typing import Any

from promptseg.datasets.archives import read_member
from promptseg.sources.coco import CocoTables, parse_instances, parse_records
from promptseg.sources.restricted_pickle import load_plain_pickle

SPLITS = ("train", "val", "test", "testA", "testB")  # testA: people, testB: everything else
PYTHON_2_STRINGS = "latin1"  # reads any byte; REFER's texts are ASCII

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ref:
    """One object and its phrases, each with its sentence id; `split` as REFER names it, one of SPLITS."""

    ref_id: int
    annotation_id: int
    image_id: int
    split: str
    phrases: tuple[tuple[int, str], ...]


def read_refs(archive: zipfile.ZipFile, folder: str, split_by: str) -> list[Ref]:
    """Read `refs(<split_by>).p`, in its order. Raises ValueError when it is missing, not plain, malformed, has a ref
    without sentences, in no known split, or twice.
    """
    member = f"{folder}/refs({split_by}).p"
    if member not in archive.namelist():
        raise ValueError(f"{archive.filename}: has no {member!r}, only {archive.namelist()[:8]}; correct `split_by`")
    origin = f"{archive.filename}: {member}"
    refs = parse_records(
        f"{origin}: ref", load_plain_pickle(read_member(archive, member), origin, PYTHON_2_STRINGS), _ref
    )
    if len({ref.ref_id for ref in refs}) < len(refs):
        raise ValueError(f"{origin}: got a ref_id twice, wanted distinct ones; correct the file")
    return refs


def read_instances(archive: zipfile.ZipFile, folder: str) -> CocoTables:
    """Read `instances.json`: pictures, annotations and classes. Raises ValueError when missing or malformed."""
    member = f"{folder}/instances.json"
    return parse_instances(read_member(archive, member), f"{archive.filename}: {member}")


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
