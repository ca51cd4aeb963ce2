"""The data set `photos`: photographs of everyday things with masks and names, as this project's records.

`instances.json` is COCO's format; each picture carries `split` (train, val, val_clothes), and `annotated`: what is
known to be absent where it is not marked ("all 80 COCO names"), or the names that were looked for at all.
"""

import csv
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from promptseg.datasets.archives import open_archive, read_member
from promptseg.datasets.preprocess import read_picture
from promptseg.datasets.records import PhraseKind, Rle, Split
from promptseg.params import PhotosConfig
from promptseg.sources.checks import Mistakes
from promptseg.sources.coco import CocoTables, read_tables, segmentation_to_rle, size_of
from promptseg.sources.mirrors import Mirror, is_address, obtain_all, obtain_pictures, places, resolve_folder
from promptseg.sources.photos.composites import Composite, Photo, compose, draw_composites
from promptseg.sources.photos.phrases import NAME_TEMPLATES, Thing, Wording, wordings
from promptseg.sources.repack import Annotated, FileStore, Marked, Phrases, PictureStore, Rules

TABLES = "instances.json"
PICTURES = Path(__file__).with_name("pictures.csv")  # of COCO 2017: those that are here, and what was looked for
SPLITS: dict[str, Split] = {"train": "train", "val": "val", "val_clothes": "test"}
COMPLETE = "all 80 COCO names"


@dataclass(frozen=True)
class _Listed:
    """A photograph as the table has it, and the split and the set of pictures it comes from."""

    photo: Photo
    split: Split
    source: str


class _Store:
    """The photographs' files, and composites made when they are read."""

    def __init__(self, files: PictureStore, composites: Sequence[Composite]) -> None:
        self.where = files.where
        self._files = files
        self._composites = {each.result.file_name: each for each in composites}
        self.names = files.names | self._composites.keys()

    def read(self, name: str) -> bytes:
        """See PictureStore."""
        composite = self._composites.get(name)
        return self._files.read(name) if composite is None else compose(composite, self._files.read)


@contextmanager
def open_photos(
    config: PhotosConfig, mirror: Mirror, cache: Path, mistakes: Mistakes
) -> Iterator[tuple[list[Annotated], PictureStore, Rules]]:
    """Yield the photographs with phrases, the store that holds them, and the rules they are held to.

    All of them where a mirror is a folder with `instances.json` and `images`; else those of COCO that PICTURES lists,
    picture by picture, with the tables of COCO's archive. Raises ValueError when something is missing or damaged.
    """
    listed, files = _of_folder(mirror, mistakes) or _of_coco(config, mirror, cache, mistakes)
    for name in sorted(each.photo.file_name for each in listed if each.photo.file_name not in files.names):
        mistakes.add(name, f"got no such picture in {files.where}; copy it there again")
    kept = [] if mistakes.found else _limited(listed, config)
    train = [each.photo for each in kept if each.split == "train"]
    grounds = [photo for photo in train if photo.complete] or train
    composites = draw_composites(train, grounds, config.composites, config.seed) if train else []
    store = _Store(files, composites)
    listed = [*kept, *(_Listed(each.result, "train", "composite") for each in composites)]
    names = Counter(thing.name for each in listed if each.photo.complete for thing in each.photo.things)
    annotated = [_annotated(each, store, names, config) for each in listed]
    yield annotated, store, Rules(f"photographs in {store.where}", published=True)


def _of_folder(mirror: Mirror, mistakes: Mistakes) -> tuple[list[_Listed], FileStore] | None:
    """Read the first mirror that is a folder with TABLES in it; None where there is none."""
    for place in () if mirror is None else places(mirror):
        folder = None if is_address(place) else resolve_folder(place)
        if folder is not None and (folder / TABLES).is_file():
            return read_photos(folder / TABLES, mistakes), FileStore.of_folder(folder / "images")
    return None


def read_photos(path: Path, mistakes: Mistakes) -> list[_Listed]:
    """Read TABLES; what is wrong with it is noted."""
    content = path.read_bytes()
    tables = read_tables(content, path.name, mistakes)
    if mistakes.found:
        return []
    rows = {row["id"]: row for row in json.loads(content)["images"]}
    listed = []
    for number in sorted(tables.images):
        row, where = rows[number], tables.place("image", number)
        if row.get("split") not in SPLITS:
            mistakes.add(where, f"split: got {row.get('split')!r}, wanted one of {', '.join(SPLITS)}; correct it")
        elif size_of(tables, tables.images[number], mistakes) is not None:
            photo = _photo(tables, number, row.get("annotated") == COMPLETE, mistakes)
            listed.append(_Listed(photo, SPLITS[row["split"]], str(row.get("source"))))
    return listed


def _of_coco(
    config: PhotosConfig, mirror: Mirror, cache: Path, mistakes: Mistakes
) -> tuple[list[_Listed], PictureStore]:
    """Read COCO's tables and fetch the pictures that PICTURES lists; a few in each of COCO's two folders."""
    with PICTURES.open(encoding="utf-8", newline="") as lines:
        wanted = list(csv.DictReader(lines))
    (archive_path,) = obtain_all([config.annotations], mirror, cache)
    listed: list[_Listed] = []
    paths: dict[str, Path] = {}
    for single in (config.single_train, config.single_val):
        folder = single.path.rpartition("/")[2]
        chosen = {int(row["coco_id"]): row for row in wanted if row["folder"] == folder}
        tables = _tables_of(archive_path, folder, chosen.keys(), mistakes)
        names = {tables.images[number].file_name for number in chosen if number in tables.images}
        for number, row in chosen.items():
            if number not in tables.images:
                mistakes.add(tables.origin, f"got no picture {number}, wanted it; fetch the archive again")
                continue
            photo = _photo(tables, number, not row["looked_for"], mistakes, row["looked_for"].split(";"))
            listed.append(_Listed(photo, SPLITS[row["split"]], "COCO 2017"))
        paths |= obtain_pictures(names, single, mirror, cache) if not mistakes.found else {}
    return listed, FileStore(config.single_train.path, paths)


def _tables_of(archive_path: Path, folder: str, numbers: Collection[int], mistakes: Mistakes) -> CocoTables:
    """Read the tables of the pictures of these numbers: all of COCO's would be checked for minutes."""
    member = f"annotations/instances_{folder}.json"
    with open_archive(archive_path) as archive:
        everything = json.loads(read_member(archive, member))
    images = [row for row in everything["images"] if row["id"] in numbers]
    annotations = [row for row in everything["annotations"] if row["image_id"] in numbers]
    kept = {"images": images, "annotations": annotations, "categories": everything["categories"]}
    return read_tables(json.dumps(kept).encode(), f"{archive_path.name}: {member}", mistakes)


def _photo(
    tables: CocoTables, number: int, complete: bool, mistakes: Mistakes, looked_for: Sequence[str] = ()
) -> Photo:
    """One picture with its objects; where it is not `complete`, of `looked_for` alone, where any are named."""
    image = tables.images[number]
    height, width = image.height or 0, image.width or 0
    things = []
    for one in tables.annotations_of.get(number, []):
        where = tables.place("annotation", one.annotation_id)
        if one.class_id not in tables.class_names:
            mistakes.add(where, f"category_id: got {one.class_id!r}, wanted one that `categories` names; correct it")
            continue
        name = tables.class_names[one.class_id]
        if not complete and any(looked_for) and name not in looked_for:
            continue
        try:
            mask = segmentation_to_rle(one.segmentation, height, width)
        except ValueError as error:
            mistakes.add(where, f"mask: {error}; correct it")
            continue
        if mask.area:
            things.append(Thing(one.annotation_id, name, mask, one.crowd))
    return Photo(image.file_name, height, width, tuple(things), complete)


def _limited(listed: Sequence[_Listed], config: PhotosConfig) -> list[_Listed]:
    """Leave out train pictures of clothes beyond the limit, the last ones."""
    clothes = [each for each in listed if each.split == "train" and each.source == "Clothing Co-Parsing"]
    out = {each.photo.file_name for each in clothes[config.clothes_pictures :]}
    return [each for each in listed if each.photo.file_name not in out]


def _annotated(one: _Listed, store: _Store, names: Counter[str], config: PhotosConfig) -> Annotated:
    photo = one.photo
    member = photo.file_name
    rng = np.random.default_rng([config.seed, 3, zlib.crc32(member.encode())])
    picture = read_picture(store.read(member), member)
    trained = one.split == "train"
    least = 0.0 if trained else config.least_area * photo.height * photo.width
    things = [thing for thing in photo.things if thing.mask.area >= least and (trained or not thing.crowd)]
    said = [
        Phrases(
            member,
            wording.keys,
            tuple(_named(member, at, _variants(rng, wording, config, trained))),
            _KINDS[wording.said],
        )
        for at, wording in enumerate(wordings(things, picture))
    ]
    if photo.complete:
        shown = {thing.name for thing in photo.things}
        absent = _absent(rng, names, shown, config.absent if trained else len(names))
        worded = [rng.choice(NAME_TEMPLATES[:4]).format(name) if trained else name for name in absent]
        said.append(Phrases(member, (), tuple(_named(member, "absent", worded)), "keyword", absent=True))
    objects = tuple(Marked(each.key, member, partial(_mask_of, each)) for each in photo.things)
    return Annotated(member, member, member, one.split, (photo.height, photo.width), "shown", objects, tuple(said))


_KINDS: dict[str, PhraseKind] = {"name": "keyword", "place": "short", "size": "short", "colour": "short"}


def _mask_of(thing: Thing, *_size: int) -> Rle:
    return thing.mask


def _named(member: str, at: object, phrases: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((f"{member}-{at}-{place}", phrase) for place, phrase in enumerate(phrases))


def _variants(rng: np.random.Generator, wording: Wording, config: PhotosConfig, trained: bool) -> tuple[str, ...]:
    """The plain wording, and for training some of the others."""
    first, *others = wording.phrases
    more = rng.permutation(len(others))[: config.variants - 1] if trained else ()
    return (first, *(others[at] for at in more))


def _absent(rng: np.random.Generator, names: Counter[str], shown: set[str], count: int) -> list[str]:
    """Names that a picture does not show: half as they are common, half evenly."""
    candidates = sorted(name for name in names if name not in shown)
    if not candidates:
        return []
    weights = np.sqrt([names[name] for name in candidates])
    count = min(count, len(candidates))
    return [candidates[at] for at in rng.choice(len(candidates), count, replace=False, p=weights / weights.sum())]
