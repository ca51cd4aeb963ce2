"""A folder of one's own pictures as this project's records, or the list of what is wrong with it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptseg.datasets.archives import write_archive
from promptseg.datasets.records import SPLITS, Picture, Sample, Split, write_records
from promptseg.files import atomic_path
from promptseg.params import FolderConfig
from promptseg.sources.folder.annotation_file import Annotation, split_of_images
from promptseg.sources.folder.coco_file import read_coco_file
from promptseg.sources.folder.json_lines import read_json_lines
from promptseg.sources.folder.mistakes import Mistake, Mistakes, refusal
from promptseg.sources.folder.pictures import FolderPictures
from promptseg.sources.repack import phrase_kind


@dataclass(frozen=True)
class FolderData:
    """What a folder holds: its pictures and samples, by split and then in the order of the file; and its mistakes."""

    pictures: tuple[Picture, ...]
    samples: tuple[Sample, ...]
    mistakes: tuple[Mistake, ...]


def read_folder(config: FolderConfig) -> FolderData:
    """Read everything that the configuration names, to the end: all mistakes are in the result. Nothing is written."""
    folder, mistakes = Path(config.path).expanduser(), Mistakes()
    if not folder.is_dir():
        remedy = "wanted the folder of the pictures; queued runs see tracked files only: give it as an absolute path"
        return FolderData((), (), (Mistake("path", f"got {config.path!r}, which is no folder here, {remedy}"),))
    path = folder / config.annotations
    if not path.is_file():
        return FolderData((), (), (Mistake("annotations", f"got {path}, no such file; correct the name, or `path`"),))
    read = read_json_lines if path.suffix == ".jsonl" else read_coco_file
    annotations = read(path, FolderPictures(folder, mistakes), mistakes)
    if not annotations and not mistakes.found:
        mistakes.add(config.annotations, "got no annotation, wanted at least one in each split")
    splits = split_of_images(config, annotations, config.annotations, mistakes)
    of_image: dict[str, list[Annotation]] = {
        image: [] for image in sorted(splits, key=lambda i: SPLITS.index(splits[i]))
    }
    for annotation in annotations:
        of_image[annotation.image].append(annotation)
    pictures = tuple(_picture(image, splits[image], group) for image, group in of_image.items())
    samples = tuple(sample for image, group in of_image.items() for sample in _samples(splits[image], group))
    return FolderData(pictures, samples, tuple(mistakes.found))


def build_folder(config: FolderConfig, watch: str, images: Path, samples: Path, pictures: Path) -> None:
    """Write `images` (a stored archive a split, the files byte for byte), `samples` and `pictures`; all or none.

    Raises ValueError before anything is written when anything is wrong, or when DVC does not watch the folder.
    """
    folder = Path(config.path).expanduser()
    if Path(watch).expanduser().resolve() != folder.resolve():
        raise ValueError(
            f"watch: got {watch!r}, wanted {config.path!r}, the folder that this data set is read from: DVC notices "
            f"only what it watches; set it beside `data` in params.yaml, or with -S watch={config.path}"
        )
    data = read_folder(config)
    if data.mistakes:
        raise ValueError(refusal(config.annotations, data.mistakes))
    with atomic_path(images) as archives, atomic_path(samples) as samples_path, atomic_path(pictures) as pictures_path:
        archives.mkdir()
        for split in SPLITS:
            write_archive(archives / f"{split}.zip", _members(folder, data.pictures, split))
        write_records(samples_path, data.samples)
        write_records(pictures_path, data.pictures)


def _members(folder: Path, pictures: Sequence[Picture], split: Split) -> Iterator[tuple[str, bytes]]:
    for picture in pictures:
        if picture.split == split:
            name = picture.image.partition("/")[2]
            yield name, (folder / name).read_bytes()


def _picture(image: str, split: Split, annotations: Sequence[Annotation]) -> Picture:
    objects = tuple(dict.fromkeys(annotation.mask for annotation in annotations))
    return Picture(f"{split}.zip/{image}", split, annotations[0].height, annotations[0].width, objects)


def _samples(split: Split, annotations: Sequence[Annotation]) -> Iterator[Sample]:
    number: Counter[str] = Counter()
    for each in annotations:
        for phrase in each.phrases:
            number[each.image] += 1
            name = f"{each.image}-{number[each.image]}"
            place = f"{split}.zip/{each.image}"
            yield Sample(name, split, place, each.height, each.width, phrase, phrase_kind(phrase), each.mask)
