"""What every data set is turned into, pictures with their objects and samples (one picture, one phrase, one mask), and
what is predicted for samples; on disk one JSON object a line, masks run-length encoded.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from promptseg.datasets.preprocess import CANVAS
from promptseg.files import atomic_path

_T = TypeVar("_T")
Split = Literal["train", "val", "test"]
PhraseKind = Literal["keyword", "short", "sentence"]
SPLITS: tuple[Split, ...] = get_args(Split)
PHRASE_KINDS: tuple[PhraseKind, ...] = get_args(PhraseKind)
INFER_AGAIN = "rerun `dvc repro hub-infer`"


@dataclass(frozen=True)
class Rle:
    """A binary mask, run-length encoded the way COCO does (column-major, compressed, ASCII).

    Source: pycocotools.mask.
    """

    height: int
    width: int
    counts: str

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_]) -> "Rle":
        """Encode a bool array [height, width]."""
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return cls(mask.shape[0], mask.shape[1], encoded["counts"].decode("ascii"))

    @classmethod
    def empty(cls, height: int, width: int) -> "Rle":
        """Return the mask of nothing."""
        return cls.from_mask(np.zeros((height, width), bool))

    @classmethod
    def united(cls, masks: Sequence["Rle"]) -> "Rle":
        """Return what lies in any of `masks`, at least one and all of one size, without decoding."""
        if len({(mask.height, mask.width) for mask in masks}) != 1:
            raise ValueError(f"got masks of the sizes {[(mask.height, mask.width) for mask in masks]}, wanted one size")
        united = coco_mask.merge([mask.to_coco() for mask in masks])
        return cls(masks[0].height, masks[0].width, united["counts"].decode("ascii"))

    def to_coco(self) -> dict[str, Any]:
        """Return the dictionary that pycocotools understands."""
        return {"size": [self.height, self.width], "counts": self.counts.encode("ascii")}

    def to_mask(self) -> NDArray[np.bool_]:
        """Decode to a bool array [height, width]."""
        return cast(NDArray[np.bool_], coco_mask.decode(self.to_coco()).astype(bool))

    @property
    def area(self) -> int:
        """Number of pixels inside, without decoding."""
        return int(coco_mask.area(self.to_coco()))


@dataclass(frozen=True)
class Picture:
    """One stored picture and every object known in it (targets and distractors; for baselines).

    `image` is "<archive file>/<member>", resolved by `archives.PictureArchives`; `objects` are masks at the picture's
    size, in no particular order.
    """

    image: str
    split: Split
    height: int
    width: int
    objects: tuple[Rle, ...]


@dataclass(frozen=True)
class Sample:
    """One picture, one phrase, one mask (at the picture's size, after EXIF orientation).

    The mask is empty where the picture shows nothing that the phrase means.
    """

    sample_id: str
    split: Split
    image: str
    height: int
    width: int
    phrase: str
    phrase_kind: PhraseKind
    mask: Rle

    @property
    def means_something(self) -> bool:
        """Whether the picture shows anything of what the phrase means."""
        return self.mask.area > 0


def write_records(path: Path, records: Iterable[Picture] | Iterable[Sample]) -> int:
    """Write one JSON object a line, atomically; return the number of lines."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as lines:
        for record in records:
            lines.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
            count += 1
    return count


def read_samples(path: Path) -> list[Sample]:
    """Read what `write_records` wrote of samples. Raises ValueError with the line number on a malformed line."""
    return list(_read_lines(path, "mask", _sample))


def read_pictures(path: Path) -> list[Picture]:
    """Read what `write_records` wrote of pictures. Raises ValueError with the line number on a malformed line."""
    return list(_read_lines(path, "objects", _picture))


def _sample(fields: dict[str, Any]) -> Sample:
    return Sample(**{**fields, "mask": Rle(**fields["mask"])})


def _picture(fields: dict[str, Any]) -> Picture:
    return Picture(**{**fields, "objects": tuple(Rle(**rle) for rle in fields["objects"])})


def _read_lines(path: Path, required: str, build: Callable[[dict[str, Any]], _T]) -> Iterator[_T]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: got no JSON ({error}); rerun `dvc repro fetch`") from error
            if not isinstance(fields, dict) or required not in fields:
                raise ValueError(f"{path}:{number}: got a record without {required!r}; rerun `dvc repro fetch`")
            try:
                yield build(fields)
            except TypeError as error:
                raise ValueError(f"{path}:{number}: got other fields ({error}); rerun `dvc repro fetch`") from error


@dataclass(frozen=True)
class Prediction:
    """The mask predicted for one sample, after the threshold, at CANVAS x CANVAS (padding included)."""

    sample_id: str
    mask: Rle

    def __post_init__(self) -> None:
        if (self.mask.height, self.mask.width) != (CANVAS, CANVAS):
            size = f"{self.mask.height}x{self.mask.width}"
            raise ValueError(
                f"{self.sample_id}: got a mask of {size}, wanted the {CANVAS}x{CANVAS} canvas; {INFER_AGAIN}"
            )


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> int:
    """Write predictions as they come, atomically; return their number. Raises ValueError when a sample comes twice."""
    written: set[str] = set()
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as lines:
        for prediction in predictions:
            if prediction.sample_id in written:
                raise ValueError(f"got two predictions for sample {prediction.sample_id!r}, wanted one")
            written.add(prediction.sample_id)
            lines.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
    return len(written)


def read_predictions(path: Path) -> dict[str, Rle]:
    """Return sample_id -> mask on the canvas, in file order.

    Raises ValueError with the line number on a malformed line, a mask of another size, or a sample that comes twice.
    """
    masks: dict[str, Rle] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            prediction = _prediction(line, f"{path}:{number}")
            if prediction.sample_id in masks:
                raise ValueError(
                    f"{path}:{number}: got sample {prediction.sample_id!r} twice, wanted it once; {INFER_AGAIN}"
                )
            masks[prediction.sample_id] = prediction.mask
    return masks


def _prediction(line: str, where: str) -> Prediction:
    try:
        fields = json.loads(line)
        return Prediction(fields["sample_id"], Rle(**fields["mask"]))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: got a line that is no prediction ({error!r}); {INFER_AGAIN}") from error
