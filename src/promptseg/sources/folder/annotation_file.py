"""The file beside the pictures, JSON lines or COCO, as one kind of record; every mistake in it is noted."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from promptseg.datasets.records import SPLITS, Rle, Split
from promptseg.params import FolderConfig
from promptseg.sources.folder.mistakes import Mistakes


@dataclass(frozen=True)
class Annotation:
    """One object of a picture with its phrases, of which there may be none; `where` is its place in the file."""

    where: str
    image: str
    height: int
    width: int
    mask: Rle
    phrases: tuple[str, ...]
    split: Split | None


def checked_phrases(phrases: Any, where: str, mistakes: Mistakes) -> tuple[str, ...]:
    """Return those that have a word; note the others."""
    good = []
    for phrase in phrases if isinstance(phrases, list) else [phrases]:
        if not isinstance(phrase, str) or not phrase.strip(" ."):
            mistakes.add(where, f"phrase: got {phrase!r}, wanted text with at least one word")
        else:
            good.append(phrase.strip())
    return tuple(good)


def checked_split(split: Any, where: str, mistakes: Mistakes) -> Split | None:
    """Return a split, or None where none is named, or where what is named is none, which is noted."""
    if split is not None and split not in get_args(Split):
        mistakes.add(where, f"split: got {split!r}, wanted one of {', '.join(SPLITS)}, or no such key")
        return None
    return split


def split_of_images(
    config: FolderConfig, annotations: Sequence[Annotation], name: str, mistakes: Mistakes
) -> dict[str, Split]:
    """Return the split of each picture: the one that its annotations name, else by its name's hash and the shares.

    The hash keeps a picture in its split when others come and go. Notes pictures in two splits, and empty splits.
    """
    named: dict[str, Split] = {}
    for each in annotations:
        if each.split is not None and named.setdefault(each.image, each.split) != each.split:
            mistakes.add(
                each.where,
                f"split: got {each.image!r} in {named[each.image]} and in {each.split}, wanted one split a picture: "
                "scores would be of pictures trained on",
            )
    splits = {each.image: named.get(each.image) or _by_hash(config, each.image) for each in annotations}
    phrases: dict[Split, int] = defaultdict(int)
    for each in annotations:
        phrases[splits[each.image]] += len(each.phrases)
    for split in SPLITS:
        if annotations and not phrases[split]:
            mistakes.add(name, f"got no phrase in the split {split!r}; name splits, or raise its share in the config")
    return splits


def _by_hash(config: FolderConfig, image: str) -> Split:
    place = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8]) / 2**64
    if place < config.val_share:
        return "val"
    return "test" if place < config.val_share + config.test_share else "train"
