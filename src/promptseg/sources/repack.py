"""From annotated pictures, wherever they lie, to this project's records: all checked, then all written."""

import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from promptseg.datasets.archives import DAMAGED_ARCHIVE, read_member, write_archive
from promptseg.datasets.preprocess import DAMAGED_PICTURE
from promptseg.datasets.records import PhraseKind, Picture, Rle, Sample, Split, write_records
from promptseg.files import atomic_path
from promptseg.sources.coco import CocoAnnotation, CocoImage
from promptseg.sources.coco_segmentation import segmentation_to_rle

PICTURES_PER_ARCHIVE = 2000
KEYWORD_WORDS = 2  # at most: "red car"
SHORT_WORDS = 5  # at most: "man in a blue shirt"


class PictureStore(Protocol):
    """Pictures by their names; `where` names the place in messages."""

    where: str
    names: frozenset[str]

    def open(self, name: str) -> BinaryIO:
        """Open one of `names` for reading; `archives.DAMAGED_ARCHIVE` is raised where its bytes are damaged."""

    def read(self, name: str) -> bytes:
        """Return all of one of `names`. Raises ValueError where it is damaged."""


class ArchiveStore:
    """The members of a zip archive below `prefix`."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        self.where = f"{archive.filename}"
        self._archive = archive
        self._prefix = prefix
        members = (name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/"))
        self.names = frozenset(name.removeprefix(prefix) for name in members)

    def open(self, name: str) -> BinaryIO:
        """See PictureStore."""
        return cast(BinaryIO, self._archive.open(self._prefix + name))

    def read(self, name: str) -> bytes:
        """See PictureStore."""
        return read_member(self._archive, self._prefix + name)


class FileStore:
    """Files, each at its path by its name."""

    def __init__(self, where: str, paths: Mapping[str, Path]) -> None:
        self.where = where
        self._paths = paths
        self.names = frozenset(paths)

    @classmethod
    def of_folder(cls, folder: Path) -> "FileStore":
        """Return the store of all files below `folder`, named as they lie there."""
        paths = (path for path in folder.rglob("*") if path.is_file())
        return cls(str(folder), {path.relative_to(folder).as_posix(): path for path in paths})

    def open(self, name: str) -> BinaryIO:
        """See PictureStore."""
        return self._paths[name].open("rb")

    def read(self, name: str) -> bytes:
        """See PictureStore."""
        try:
            return self._paths[name].read_bytes()
        except OSError as error:
            raise ValueError(f"{self._paths[name]}: cannot be read ({error}); replace the file") from error


@dataclass(frozen=True)
class Phrases:
    """What is said of annotations that make one mask together, each phrase with its sample's id.

    `owner` names whose words they are. `kind` None sorts each phrase by its words. Phrases of nothing, their mask being
    empty, are a mistake, or left out where `may_be_empty`.
    """

    owner: str
    annotation_ids: tuple[int, ...]
    worded: tuple[tuple[str, str], ...]
    kind: PhraseKind | None = None
    may_be_empty: bool = False


@dataclass(frozen=True)
class Annotated:
    """One picture of a split: its `file_name` in a store, all its annotations, and the phrases for some of them."""

    split: Split
    image: CocoImage
    file_name: str
    annotations: list[CocoAnnotation]
    phrases: list[Phrases]


@dataclass(frozen=True)
class _Entry:
    """A picture to repack: its name in the store, and what is recorded of it."""

    file_name: str
    picture: Picture
    samples: tuple[Sample, ...]


def repack(annotated: list[Annotated], store: PictureStore, images: Path, samples: Path, pictures: Path) -> None:
    """Write the folder of archives `images`, and the records `samples` (one a phrase) and `pictures`; all or none.

    Encoded pictures are copied byte for byte; sizes and masks are those after EXIF orientation; a picture's objects are
    all its annotations, crowds included. Everything is checked before anything is written. Raises ValueError when a
    picture or an annotation is wrong, OSError on a full disk.
    """
    entries = list(_entries(annotated, store))
    with (
        atomic_path(images) as folder,
        atomic_path(samples) as samples_path,
        atomic_path(pictures) as pictures_path,
        tqdm(total=len(entries), desc="repacking pictures", unit="picture") as progress,
    ):
        folder.mkdir()
        for shard, group in groupby(entries, key=lambda entry: entry.picture.image.partition("/")[0]):
            write_archive(folder / shard, _contents(store, group, progress))
        write_records(samples_path, (sample for entry in entries for sample in entry.samples))
        write_records(pictures_path, (entry.picture for entry in entries))


def phrase_kind(phrase: str) -> PhraseKind:
    """Sort a phrase by its number of words: up to 2 make a keyword, up to 5 a short phrase, more a sentence."""
    words = len(phrase.split())
    if words <= KEYWORD_WORDS:
        return "keyword"
    return "short" if words <= SHORT_WORDS else "sentence"


def _entries(annotated: list[Annotated], store: PictureStore) -> Iterator[_Entry]:
    number: Counter[Split] = Counter()
    for one in tqdm(annotated, desc="checking pictures", unit="picture"):
        shard = f"{one.split}-{number[one.split] // PICTURES_PER_ARCHIVE:03d}.zip"
        entry = _entry(one, store, f"{shard}/{one.image.file_name}")
        if entry.samples:
            number[one.split] += 1
            yield entry


def _entry(one: Annotated, store: PictureStore, name: str) -> _Entry:
    orientation = _checked_orientation(store, one.file_name, one.image)
    masks = {entry.annotation_id: _mask(entry, one.image, orientation) for entry in one.annotations}
    spoken = [(said, _spoken_of(said, masks, one.image)) for said in one.phrases]
    height, width = next((mask.height, mask.width) for mask in masks.values())
    samples = tuple(
        Sample(sample_id, one.split, name, height, width, phrase, said.kind or phrase_kind(phrase), mask)
        for said, mask in spoken
        if mask.area
        for sample_id, phrase in said.worded
    )
    objects = tuple(mask for _, mask in sorted(masks.items()) if mask.area)
    return _Entry(one.file_name, Picture(name, one.split, height, width, objects), samples)


def _spoken_of(said: Phrases, masks: dict[int, Rle], image: CocoImage) -> Rle:
    """Return the mask that phrases mean; see Phrases for when it may be empty."""
    for annotation_id in said.annotation_ids:
        if annotation_id not in masks:
            raise ValueError(
                f"{said.owner}: instances.json has no annotation {annotation_id} of the picture "
                f"{image.image_id}; fetch the archive again"
            )
    mask = Rle.united([masks[annotation_id] for annotation_id in said.annotation_ids])
    if not mask.area and not said.may_be_empty:
        numbers = ", ".join(map(str, said.annotation_ids))
        raise ValueError(f"{said.owner}: the mask of its annotation {numbers} is empty; leave it out")
    return mask


def _checked_orientation(store: PictureStore, file_name: str, image: CocoImage) -> int:
    """Return a stored picture's EXIF orientation, 1 to 8, its size being the annotations'; only its head is read."""
    try:
        with store.open(file_name) as stream, Image.open(stream) as picture:
            size, orientation = picture.size, picture.getexif().get(ExifTags.Base.Orientation, 1)
    except (*DAMAGED_PICTURE, *DAMAGED_ARCHIVE) as error:
        raise ValueError(f"{store.where}: {file_name} is no picture, or damaged ({error}); fetch it again") from error
    if size != (image.width, image.height):
        raise ValueError(
            f"{store.where}: {file_name} is {size[0]}x{size[1]} px, its annotations say {image.width}x{image.height}"
            "; fetch both again"
        )
    return int(orientation)


def _mask(annotation: CocoAnnotation, image: CocoImage, orientation: int) -> Rle:
    """Return the mask, turned as EXIF turns its picture: COCO's annotations count stored pixels."""
    try:
        rle = segmentation_to_rle(annotation.segmentation, image.height, image.width)
    except ValueError as error:
        raise ValueError(f"annotation {annotation.annotation_id} of {image.file_name}: {error}") from error
    if orientation == 1:
        return rle
    stored = Image.fromarray(rle.to_mask())
    stored.getexif()[ExifTags.Base.Orientation] = orientation
    return Rle.from_mask(np.asarray(ImageOps.exif_transpose(stored)))


def _contents(store: PictureStore, entries: Iterable[_Entry], progress: tqdm) -> Iterator[tuple[str, bytes]]:
    for entry in entries:
        yield entry.picture.image.partition("/")[2], store.read(entry.file_name)
        progress.update()
