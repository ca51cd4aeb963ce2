"""RefCOCO, RefCOCO+ and RefCOCOg: photographs of COCO train2014, and phrases of REFER, as this project's records.

`refcocog/refs(<split_by>).p` is a pickled list of refs; `refcocog/instances.json` holds the pictures and annotations
that they name by number; likewise below `refcoco` and `refcoco+`. Source: github.com/lichengunc/refer.

Pictures that no one has described can be trained on by the names of their classes, one mask for all instances of a
class, as the published training does (Zou et al., "Generalized Decoding for Pixel, Image, and Language", 2023); the
templates are our own.
"""

import logging
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptseg.datasets.archives import open_archive, read_member
from promptseg.datasets.records import SPLITS, Split
from promptseg.params import ReferConfig
from promptseg.sources.checks import Mistakes, checked_phrase, shown, whole_number
from promptseg.sources.coco import CocoAnnotation, CocoImage, CocoTables, objects_of, read_tables, size_of
from promptseg.sources.mirrors import Mirror, obtain_all, obtain_pictures
from promptseg.sources.repack import Annotated, ArchiveStore, FileStore, Phrases, PictureStore, Rules
from promptseg.sources.restricted_pickle import load_plain_pickle

FOLDER = "train2014"  # in COCO's archive
COCO_TABLES = "annotations/instances_train2014.json"  # in COCO's archive of annotations
REFER_SPLITS = ("train", "val", "test", "testA", "testB")  # testA: people, testB: everything else
PYTHON_2_STRINGS = "latin1"  # reads any byte; REFER's texts are ASCII
TEMPLATES = ("{}", "every {}", "any {} in the picture", "each {} there is")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ref:
    """One object and its phrases, each with its sentence id; `split` as REFER names it, one of REFER_SPLITS."""

    ref_id: int
    annotation_id: int
    image_id: int
    split: str
    phrases: tuple[tuple[int, str], ...]

    @property
    def where(self) -> str:
        """Its place in messages."""
        return f"ref {self.ref_id}"


@contextmanager
def open_refcoco(
    config: ReferConfig, mirror: Mirror, cache: Path, mistakes: Mistakes
) -> Iterator[tuple[list[Annotated], PictureStore, Rules]]:
    """Yield the pictures that refs or class names need, the store that holds them, and the rules they are held to.

    Only those pictures are kept, or even fetched. What is wrong with tables and refs is noted. Raises ValueError when
    archives are missing or damaged, OSError on a full disk.
    """
    wanted = {"refs": config.refs}
    if config.pictures == "archive":
        wanted["images"] = config.images
    if config.class_prompts == "coco":
        wanted["annotations"] = config.annotations
    paths = dict(zip(wanted, obtain_all(list(wanted.values()), mirror, cache), strict=True))
    annotated = _read(config, paths["refs"], paths.get("annotations"), mistakes)
    origin = f"{paths['refs'].name}: refs({config.split_by}).p"
    rules = Rules(origin, published=True, splits_share_pictures=config.split_by == "google")
    if "images" not in paths:
        needed = [] if mistakes.found else annotated  # pictures are not worth fetching for tables that are wrong
        names = {one.file_name for one in needed}
        yield needed, FileStore(config.single.path, obtain_pictures(names, config.single, mirror, cache)), rules
        return
    with open_archive(paths["images"]) as archive:
        yield annotated, ArchiveStore(archive, f"{FOLDER}/"), rules


def _read(config: ReferConfig, refs_path: Path, coco_path: Path | None, mistakes: Mistakes) -> list[Annotated]:
    """Return the pictures to keep: those of the refs, and behind those of train the ones that class names prompt.

    No picture is both: where any ref of any split speaks of one, class names do not, chosen or not.
    """
    with open_archive(refs_path) as archive:
        refs = read_refs(archive, config.folder, config.split_by, mistakes)
        instances = read_member(archive, f"{config.folder}/instances.json")
    tables = read_tables(instances, f"{refs_path.name}: instances.json", mistakes)
    chosen = _chosen(refs, config, f"{refs_path.name}: refs({config.split_by}).p", mistakes)
    annotated = list(_annotated(chosen, tables, mistakes))
    if config.class_prompts == "none":
        return annotated
    if coco_path is not None:
        with open_archive(coco_path) as archive:
            coco_instances = read_member(archive, COCO_TABLES)
        tables = read_tables(coco_instances, f"{coco_path.name}: {COCO_TABLES}", mistakes)
    prompted = class_prompts(tables, {ref.image_id for ref in refs}, config.class_pictures, mistakes)
    _log.info("%d pictures without a ref are trained on by their classes' names", len(prompted))
    return sorted([*annotated, *prompted], key=_place_of_split)  # stable: refs stay in front


def _place_of_split(one: Annotated) -> int:
    assert one.split is not None, "refs and class names have a split"
    return SPLITS.index(one.split)


def read_refs(archive: zipfile.ZipFile, folder: str, split_by: str, mistakes: Mistakes) -> list[Ref]:
    """Read `refs(<split_by>).p`, in its order. Refs that are malformed, come twice, or say nothing are noted.

    Raises ValueError when the file is missing, or no list in a plain pickle.
    """
    member = f"{folder}/refs({split_by}).p"
    if member not in archive.namelist():
        raise ValueError(f"{archive.filename}: has no {member!r}, only {archive.namelist()[:8]}; correct `split_by`")
    origin = f"{archive.filename}: {member}"
    records = load_plain_pickle(read_member(archive, member), origin, PYTHON_2_STRINGS)
    if not isinstance(records, list):
        raise ValueError(f"{origin}: got {type(records).__name__}, wanted a list of refs; fetch the archive again")
    refs: dict[int, Ref] = {}
    for number, record in enumerate(records):
        where = f"{Path(member).name}, ref number {number}"
        try:
            ref = _ref(record, mistakes)
            if ref.ref_id in refs:
                raise ValueError(f"ref_id: got {ref.ref_id} again, wanted distinct ids")
            refs[ref.ref_id] = ref
        except ValueError as error:
            mistakes.add(where, f"{error}; fetch the archive again")
    return list(refs.values())


def _ref(record: Any, mistakes: Mistakes) -> Ref:
    """Return one ref without the sentences that say nothing, which are told. Raises ValueError where none is left."""
    if not isinstance(record, dict):
        raise ValueError(f"got {shown(record)}, wanted a mapping")
    ref_id, annotation_id, image_id = (_number(record, key) for key in ("ref_id", "ann_id", "image_id"))
    if record.get("split") not in REFER_SPLITS:
        raise ValueError(f"split: got {shown(record.get('split'))}, wanted one of {', '.join(REFER_SPLITS)}")
    sentences = record.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
        raise ValueError(f"sentences: got {shown(sentences)}, wanted a list of mappings")
    phrases: dict[int, str] = {}
    empty = []
    for sentence in sentences:
        sentence_id = _number(sentence, "sent_id")
        if sentence_id in phrases:
            raise ValueError(f"sent_id: got {sentence_id} twice, wanted distinct ids")
        try:
            phrases[sentence_id] = checked_phrase(sentence.get("sent"))
        except ValueError as error:
            empty.append(f"ref {ref_id}, sentence {sentence_id}: {error}")
    if not phrases:
        raise ValueError(f"ref {ref_id}: got no sentence with a word in it, wanted at least one")
    for sentence_place in empty:
        mistakes.left_out["a sentence that says nothing, beside others"].append(sentence_place)
    return Ref(ref_id, annotation_id, image_id, record["split"], tuple(phrases.items()))


def _number(record: dict[str, Any], key: str) -> int:
    try:
        return whole_number(record.get(key))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _chosen(refs: list[Ref], config: ReferConfig, origin: str, mistakes: Mistakes) -> list[tuple[Split, Ref]]:
    """Sort refs into our splits, and keep the first of each, up to its limit."""
    ours: dict[str, Split] = {"train": "train", "val": "val", **dict.fromkeys(config.test_splits, "test")}
    chosen: dict[Split, list[Ref]] = {split: [ref for ref in refs if ours.get(ref.split) == split] for split in SPLITS}
    empty = [split for split, members in chosen.items() if not members]
    if empty:
        mistakes.add(
            origin,
            f"got no refs in {' and '.join(empty)}, wanted some in each of {', '.join(SPLITS)}; use another "
            "`split_by`, other `test_splits` or a fuller mirror",
        )
    _check_overlap(chosen, config, mistakes)
    limits: dict[Split, int | None] = {"train": config.train_refs, "val": config.val_refs, "test": config.test_refs}
    return [(split, ref) for split, members in chosen.items() for ref in members[: limits[split]]]


def _check_overlap(chosen: dict[Split, list[Ref]], config: ReferConfig, mistakes: Mistakes) -> None:
    """Splits share no picture, else scores are of pictures trained on; the google splits do by design, and are told."""
    of_image: dict[int, Split] = {}
    shared: dict[int, str] = {}
    for split, members in chosen.items():
        for ref in members:
            if of_image.setdefault(ref.image_id, split) != split and ref.image_id not in shared:
                shared[ref.image_id] = f"{of_image[ref.image_id]} and {split}"
                if config.split_by != "google":
                    mistakes.add(
                        ref.where,
                        f"got the picture {ref.image_id} in {shared[ref.image_id]}, wanted splits that share none "
                        "(scores would be of pictures trained on); fetch the archive again",
                    )
    if shared and config.split_by == "google":
        _log.warning("%d pictures are in more than one split: scores are, in part, of pictures trained on", len(shared))


def _annotated(refs: list[tuple[Split, Ref]], tables: CocoTables, mistakes: Mistakes) -> Iterator[Annotated]:
    """Yield the pictures of the refs, by split and number, each with all its annotations."""
    refs_of: dict[tuple[Split, int], list[Ref]] = defaultdict(list)
    for split, ref in refs:
        refs_of[split, ref.image_id].append(ref)
    for split, image_id in sorted(refs_of, key=lambda key: (SPLITS.index(key[0]), key[1])):
        phrases = []
        for ref in refs_of[split, image_id]:
            annotation = tables.annotations.get(ref.annotation_id)
            if image_id not in tables.images:
                mistakes.add(ref.where, f"its picture {image_id} is missing from {tables.origin}; fetch it again")
            elif annotation is None or annotation.image_id != image_id:
                mistakes.add(
                    ref.where,
                    f"{tables.origin} has no annotation {ref.annotation_id} of the picture {image_id}; fetch it again",
                )
            else:
                worded = tuple((f"{ref.ref_id}-{sentence_id}", phrase) for sentence_id, phrase in ref.phrases)
                phrases.append(Phrases(ref.where, (ref.annotation_id,), worded))
        if phrases:
            yield from _of_picture(split, tables.images[image_id], tables, phrases, mistakes)


def _of_picture(
    split: Split, image: CocoImage, tables: CocoTables, phrases: list[Phrases], mistakes: Mistakes
) -> Iterator[Annotated]:
    """Yield a picture with all its annotations, which count stored pixels; none without a size, which is noted."""
    claimed = size_of(tables, image, mistakes)
    if claimed is not None:
        where, objects = tables.place("image", image.image_id), objects_of(tables, image)
        yield Annotated(where, image.file_name, image.file_name, split, claimed, "stored", objects, tuple(phrases))


def class_prompts(
    tables: CocoTables, described: Collection[int], limit: int | None, mistakes: Mistakes
) -> list[Annotated]:
    """Return the pictures, by number, that have objects and are not among `described`; the first `limit` of them.

    Each becomes a picture of the train split with a phrase for each class in it, worded by the template that the
    numbers of picture and class decide, so that the same pictures make the same samples. Crowds count as instances.
    Notes when there is no such picture, and objects whose class has no name.
    """
    numbers = [
        number for number in sorted(tables.annotations_of) if number in tables.images and number not in described
    ]
    if not numbers:
        mistakes.add(
            tables.origin,
            f"got no picture without a ref among {len(tables.images)}, wanted some for `class_prompts`; set it to "
            "coco, for COCO's own tables, or to none",
        )
    prompted: list[Annotated] = []
    for number in numbers[:limit]:
        image = tables.images[number]
        phrases = _prompts(image, tables.annotations_of[number], tables, mistakes)
        prompted += _of_picture("train", image, tables, phrases, mistakes)
    return prompted


def _prompts(
    image: CocoImage, annotations: list[CocoAnnotation], tables: CocoTables, mistakes: Mistakes
) -> list[Phrases]:
    of_class: dict[int, list[int]] = {}
    for annotation in annotations:
        if annotation.class_id is None or annotation.class_id not in tables.class_names:
            mistakes.add(
                tables.place("annotation", annotation.annotation_id),
                f"got the class {annotation.class_id}, wanted one of the {len(tables.class_names)} that the file "
                "names; set `class_prompts` to none, or correct the file",
            )
            continue
        of_class.setdefault(annotation.class_id, []).append(annotation.annotation_id)
    for number in list(of_class):
        try:
            checked_phrase(tables.class_names[number])
        except ValueError as error:
            mistakes.add(tables.place("category", number), f"name: {error}")
            del of_class[number]
    return [
        Phrases(
            f"class {tables.class_names[number]!r} of the picture {image.image_id}",
            tuple(annotation_ids),
            ((f"class-{image.image_id}-{number}", _worded(tables.class_names[number], image.image_id, number)),),
            kind="keyword",  # the name is all that it says, whatever the words around
            may_be_empty=True,
        )
        for number, annotation_ids in sorted(of_class.items())
    ]


def _worded(name: str, image_id: int, class_id: int) -> str:
    place = zlib.crc32(f"{image_id} {class_id}".encode())
    return TEMPLATES[place % len(TEMPLATES)].format(name.lower())
