"""The challenge's own layout, a COCO export of CVAT: a folder or a zip with phrases among the annotations' attributes.

    images/default/<file_name>
    annotations/instances_default.json      an annotation has "attributes": {"<name>": "<phrase>", "occluded": false}

Pictures are sorted into train, val and test by a hash of their bytes, so that adding some moves no other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promptseg.datasets.archives import open_archive
from promptseg.params import LpcvcConfig
from promptseg.sources.checks import Mistakes, checked_phrase, is_whole, shown
from promptseg.sources.coco import CocoAnnotation, CocoTables, objects_of, read_tables, size_of
from promptseg.sources.mirrors import Mirror, is_address, obtain_all, places, resolve_folder
from promptseg.sources.repack import Annotated, ArchiveStore, FileStore, Phrases, PictureStore, Rules

ANNOTATIONS = "annotations/instances_default.json"
PICTURES = "images/default/"


@contextmanager
def open_lpcvc(
    config: LpcvcConfig, mirror: Mirror, cache: Path, mistakes: Mistakes
) -> Iterator[tuple[list[Annotated], PictureStore, Rules]]:
    """Yield the pictures that have a phrase, by name, the store that holds them, and the rules that they are held to.

    The source is the zip that the configuration names, or, in a mirror that is a folder, the folder of that name
    without `.zip`. What is wrong with its annotations is noted. Raises ValueError when it is missing or damaged.
    """
    with _store(config, mirror, cache) as store:
        root = _root(store)
        tables = read_tables(
            store.read(root + ANNOTATIONS), f"{Path(store.where).name}: {Path(ANNOTATIONS).name}", mistakes
        )
        rules = Rules(tables.origin, config.val_share, config.test_share)
        yield _annotated(config, tables, root, mistakes), store, rules


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


def _annotated(config: LpcvcConfig, tables: CocoTables, root: str, mistakes: Mistakes) -> list[Annotated]:
    _check_attributes(config, tables, mistakes)
    annotated = []
    for number, image in tables.images.items():
        annotations = tables.annotations_of.get(number, [])
        phrases = tuple(said for one in annotations if (said := _phrases(one, tables, config, mistakes)).worded)
        claimed = size_of(tables, image, mistakes) if phrases else None
        if claimed is not None:
            where, file_name = tables.place("image", number), f"{root}{PICTURES}{image.file_name}"
            objects = objects_of(tables, image)
            annotated.append(Annotated(where, file_name, image.file_name, None, claimed, "either", objects, phrases))
    if not annotated and not mistakes.found:
        seen = sorted({name for one in tables.annotations.values() for name in one.attributes})
        mistakes.add(
            tables.origin,
            f"got no phrase in {len(tables.annotations)} annotations, whose attributes are {seen}; wanted text in "
            "some; name them in `phrase_attributes`",
        )
    return sorted(annotated, key=lambda one: one.file_name)


def _check_attributes(config: LpcvcConfig, tables: CocoTables, mistakes: Mistakes) -> None:
    """Note attributes that the configuration names and no annotation has: their phrases would be missing unseen."""
    seen = {name for one in tables.annotations.values() for name in one.attributes}
    for name in config.phrase_attributes or ():
        if name not in seen:
            mistakes.add(
                tables.origin,
                f"phrase_attributes: got {name!r}, wanted one of those that annotations have: {sorted(seen)}",
            )


def _phrases(annotation: CocoAnnotation, tables: CocoTables, config: LpcvcConfig, mistakes: Mistakes) -> Phrases:
    """Every text among the chosen attributes; CVAT's own (occluded, rotation, ...) are no texts."""
    where = tables.place("annotation", annotation.annotation_id)
    worded = []
    if any(not is_whole(name) for name in annotation.attributes):
        mistakes.add(where, f"attributes: got the names {shown(list(annotation.attributes))}, wanted whole characters")
    for name in annotation.attributes if config.phrase_attributes is None else config.phrase_attributes:
        for number, text in enumerate(_texts(annotation.attributes.get(name))):
            sample_id = f"{annotation.annotation_id}-{name}" + (f"-{number}" if number else "")
            try:
                worded.append((sample_id, checked_phrase(text)))
            except ValueError as error:
                mistakes.add(where, f"attributes, {name}: {error}")
    return Phrases(where, (annotation.annotation_id,), tuple(worded))


def _texts(value: Any) -> list[str]:
    """Return the texts of an attribute; one that is left empty, or a dot, says nothing."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip(" .")]
