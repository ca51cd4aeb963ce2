"""Predicted masks on disk: one JSON object a line, run-length encoded on the challenge's canvas."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from promptseg.datasets.preprocess import CANVAS
from promptseg.datasets.records import Rle
from promptseg.files import atomic_path

REMEDY = "rerun `dvc repro hub-infer`"


@dataclass(frozen=True)
class Prediction:
    """The mask predicted for one sample, after the threshold, at CANVAS x CANVAS (padding included)."""

    sample_id: str
    mask: Rle

    def __post_init__(self) -> None:
        if (self.mask.height, self.mask.width) != (CANVAS, CANVAS):
            size = f"{self.mask.height}x{self.mask.width}"
            raise ValueError(f"{self.sample_id}: got a mask of {size}, wanted the {CANVAS}x{CANVAS} canvas; {REMEDY}")


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
            prediction = _parse(line, f"{path}:{number}")
            if prediction.sample_id in masks:
                raise ValueError(
                    f"{path}:{number}: got sample {prediction.sample_id!r} twice, wanted it once; {REMEDY}"
                )
            masks[prediction.sample_id] = prediction.mask
    return masks


def _parse(line: str, where: str) -> Prediction:
    try:
        fields = json.loads(line)
        return Prediction(fields["sample_id"], Rle(**fields["mask"]))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: got a line that is no prediction ({error!r}); {REMEDY}") from error
