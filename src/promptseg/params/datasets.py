"""What configs/data/*.yaml may hold: one frozen dataclass per kind of data set, told apart by `kind`."""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from promptseg.params.sections import STRICT, Count, Whole


def _below(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise ValueError
    return path


Below = Annotated[
    str, AfterValidator(_below), Field(description="a path below the mirror, such as 'coco/zips/train2014.zip'")
]
Address = Annotated[str, Field(pattern="^https?://", description="an address that begins with http(s)://")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="64 lower-case hexadecimal digits")]
ShareOfSome = Annotated[float, Field(gt=0, lt=1)]
ShareOrNone = Annotated[float, Field(ge=0, lt=1)]
TestSplits = tuple[Literal["test", "testA", "testB"], ...]


def _some_for_train(test_share: float, info: ValidationInfo) -> float:
    if info.data.get("val_share", 0) + test_share >= 1:
        raise ValueError("a share that leaves some for train, beside val_share")
    return test_share


@dataclass(frozen=True, config=STRICT)
class Source:
    """One archive: its `path` below a mirror, its public `url`, and the `bytes` and `sha256` of what lies there.

    `url` is null where no public address is known, `bytes` and `sha256` where nobody publishes them.
    """

    path: Below
    url: Address | None
    bytes: Whole | None
    sha256: Sha256 | None


@dataclass(frozen=True, config=STRICT)
class SinglePictures:
    """Pictures one by one: the folder `path` below a mirror that holds them, its public `url`, and how many at once."""

    path: Below
    url: Address
    at_once: Annotated[int, Field(ge=1, le=64, description="from 1 to 64 transfers at once")]


@dataclass(frozen=True, config=STRICT)
class ShapesConfig:
    """How many scenes, and what is in them. `targets_per_scene` is capped by a scene's number of objects."""

    kind: Literal["shapes"]
    seed: Whole
    train_scenes: Count
    val_scenes: Count
    test_scenes: Count
    objects_min: Annotated[int, Field(ge=2, description="at least 2: a target and a distractor")]
    objects_max: Annotated[int, Field(le=8, description="from objects_min to 8")]
    targets_per_scene: Count

    @field_validator("objects_max")
    @classmethod
    def _not_below_objects_min(cls, objects_max: int, info: ValidationInfo) -> int:
        if objects_max < info.data.get("objects_min", objects_max):
            raise ValueError
        return objects_max

    def scenes(self, split: str) -> int:
        """Number of scenes of a split: train, val or test."""
        return {"train": self.train_scenes, "val": self.val_scenes, "test": self.test_scenes}[split]


@dataclass(frozen=True, config=STRICT)
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
    folder: Below
    split_by: Literal["umd", "unc", "google"]
    test_splits: Annotated[TestSplits, Field(min_length=1, description="at least one of test, testA, testB")]
    train_refs: Count | None
    val_refs: Count | None
    test_refs: Count | None
    class_prompts: Literal["none", "refer", "coco"]
    class_pictures: Count | None
    annotations: Source


@dataclass(frozen=True, config=STRICT)
class LpcvcConfig:
    """A COCO export of CVAT, as the challenge hands out: where it lies, which attributes are phrases, and the splits.

    `phrase_attributes` null means every attribute that holds text. The shares are of the pictures; the rest is train.
    """

    kind: Literal["lpcvc"]
    source: Source
    phrase_attributes: tuple[str, ...] | None
    val_share: ShareOfSome
    test_share: Annotated[ShareOfSome, AfterValidator(_some_for_train)]


@dataclass(frozen=True, config=STRICT)
class FolderConfig:
    """A folder of one's own pictures, and the file in it that says what phrases speak of (docs/own-data.md).

    `path` is absolute, or relative to the project; `annotations` is JSON lines (*.jsonl) or COCO (*.json). Pictures
    that name no split go to val and test by these shares, the rest to train.
    """

    kind: Literal["folder"]
    path: Annotated[str, Field(pattern=r"\S", description="a folder")]
    annotations: Annotated[str, Field(pattern=r"\.jsonl?$", description="a .jsonl or .json file")]
    val_share: ShareOrNone
    test_share: Annotated[ShareOrNone, AfterValidator(_some_for_train)]


@dataclass(frozen=True, config=STRICT)
class PhotosConfig:
    """Photographs with masks and names, and the phrases made from them.

    Where no mirror holds them all, those of COCO are fetched one by one, `single_train` and `single_val`, with the
    tables in the archive `annotations`.

    `clothes_pictures` limits those of Clothing Co-Parsing that are trained on, `composites` is how many pictures are
    made by pasting objects into others, `variants` how many wordings of a meaning are trained on, and `absent` how many
    names that a picture does not show. val and test ask for objects of `least_area`, a share of the picture, or more.
    """

    kind: Literal["photos"]
    seed: Whole
    clothes_pictures: Whole
    composites: Whole
    variants: Count
    absent: Whole
    least_area: Annotated[float, Field(ge=0, lt=1)]
    single_train: SinglePictures
    single_val: SinglePictures
    annotations: Source


DataConfig = ShapesConfig | ReferConfig | LpcvcConfig | FolderConfig | PhotosConfig
