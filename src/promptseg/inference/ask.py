"""One picture and some phrases in, answers at the picture's size out, by whatever kind of model a file holds."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from promptseg.datasets.preprocess import CANVAS, mask_from_canvas, picture_to_canvas
from promptseg.datasets.tokenizer import ClipTokenizer
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import check_border
from promptseg.hubs.host import HostSession

SUFFIXES = (".onnx", ".safetensors")


@dataclass(frozen=True)
class Decision:
    """One decided mask on the canvas, bool [CANVAS, CANVAS], and how sure the model is, where it can say.

    `query_probability`: softmax, over all queries, of the chosen one's likeness to the phrase. `mask_probability`: mean
    probability of the pixels inside, None also for an empty mask. Both None where the graph hands out masks alone.
    """

    mask: NDArray[np.bool_]
    query_probability: float | None
    mask_probability: float | None
    milliseconds: float


class Model(Protocol):
    """Something that answers phrases; `name` is what a person calls it; `why_no_confidence` is empty if it has one."""

    name: str
    why_no_confidence: str

    def decide(self, canvas: NDArray[np.float32], tokens: NDArray[np.int32]) -> list[Decision]:
        """Answer float32 [1, 3, CANVAS, CANVAS] and int32 [N, 2, 77], one decision for each of the N phrases."""
        ...


@dataclass(frozen=True)
class Answer:
    """The mask of one phrase at the picture's own size, bool [h, w], and what is known of it."""

    phrase: str
    mask: NDArray[np.bool_]
    query_probability: float | None
    mask_probability: float | None
    milliseconds: float

    @property
    def area_pixels(self) -> int:
        """Number of pixels inside."""
        return int(np.count_nonzero(self.mask))

    @property
    def area_share(self) -> float:
        """Share of the picture that is inside, 0..1."""
        return self.area_pixels / self.mask.size

    @property
    def box_xyxy(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom in px, the latter two exclusive; None when nothing is inside."""
        columns, rows = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (0, 1))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def confidence(self) -> float | None:
        """Query probability times mask probability, 0..1, as Mask2Former ranks its masks (Cheng et al. 2022, 3.4).

        It ranks answers of one model; it is no calibrated chance of being right. None where a factor is.
        """
        if self.query_probability is None or self.mask_probability is None:
            return None
        return self.query_probability * self.mask_probability


def open_model(path: Path, res: int) -> Model:
    """Open an ONNX file, which has its own resolution, or a checkpoint, which is run at `res`.

    Raises ValueError for another kind of file, and for one that is missing or damaged.
    """
    if path.suffix == ".onnx":
        return OnnxModel(path)
    if path.suffix == ".safetensors":
        return CheckpointModel(path, res)
    raise ValueError(
        f"{path}: got a file named *{path.suffix}, wanted one of {', '.join(SUFFIXES)}; `dvc repro export`"
    )


def ask(model: Model, tokenizer: ClipTokenizer, picture: NDArray[np.uint8], phrases: Sequence[str]) -> list[Answer]:
    """Answer each phrase about a picture, uint8 RGB [h, w, 3]. Raises ValueError for a phrase without a word."""
    if not phrases:
        raise ValueError('got no phrase, wanted at least one, such as "the red cup on the left"')
    tokens = tokenizer.encode_all(phrases)
    canvas = picture_to_canvas(picture)[None].astype(np.float32)
    height, width = picture.shape[:2]
    return [
        Answer(
            phrase,
            mask_from_canvas(decision.mask, height, width),
            decision.query_probability,
            decision.mask_probability,
            decision.milliseconds,
        )
        for phrase, decision in zip(phrases, model.decide(canvas, tokens), strict=True)
    ]


class OnnxModel:
    """A graph of the contract. Raises ValueError when the file is missing, no ONNX, or has another border."""

    why_no_confidence = "an ONNX file hands out the mask alone (docs/contract.md); a checkpoint knows it"

    def __init__(self, graph: Path) -> None:
        check_border(graph)
        self.name = str(graph)
        self._session = HostSession(graph)

    def decide(self, canvas: NDArray[np.float32], tokens: NDArray[np.int32]) -> list[Decision]:
        """See `Model`; one run of the graph a phrase."""
        decisions = []
        for row in tokens:
            start = time.perf_counter()
            mask = self._session.run(HubInput(self.name, canvas, row[:, None]))
            decisions.append(Decision(mask, None, None, 1e3 * (time.perf_counter() - start)))
        return decisions


class CheckpointModel:
    """Weights (.safetensors with its .json) run at `res` on torch. Raises ValueError when they are missing or damaged.

    torch is imported here and not above: that takes longer than answering with an ONNX file.
    """

    why_no_confidence = ""

    def __init__(self, weights: Path, res: int) -> None:
        from promptseg.checkpoints.checkpoint import load_checkpoint

        self.name = f"{weights} at {res} px"
        self._network, _ = load_checkpoint(weights)
        self._res = res

    def decide(self, canvas: NDArray[np.float32], tokens: NDArray[np.int32]) -> list[Decision]:
        """See `Model`; the picture is encoded once, and the time is shared out evenly among the phrases.

        Raises ValueError for masks that are not finite: they would pass as empty ones.
        """
        import torch

        from promptseg.networks.xdecoder.model import resize_canvas

        start = time.perf_counter()
        with torch.inference_mode():
            picture = resize_canvas(torch.from_numpy(canvas), self._res)
            logits, similarity = self._network.predict(picture, torch.from_numpy(tokens[:, 0]), CANVAS)
            if not logits.isfinite().all():
                raise ValueError(f"{self.name}: got masks that are no numbers, wanted finite ones; name other weights")
            probabilities = similarity.softmax(dim=1).amax(dim=1).tolist()
            masks = [each > 0 for each in logits]
            inside = [
                float(each[mask].sigmoid().mean()) if mask.any() else None
                for each, mask in zip(logits, masks, strict=True)
            ]
        milliseconds = 1e3 * (time.perf_counter() - start) / len(tokens)
        return [
            Decision(mask.numpy(), probability, mean, milliseconds)
            for mask, probability, mean in zip(masks, probabilities, inside, strict=True)
        ]
