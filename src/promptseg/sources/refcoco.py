"""RefCOCO, RefCOCO+ and RefCOCOg: photographs of COCO train2014, and phrases of REFER, as this project's records."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptseg.datasets.archives import open_archive, read_member
from promptseg.datasets.records import SPLITS, Split
from promptseg.params import ReferConfig
from promptseg.sources.class_prompts import class_prompts
from promptseg.sources.coco import CocoTables, parse_instances
from promptseg.sources.mirrors import Mirror, obtain_all, obtain_pictures
from promptseg.sources.refer import Ref, read_instances, read_refs
from promptseg.sources.repack import Annotated, ArchiveStore, FileStore, Phrases, PictureStore, repack

FOLDER = "train2014"  # in COCO's archive
COCO_TABLES = "annotations/instances_train2014.json"  # in COCO's archive of annotations

_log = logging.getLogger(__name__)
_Chosen = list[tuple[Split, Ref]]


def build_refcoco(
    config: ReferConfig, mirror: Mirror, cache: Path, images: Path, samples: Path, pictures: Path
) -> None:
    """Write the folder of archives `images`, and the records `samples` (one a phrase) and `pictures`; all or none.

    Only pictures that refs or class names need are kept, or even fetched. Raises ValueError when archives, pictures or
    annotations are wrong, OSError on a full disk.
    """
    wanted = {"refs": config.refs}
    if config.pictures == "archive":
        wanted["images"] = config.images
    if config.class_prompts == "coco":
        wanted["annotations"] = config.annotations
    paths = dict(zip(wanted, obtain_all(list(wanted.values()), mirror, cache), strict=True))
    annotated = _read(config, paths["refs"], paths.get("annotations"))
    with _store(config, annotated, paths.get("images"), mirror, cache) as store:
        _check_presence(annotated, store)
        repack(annotated, store, images, samples, pictures)


def _read(config: ReferConfig, refs_path: Path, coco_path: Path | None) -> list[Annotated]:
    """Return the pictures to keep: those of the refs, and behind those of train the ones that class names prompt.

    No picture is both: where any ref of any split speaks of one, class names do not, chosen or not.
    """
    with open_archive(refs_path) as archive:
        refs = read_refs(archive, config.folder, config.split_by)
        tables = read_instances(archive, config.folder)
    annotated = list(_annotated(_chosen(refs, config), tables))
    if config.class_prompts == "none":
        return annotated
    origin = f"{refs_path.name}: instances.json"
    if coco_path is not None:
        origin = f"{coco_path.name}: {COCO_TABLES}"
        with open_archive(coco_path) as archive:
            tables = parse_instances(read_member(archive, COCO_TABLES), origin)
    described = {ref.image_id for ref in refs}
    prompted = class_prompts(tables, described, config.class_pictures, origin)
    _log.info("%d pictures without a ref are trained on by their classes' names", len(prompted))
    return sorted([*annotated, *prompted], key=lambda one: SPLITS.index(one.split))  # stable: refs stay in front


@contextmanager
def _store(
    config: ReferConfig, annotated: list[Annotated], archive_path: Path | None, mirror: Mirror, cache: Path
) -> Iterator[PictureStore]:
    if archive_path is None:
        names = {one.file_name for one in annotated}
        yield FileStore(config.single.path, obtain_pictures(names, config.single, mirror, cache))
        return
    with open_archive(archive_path) as archive:
        yield ArchiveStore(archive, f"{FOLDER}/")


def _chosen(refs: list[Ref], config: ReferConfig) -> _Chosen:
    """Sort refs into our splits, and keep the first of each, up to its limit."""
    ours: dict[str, Split] = {"train": "train", "val": "val", **dict.fromkeys(config.test_splits, "test")}
    chosen: dict[Split, list[Ref]] = {split: [ref for ref in refs if ours.get(ref.split) == split] for split in SPLITS}
    empty = [split for split, members in chosen.items() if not members]
    if empty:
        raise ValueError(
            f"refs({config.split_by}).p of {config.refs.path}: got no refs in {' and '.join(empty)}, wanted some in "
            f"each of {', '.join(SPLITS)}; use another `split_by`, other `test_splits` or a fuller mirror"
        )
    _check_overlap(chosen, config)
    limits: dict[Split, int | None] = {"train": config.train_refs, "val": config.val_refs, "test": config.test_refs}
    return [(split, ref) for split, members in chosen.items() for ref in members[: limits[split]]]


def _check_overlap(chosen: dict[Split, list[Ref]], config: ReferConfig) -> None:
    """Splits share no picture, else scores are of pictures trained on; the google splits do by design, and are told."""
    of_image: dict[int, Split] = {}
    shared = []
    for split, members in chosen.items():
        for ref in members:
            if of_image.setdefault(ref.image_id, split) != split:
                shared.append((ref.image_id, of_image[ref.image_id], split))
    if not shared:
        return
    image_id, one, other = shared[0]
    if config.split_by != "google":
        raise ValueError(
            f"refs({config.split_by}).p: got the picture {image_id} in {one} and {other}, wanted splits that share none"
            " (scores would be of pictures trained on); fetch the archive again"
        )
    count = len({image_id for image_id, _, _ in shared})
    _log.warning("%d pictures are in more than one split: scores are, in part, of pictures trained on", count)


def _annotated(refs: _Chosen, tables: CocoTables) -> Iterator[Annotated]:
    """Yield the pictures of the refs, by split and number, each with all its annotations."""
    refs_of: dict[tuple[Split, int], list[Ref]] = defaultdict(list)
    for split, ref in refs:
        refs_of[split, ref.image_id].append(ref)
    for split, image_id in sorted(refs_of, key=lambda key: (SPLITS.index(key[0]), key[1])):
        members = refs_of[split, image_id]
        if image_id not in tables.images:
            raise ValueError(
                f"ref {members[0].ref_id}: its picture {image_id} is missing from instances.json; fetch both archives "
                "again"
            )
        phrases = [_phrases(ref) for ref in members]
        image = tables.images[image_id]
        yield Annotated(split, image, image.file_name, tables.annotations_of.get(image_id, []), phrases)


def _phrases(ref: Ref) -> Phrases:
    worded = tuple((f"{ref.ref_id}-{sentence_id}", phrase) for sentence_id, phrase in ref.phrases)
    return Phrases(f"ref {ref.ref_id}", (ref.annotation_id,), worded)


def _check_presence(annotated: list[Annotated], store: PictureStore) -> None:
    for one in annotated:
        if one.file_name not in store.names:
            raise ValueError(
                f"{one.phrases[0].owner}: its picture {one.image.image_id} is missing from {store.where} "
                f"({one.file_name}); fetch both archives again"
            )
