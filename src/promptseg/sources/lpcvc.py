"""The challenge's own layout, a COCO export of CVAT: a folder or a zip with phrases among the annotations' attributes.

    images/default/<file_name>
    annotations/instances_default.json      an annotation has "attributes": {"<name>": "<phrase>", "occluded": false}

Pictures are sorted into train, val and test by a hash of their names, so that adding some moves no other.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promptseg.datasets.archives import open_archive
from promptseg.datasets.records import SPLITS, Split
from promptseg.params import LpcvcConfig
from promptseg.sources.coco import CocoAnnotation, CocoTables, parse_instances
from promptseg.sources.mirrors import Mirror, is_address, obtain_all, places, resolve_folder
from promptseg.sources.repack import Annotated, ArchiveStore, FileStore, Phrases, PictureStore, repack

ANNOTATIONS = "annotations/instances_default.json"
PICTURES = "images/default/"


def build_lpcvc(config: LpcvcConfig, mirror: Mirror, cache: Path, images: Path, samples: Path, pictures: Path) -> None:
    """Write the folder of archives `images`, and the records `samples` (one a phrase) and `pictures`; all or none.

    The source is the zip that the configuration names, or, in a mirror that is a folder, the folder of that name
    without `.zip`. Raises ValueError when it, its pictures or its annotations are wrong, OSError on a full disk.
    """
    with _store(config, mirror, cache) as store:
        root = _root(store)
        origin = f"{store.where}: {root}{ANNOTATIONS}"
        annotated = _annotated(config, parse_instances(store.read(root + ANNOTATIONS), origin), store, root)
        _check_splits(annotated, origin)
        repack(annotated, store, images, samples, pictures)


@contextmanager
def _store(config: LpcvcConfig, mirror: Mirror, cache: Path) -> Iterator[PictureStore]:
    if (folder := _unpacked(config, mirror)) is not None:
        yield FileStore.of_folder(folder)
        return
    (path,) = obtain_all([config.source], mirror, cache)
    with open_archive(path) as archive:
        yield ArchiveStore(archive, "")


def _unpacked(config: LpcvcConfig, mirror: Mirror) -> Path | None:
    """Return the first of the mirrors' folders that holds the source unpacked, or None."""
    for place in places(mirror) if mirror is not None else ():
        if not is_address(place):
            folder = resolve_folder(place) / config.source.path.removesuffix(".zip")
            if folder.is_dir():
                return folder
    return None


def _root(store: PictureStore) -> str:
    """Return what precedes the layout's names: nothing, or the one folder that was zipped, with its slash."""
    roots = [name.removesuffix(ANNOTATIONS) for name in store.names if f"/{name}".endswith(f"/{ANNOTATIONS}")]
    if len(roots) != 1:
        found = f"{len(roots)} of them" if roots else f"only {sorted(store.names)[:5]}"
        raise ValueError(f"{store.where}: got {found}, wanted one {ANNOTATIONS}; export it as COCO, with pictures")
    return roots[0]


def _annotated(config: LpcvcConfig, tables: CocoTables, store: PictureStore, root: str) -> list[Annotated]:
    """Return the pictures that have a phrase, by split and name."""
    for annotation in tables.annotations.values():
        if annotation.image_id not in tables.images:
            raise ValueError(f"annotation {annotation.annotation_id}: its picture {annotation.image_id} is not listed")
    annotated = []
    for image in tables.images.values():
        file_name = f"{root}{PICTURES}{image.file_name}"
        annotations = tables.annotations_of.get(image.image_id, [])
        phrases = [said for one in annotations if (said := _phrases(one, config)).worded]
        if phrases and file_name not in store.names:
            raise ValueError(f"{store.where}: got no {file_name}, which {ANNOTATIONS} names; export it with pictures")
        if phrases:
            split = split_of(image.file_name, config.val_share, config.test_share)
            annotated.append(Annotated(split, image, file_name, annotations, phrases))
    if not annotated:
        seen = sorted({name for one in tables.annotations.values() for name in one.attributes})
        raise ValueError(
            f"{store.where}: got no phrase in {len(tables.annotations)} annotations, whose attributes are {seen}; "
            "wanted text in some; name them in `phrase_attributes`"
        )
    return sorted(annotated, key=lambda one: (SPLITS.index(one.split), one.file_name))


def split_of(file_name: str, val_share: float, test_share: float) -> Split:
    """Return the split of a picture, which depends on nothing but its name and the shares."""
    place = int.from_bytes(hashlib.sha256(file_name.encode()).digest()[:8], "big") / 2**64
    if place < test_share:
        return "test"
    return "val" if place < test_share + val_share else "train"


def _phrases(annotation: CocoAnnotation, config: LpcvcConfig) -> Phrases:
    """Every text among the chosen attributes; CVAT's own (occluded, rotation, ...) are no texts."""
    chosen = annotation.attributes if config.phrase_attributes is None else config.phrase_attributes
    worded = tuple(
        (f"{annotation.annotation_id}-{name}" + (f"-{number}" if number else ""), phrase.strip())
        for name in chosen
        for number, phrase in enumerate(_texts(annotation.attributes.get(name)))
    )
    return Phrases(f"annotation {annotation.annotation_id}", (annotation.annotation_id,), worded)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip(" .")]


def _check_splits(annotated: list[Annotated], origin: str) -> None:
    empty = [split for split in SPLITS if split not in {one.split for one in annotated}]
    if empty:
        raise ValueError(
            f"{origin}: got no picture in {' and '.join(empty)} of {len(annotated)} with phrases, wanted some in each "
            f"of {', '.join(SPLITS)}; change `val_share` and `test_share`, or add pictures"
        )
