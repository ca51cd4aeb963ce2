"""What configs/data/*.yaml may hold: one frozen dataclass per kind of data set, told apart by `kind`."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from promptseg.params.strict import check


@dataclass(frozen=True)
class Source:
    """One archive: its `path` below a mirror, its public `url`, and the `bytes` and `sha256` of what lies there."""

    path: str
    url: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        inside = bool(parts) and not self.path.startswith("/") and ".." not in parts
        check("path", self.path, inside, "a path below the mirror, such as 'coco/zips/train2014.zip'")
        check("url", self.url, self.url.startswith(("http://", "https://")), "an address that begins with http(s)://")
        digits = len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")
        check("sha256", self.sha256, digits, "64 lower-case hexadecimal digits")


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
class RefcocogConfig:
    """RefCOCOg's archives, the author of its splits, and how many refs of each split are used (null: all)."""

    kind: Literal["refcocog"]
    images: Source
    refs: Source
    split_by: Literal["umd"]
    train_refs: int | None
    val_refs: int | None
    test_refs: int | None

    def __post_init__(self) -> None:
        for key in ("train_refs", "val_refs", "test_refs"):
            value = getattr(self, key)
            check(key, value, value is None or value >= 1, "null (all) or at least 1")


DataConfig = ShapesConfig | RefcocogConfig
