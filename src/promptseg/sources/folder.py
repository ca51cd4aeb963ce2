"""A folder of one's own pictures, and the file in it that says what phrases speak of: JSON lines, or COCO.

JSON lines, one phrase a line: {"image": "a.jpg", "phrase": "the red cup", "mask": ..., "split": "train"}. In a COCO
file annotations carry "phrase" or "phrases"; without either they are the picture's other objects.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

from promptseg.datasets.records import SPLITS, Rle, Split
from promptseg.params import FolderConfig
from promptseg.sources.checks import Mistakes, checked_phrase, file_name, load_json, read_mask, shown
from promptseg.sources.coco import read_tables, segmentation_to_rle
from promptseg.sources.repack import Annotated, FileStore, Marked, Phrases, PictureStore, Rules

WANTED, OPTIONAL = ("image", "phrase", "mask"), ("split",)
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def open_folder(config: FolderConfig, mistakes: Mistakes) -> Iterator[tuple[list[Annotated], PictureStore, Rules]]:
    """Yield the annotated pictures, the store that holds them, and the rules that they are held to.

    What is wrong is noted, a missing folder or file, too.
    """
    folder = Path(config.path).expanduser()
    pictures = _Pictures(folder, mistakes)
    content = _content(folder, config, mistakes)
    if content is not None:
        read = _read_json_lines if config.annotations.endswith(".jsonl") else _read_coco
        read(content, Path(config.annotations).name, pictures, mistakes)
    annotated = pictures.annotated()
    if content is not None and not annotated and not mistakes.found:
        mistakes.add(config.annotations, "got no annotation with a phrase, wanted at least one in each split")
    rules = Rules(config.annotations, config.val_share, config.test_share)
    yield annotated, FileStore(str(folder), pictures.paths), rules


def check_watch(config: FolderConfig, watch: str) -> None:
    """Raise ValueError unless `watch` is the folder that the configuration reads."""
    if Path(watch).expanduser().resolve() != Path(config.path).expanduser().resolve():
        raise ValueError(
            f"watch: got {watch!r}, wanted {config.path!r}, the folder that this data set is read from: DVC notices "
            f"only what it watches; set it beside `data` in params.yaml, or with -S watch={config.path}"
        )


@dataclass
class _Picture:
    """One file, under the first of its names, and what is said of it so far."""

    where: str
    name: str
    split: Split | None = None
    claimed: tuple[int, int] | None = None
    objects: list[Marked] = field(default_factory=list)
    phrases: list[Phrases] = field(default_factory=list)


class _Pictures:
    """The pictures of a folder by the files that they are, however they are spelled or linked to."""

    def __init__(self, folder: Path, mistakes: Mistakes) -> None:
        self.paths: dict[str, Path] = {}
        self._folder = folder
        self._mistakes = mistakes
        self._of_file: dict[tuple[int, int], _Picture] = {}

    def find(self, name: Any, where: str) -> _Picture | None:
        """Return the picture of a name, or None after a mistake."""
        try:
            path = _located(self._folder, name)
        except ValueError as error:
            self._mistakes.add(where, f"image: {error}")
            return None
        status = path.stat()
        picture = self._of_file.setdefault((status.st_dev, status.st_ino), _Picture(where, file_name(name)))
        self.paths.setdefault(picture.name, path)
        return picture

    def place(self, picture: _Picture, split: Any, where: str) -> None:
        """Put a picture into a split; note one that is none, or another than before."""
        if split is not None and split not in get_args(Split):
            self._mistakes.add(where, f"split: got {shown(split)}, wanted one of {', '.join(SPLITS)}, or no such key")
        elif split is not None and picture.split is not None and split != picture.split:
            self._mistakes.add(
                where,
                f"split: got {picture.name!r} in {picture.split} and in {split}, wanted one split a picture: scores "
                "would be of pictures trained on",
            )
        else:
            picture.split = picture.split or split

    def say(self, picture: _Picture, key: int, phrases: list[str], segmentation: Any, where: str) -> None:
        """Add one object with its phrases, of which there may be none."""
        mask = partial(_mask_of_file, self._folder) if isinstance(segmentation, str) else segmentation_to_rle
        picture.objects.append(Marked(key, where, partial(mask, segmentation)))
        number = 1 + sum(len(said.worded) for said in picture.phrases)
        worded = tuple((f"{picture.name}-{number + at}", phrase) for at, phrase in enumerate(phrases))
        if worded:
            picture.phrases.append(Phrases(where, (key,), worded))

    def annotated(self) -> list[Annotated]:
        """Return the pictures of which something is said, in the order in which they came."""
        return [
            Annotated(
                one.where,
                one.name,
                one.name,
                one.split,
                one.claimed,
                "shown",
                tuple(one.objects),
                tuple(one.phrases),
            )
            for one in self._of_file.values()
            if one.phrases
        ]


def _located(folder: Path, name: Any) -> Path:
    """Return the file of a name in a folder. Raises ValueError where there is none, or the name leads elsewhere."""
    path = folder / file_name(name)
    try:
        found = path.is_file()
    except OSError as error:
        raise ValueError(f"got {shown(name)}, which cannot be opened ({error.strerror}); correct the name") from error
    if not found:
        raise ValueError(f"got {shown(name)}, which is not in {folder}; correct the name")
    return path


def _mask_of_file(folder: Path, name: str, height: int, width: int) -> Rle:
    path = _located(folder, name)
    try:
        return Rle.from_mask(read_mask(path.read_bytes(), height, width))
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from error


def _content(folder: Path, config: FolderConfig, mistakes: Mistakes) -> bytes | None:
    """Return the bytes of the annotations' file, or None after a mistake."""
    path = folder / config.annotations
    try:
        if not folder.is_dir():
            remedy = (
                "wanted the folder of the pictures; queued runs see tracked files only: give it as an absolute path"
            )
            mistakes.add("path", f"got {config.path!r}, which is no folder here, {remedy}")
        elif not path.is_file():
            mistakes.add("annotations", f"got {path}, no such file; correct the name, or `path`")
        else:
            return path.read_bytes()
    except OSError as error:
        mistakes.add("annotations", f"got {path}, which cannot be read ({error.strerror}); correct its permissions")
    return None


def _read_json_lines(content: bytes, name: str, pictures: _Pictures, mistakes: Mistakes) -> None:
    """Read every line; blank ones are skipped, what is wrong is noted."""
    if content.startswith(UTF_16):
        mistakes.add(name, "got text in UTF-16, wanted UTF-8; save it so")
        return
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        mistakes.add(name, "got an array, wanted one object a line; write each of its entries on a line of its own")
        return
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            _read_line(line, number, f"{name}:{number}", pictures, mistakes)


def _read_line(line: bytes, number: int, where: str, pictures: _Pictures, mistakes: Mistakes) -> None:
    try:
        fields = load_json(line)
    except ValueError as error:
        mistakes.add(where, f"{error}, wanted one object a line")
        return
    if not isinstance(fields, dict):
        mistakes.add(where, f"got {type(fields).__name__}, wanted an object with {', '.join(WANTED)}")
        return
    missing = [key for key in WANTED if key not in fields]
    for key in (*missing, *(key for key in fields if key not in WANTED + OPTIONAL)):
        problem = "missing" if key in missing else "unknown"
        mistakes.add(where, f"{key:.80}: {problem}; wanted {', '.join(WANTED)}, and split if you like")
    if missing:
        return
    phrases = _phrases([fields["phrase"]], where, mistakes)
    picture = pictures.find(fields["image"], where)
    if picture is not None:
        pictures.place(picture, fields.get("split"), where)
        pictures.say(picture, number, phrases, fields["mask"], where)


def _read_coco(content: bytes, name: str, pictures: _Pictures, mistakes: Mistakes) -> None:
    """Read the pictures of which an annotation says something, with all their annotations."""
    tables = read_tables(content, name, mistakes)
    said_of = {one.image_id for one in tables.annotations.values() if one.phrases not in (None, [])}
    if tables.annotations and not said_of:
        texts = {key for one in tables.annotations.values() for key, value in one.attributes.items() if _is_text(value)}
        remedy = (
            f"; text stands in their attributes {sorted(texts)}: read the export with `kind: lpcvc`" if texts else ""
        )
        mistakes.add(
            name,
            f"got no phrase in {len(tables.annotations)} annotations, wanted 'phrase' or 'phrases' in some, beside "
            f"'segmentation'{remedy}",
        )
    for image_id in (each for each in tables.images if each in said_of):
        image, where = tables.images[image_id], tables.place("image", image_id)
        picture = pictures.find(image.file_name, where)
        if picture is None:
            continue
        pictures.place(picture, image.split, where)
        if image.height is not None and image.width is not None:
            picture.claimed = image.height, image.width
        elif image.height is not None or image.width is not None:
            mistakes.add(where, "width, height: got one of them, wanted both or none")
        for one in tables.annotations_of.get(image_id, []):
            at = tables.place("annotation", one.annotation_id)
            given = one.phrases if isinstance(one.phrases, list) else [] if one.phrases is None else [one.phrases]
            phrases = _phrases(given, at, mistakes)
            pictures.say(picture, one.annotation_id, phrases, one.segmentation, at)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip(" ."))


def _phrases(given: list[Any], where: str, mistakes: Mistakes) -> list[str]:
    """Return the phrases that the tokenizer takes; the others are noted."""
    good = []
    for phrase in given:
        try:
            good.append(checked_phrase(phrase))
        except ValueError as error:
            mistakes.add(where, f"phrase: {error}")
    return good
