"""RefCOCOg: photographs of COCO train2014 with the phrases of REFER, repacked as this project's records."""

import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from promptseg.datasets.archives import DAMAGED_ARCHIVE, open_archive, read_member, write_archive
from promptseg.datasets.coco_segmentation import segmentation_to_rle
from promptseg.datasets.records import SPLITS, PhraseKind, Picture, Rle, Sample, Split, write_records
from promptseg.datasets.refer import CocoAnnotation, CocoImage, Ref, read_instances, read_refs
from promptseg.datasets.sources import obtain
from promptseg.files import atomic_path
from promptseg.params import RefcocogConfig
from promptseg.preprocess import DAMAGED_PICTURE

FOLDER = "train2014"
PICTURES_PER_ARCHIVE = 2000
KEYWORD_WORDS = 2  # at most: "red car"
SHORT_WORDS = 5  # at most: "man in a blue shirt"


@dataclass(frozen=True)
class _Entry:
    """A picture to repack: its name in COCO's archive, and what is recorded of it."""

    member: str
    picture: Picture
    samples: tuple[Sample, ...]


def build_refcocog(
    config: RefcocogConfig, mirror: str | None, cache: Path, images: Path, samples: Path, pictures: Path
) -> None:
    """Write the folder of archives `images`, and the records `samples` (one a phrase) and `pictures`; all or none.

    The encoded pictures are copied byte for byte, only those that refs need; sizes and masks are those after EXIF
    orientation; a picture's objects are all its annotations, crowds included. Everything is checked before anything is
    written. Raises ValueError when archives or annotations are wrong, OSError on a full disk.
    """
    with open_archive(obtain(config.refs, mirror, cache)) as archive:
        refs = _chosen(read_refs(archive, config.split_by), config)
        coco_images, annotations = read_instances(archive)
    with open_archive(obtain(config.images, mirror, cache)) as archive:
        entries = list(_entries(archive, refs, coco_images, annotations))
        _write(entries, archive, images, samples, pictures)


def phrase_kind(phrase: str) -> PhraseKind:
    """Sort a phrase by its number of words: up to 2 make a keyword, up to 5 a short phrase, more a sentence."""
    words = len(phrase.split())
    if words <= KEYWORD_WORDS:
        return "keyword"
    return "short" if words <= SHORT_WORDS else "sentence"


def _chosen(refs: list[Ref], config: RefcocogConfig) -> list[Ref]:
    """Keep the first refs of each split, up to its limit."""
    chosen: dict[Split, list[Ref]] = {split: [ref for ref in refs if ref.split == split] for split in SPLITS}
    empty = [split for split, members in chosen.items() if not members]
    if empty:
        raise ValueError(
            f"refs({config.split_by}).p of {config.refs.path}: got no refs in {' and '.join(empty)}, wanted some in "
            f"each of {', '.join(SPLITS)}; use another `split_by` or a fuller mirror"
        )
    of_image: dict[int, Split] = {}
    for ref in refs:
        if of_image.setdefault(ref.image_id, ref.split) != ref.split:
            raise ValueError(
                f"refs({config.split_by}).p: got the picture {ref.image_id} in {of_image[ref.image_id]} and {ref.split}"
                ", wanted splits that share none (scores would be of pictures trained on); use split_by: umd"
            )
    limits: dict[Split, int | None] = {"train": config.train_refs, "val": config.val_refs, "test": config.test_refs}
    return [ref for split, members in chosen.items() for ref in members[: limits[split]]]


def _entries(
    archive: zipfile.ZipFile, refs: list[Ref], images: dict[int, CocoImage], annotations: dict[int, CocoAnnotation]
) -> Iterator[_Entry]:
    """Yield what is to be written of each picture, by split and number, every claim checked against the pictures."""
    refs_of: dict[int, list[Ref]] = defaultdict(list)
    for ref in refs:
        refs_of[ref.image_id].append(ref)
    annotations_of: dict[int, list[CocoAnnotation]] = defaultdict(list)
    for annotation in annotations.values():
        annotations_of[annotation.image_id].append(annotation)
    stored = frozenset(archive.namelist())
    number: Counter[Split] = Counter()
    ordered = sorted(refs_of, key=lambda image_id: (SPLITS.index(refs_of[image_id][0].split), image_id))
    for image_id in tqdm(ordered, desc="checking pictures", unit="picture"):
        image = images.get(image_id)
        first = refs_of[image_id][0]
        if image is None or f"{FOLDER}/{image.file_name}" not in stored:
            missing = "instances.json" if image is None else f"{archive.filename} ({FOLDER}/{image.file_name})"
            raise ValueError(
                f"ref {first.ref_id}: its picture {image_id} is missing from {missing}; fetch both archives again"
            )
        shard = f"{first.split}-{number[first.split] // PICTURES_PER_ARCHIVE:03d}.zip"
        number[first.split] += 1
        yield _entry(archive, shard, image, refs_of[image_id], annotations_of[image_id])


def _entry(
    archive: zipfile.ZipFile, shard: str, image: CocoImage, refs: list[Ref], annotations: list[CocoAnnotation]
) -> _Entry:
    member = f"{FOLDER}/{image.file_name}"
    orientation = _checked_orientation(archive, member, image)
    masks = {entry.annotation_id: _mask(entry, image, orientation) for entry in annotations}
    for ref in refs:
        if ref.annotation_id not in masks:
            raise ValueError(
                f"ref {ref.ref_id}: instances.json has no annotation {ref.annotation_id} of the picture {ref.image_id}"
                "; fetch the archive again"
            )
        if not masks[ref.annotation_id].area:
            raise ValueError(
                f"ref {ref.ref_id}: the mask of its annotation {ref.annotation_id} is empty; leave the ref out"
            )
    name, split = f"{shard}/{image.file_name}", refs[0].split
    height, width = next((mask.height, mask.width) for mask in masks.values())
    samples = tuple(
        Sample(
            f"{ref.ref_id}-{sent_id}", split, name, height, width, phrase, phrase_kind(phrase), masks[ref.annotation_id]
        )
        for ref in refs
        for sent_id, phrase in ref.phrases
    )
    objects = tuple(mask for _, mask in sorted(masks.items()) if mask.area)
    return _Entry(member, Picture(name, split, height, width, objects), samples)


def _checked_orientation(archive: zipfile.ZipFile, member: str, image: CocoImage) -> int:
    """Return a stored picture's EXIF orientation, 1 to 8, its size being the annotations'; only its head is read."""
    try:
        with archive.open(member) as stream, Image.open(stream) as picture:
            size, orientation = picture.size, picture.getexif().get(ExifTags.Base.Orientation, 1)
    except (*DAMAGED_PICTURE, *DAMAGED_ARCHIVE) as error:
        raise ValueError(f"{archive.filename}: {member} is no picture, or damaged ({error}); fetch it again") from error
    if size != (image.width, image.height):
        raise ValueError(
            f"{archive.filename}: {member} is {size[0]}x{size[1]} px, its annotations say {image.width}x{image.height}"
            "; fetch both archives again"
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


def _write(entries: list[_Entry], archive: zipfile.ZipFile, images: Path, samples: Path, pictures: Path) -> None:
    with (
        atomic_path(images) as folder,
        atomic_path(samples) as samples_path,
        atomic_path(pictures) as pictures_path,
        tqdm(total=len(entries), desc="repacking pictures", unit="picture") as progress,
    ):
        folder.mkdir()
        for shard, group in groupby(entries, key=lambda entry: entry.picture.image.partition("/")[0]):
            write_archive(folder / shard, _contents(archive, group, progress))
        write_records(samples_path, (sample for entry in entries for sample in entry.samples))
        write_records(pictures_path, (entry.picture for entry in entries))


def _contents(archive: zipfile.ZipFile, entries: Iterator[_Entry], progress: tqdm) -> Iterator[tuple[str, bytes]]:
    for entry in entries:
        yield entry.picture.image.partition("/")[2], read_member(archive, entry.member)
        progress.update()
