"""What configs/data/*.yaml may hold: one frozen dataclass per kind of data set, told apart by `kind`."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from promptseg.params.strict import check


@dataclass(frozen=True)
class Source:
    """One archive: its `path` below a mirror, its public `url`, and the `bytes` and `sha256` of what lies there.

    `url` is null where no public address is known, `bytes` and `sha256` where nobody publishes them.
    """

    path: str
    url: str | None
    bytes: int | None
    sha256: str | None

    def __post_init__(self) -> None:
        _check_below("path", self.path)
        _check_address("url", self.url)
        digits = self.sha256 is None or (len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef"))
        check("sha256", self.sha256, digits, "64 lower-case hexadecimal digits, or null where nobody publishes them")
        check("bytes", self.bytes, self.bytes is None or self.bytes >= 0, "0 or more, or null where unknown")


@dataclass(frozen=True)
class SinglePictures:
    """Pictures one by one: the folder `path` below a mirror that holds them, its public `url`, and how many at once."""

    path: str
    url: str
    at_once: int

    def __post_init__(self) -> None:
        _check_below("path", self.path)
        _check_address("url", self.url)
        check("at_once", self.at_once, 1 <= self.at_once <= 64, "from 1 to 64 transfers at once")


def _check_below(key: str, path: str) -> None:
    parts = PurePosixPath(path).parts
    inside = bool(parts) and not path.startswith("/") and ".." not in parts
    check(key, path, inside, "a path below the mirror, such as 'coco/zips/train2014.zip'")


def _check_address(key: str, url: str | None) -> None:
    check(key, url, url is None or url.startswith(("http://", "https://")), "an address that begins with http(s)://")


@dataclass(frozen=True)
class ShapesConfig:
    """How many scenes, and what is in them. `targets_per_scene` is capped by a scene's number of objects."""

    kind: Literal["shapes"]
    seed: int
    train_scenes: int
    val_scenes: int
    test_scenes: int
    objects_min: int
    objects_max: int
    targets_per_scene: int

    def __post_init__(self) -> None:
        check("seed", self.seed, self.seed >= 0, "0 or more")
        for key in ("train_scenes", "val_scenes", "test_scenes", "targets_per_scene"):
            check(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        check("objects_min", self.objects_min, self.objects_min >= 2, "at least 2: a target and a distractor")
        in_range = self.objects_min <= self.objects_max <= 8
        check("objects_max", self.objects_max, in_range, "from objects_min to 8")

    def scenes(self, split: str) -> int:
        """Number of scenes of a split: train, val or test."""
        return {"train": self.train_scenes, "val": self.val_scenes, "test": self.test_scenes}[split]


@dataclass(frozen=True)
class ReferConfig:
    """A data set of REFER's: its archives, its `folder` in the archive of refs, and which refs are used.

    `pictures` says whether all of `images` is fetched, or single pictures where refs need them. `split_by` names the
    author of the splits, `test_splits` those of REFER's splits that make ours, the limits how many refs of each (null:
    all). `class_prompts` says whose pictures without a ref are trained on too, by their classes' names, and
    `class_pictures` how many of them (null: all); `coco` reads them from the archive `annotations`.
    """

    kind: Literal["refer"]
    pictures: Literal["archive", "single"]
    images: Source
    single: SinglePictures
    refs: Source
    folder: str
    split_by: Literal["umd", "unc", "google"]
    test_splits: tuple[Literal["test", "testA", "testB"], ...]
    train_refs: int | None
    val_refs: int | None
    test_refs: int | None
    class_prompts: Literal["none", "refer", "coco"]
    class_pictures: int | None
    annotations: Source

    def __post_init__(self) -> None:
        _check_below("folder", self.folder)
        check("test_splits", self.test_splits, len(self.test_splits) > 0, "at least one of test, testA, testB")
        for key in ("train_refs", "val_refs", "test_refs", "class_pictures"):
            value = getattr(self, key)
            check(key, value, value is None or value >= 1, "null (all) or at least 1")


@dataclass(frozen=True)
class LpcvcConfig:
    """A COCO export of CVAT, as the challenge hands out: where it lies, which attributes are phrases, and the splits.

    `phrase_attributes` null means every attribute that holds text. The shares are of the pictures; the rest is train.
    """

    kind: Literal["lpcvc"]
    source: Source
    phrase_attributes: tuple[str, ...] | None
    val_share: float
    test_share: float

    def __post_init__(self) -> None:
        for key in ("val_share", "test_share"):
            check(key, getattr(self, key), 0 < getattr(self, key) < 1, "a share above 0 and below 1")
        check("test_share", self.test_share, self.val_share + self.test_share < 1, "a share that leaves some for train")


@dataclass(frozen=True)
class FolderConfig:
    """A folder of one's own pictures, and the file in it that says what phrases speak of (docs/own-data.md).

    `path` is absolute, or relative to the project; `annotations` is JSON lines (*.jsonl) or COCO (*.json). Pictures
    that name no split go to val and test by these shares, the rest to train.
    """

    kind: Literal["folder"]
    path: str
    annotations: str
    val_share: float
    test_share: float

    def __post_init__(self) -> None:
        check("path", self.path, bool(self.path.strip()), "a folder")
        check("annotations", self.annotations, self.annotations.endswith((".jsonl", ".json")), "a .jsonl or .json file")
        for key in ("val_share", "test_share"):
            check(key, getattr(self, key), 0 <= getattr(self, key) < 1, "a share from 0 to below 1")
        check("test_share", self.test_share, self.val_share + self.test_share < 1, "shares that leave some for train")


DataConfig = ShapesConfig | ReferConfig | LpcvcConfig | FolderConfig
