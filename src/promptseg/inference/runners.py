"""What answers phrases about one picture: ONNX graphs on this machine's processor, or a checkpoint on torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from promptseg.datasets.preprocess import CANVAS, mask_from_canvas, picture_to_canvas
from promptseg.hubs.contract import PRESENCE
from promptseg.hubs.host import HostSession, not_finite
from promptseg.params.sections import check_res

SUFFIXES = (".onnx", ".safetensors")


@dataclass(frozen=True)
class Answer:
    """One decided mask, bool [h, w] at the picture's own size, and the score: 0..1, None where there is none."""

    mask: NDArray[np.bool_]
    score: float | None


class Runner(Protocol):
    """Something that answers phrases; `name` is what a person calls it; `why_no_score` is empty if it has one."""

    name: str
    why_no_score: str

    def answer(self, picture: NDArray[np.uint8], tokens: NDArray[np.int32]) -> list[Answer]:
        """Answer uint8 RGB [h, w, 3] and int32 [N, 2, 77] with one mask for each of the N phrases.

        Raises ValueError for masks that are not finite: they would pass as empty ones.
        """
        ...


def open_runner(path: Path, res: int | None) -> Runner:
    """Open an ONNX file or a folder of them, which have their own resolution, or a checkpoint, which is run at `res`.

    Raises ValueError for another kind of file, and for one that is missing or damaged.
    """
    if path.suffix == ".onnx" or path.is_dir():
        return OnnxRunner(path)
    if path.suffix == ".safetensors":
        return CheckpointRunner(path, res)
    raise ValueError(
        f"{path}: got a file named *{path.suffix}, wanted one of {', '.join(SUFFIXES)}; `dvc repro export`"
    )


class OnnxRunner:
    """An export's graphs: their folder, or the one file of the challenge's contract.

    Raises ValueError when a file is missing, no ONNX, or has another border.
    """

    def __init__(self, graphs: Path) -> None:
        self._session = HostSession(graphs)
        self.name = str(graphs)
        says = any(spec.name == PRESENCE for spec in self._session.graphs.graphs[-1].outputs)
        self.why_no_score = "" if says else "an ONNX file hands out the mask alone (docs/contract.md)"

    def answer(self, picture: NDArray[np.uint8], tokens: NDArray[np.int32]) -> list[Answer]:
        """See `Runner`; what depends on the picture alone is computed once, where it is a graph of its own."""
        graphs, size = self._session.graphs, picture.shape[:2]
        tensor, answers = graphs.read_picture(picture), []
        for row in tokens:
            *_, (_, _, outputs) = self._session.chain.steps_of(tensor, graphs.phrase_tensor(row[:, None]))
            decision = graphs.decide(outputs, self.name, size)
            if decision.non_finite:
                raise ValueError(not_finite(self.name, decision.non_finite))
            answers.append(Answer(decision.mask, decision.presence))
        return answers


class CheckpointRunner:
    """Weights (.safetensors with its .json) on torch, at `res` px, or where that is None at the size of its validation.

    Raises ValueError when they are missing or damaged. torch is imported here and not above: that takes longer than
    answering with an ONNX file.
    """

    def __init__(self, weights: Path, res: int | None) -> None:
        from promptseg.checkpoints.checkpoint import load_checkpoint

        if res is not None:
            check_res("res", res)
        self._network, provenance = load_checkpoint(weights)
        self._res = res or int(provenance.params.get("val_res", CANVAS))
        self.name = f"{weights} at {self._res} px"
        self.why_no_score = (
            ""
            if self._network.says_presence
            else "these weights have not learnt to say whether a thing is there at all"
        )

    def answer(self, picture: NDArray[np.uint8], tokens: NDArray[np.int32]) -> list[Answer]:
        """See `Runner`; the picture is encoded once."""
        import torch

        from promptseg.networks.xdecoder.model import resize_canvas

        canvas = torch.from_numpy(picture_to_canvas(picture)[None].astype(np.float32))
        with torch.inference_mode():
            logits, _, presence = self._network.predict(
                resize_canvas(canvas, self._res), torch.from_numpy(tokens[:, 0]), CANVAS
            )
            if not logits.isfinite().all():
                raise ValueError(f"{self.name}: got masks that are no numbers, wanted finite ones; name other weights")
            masks = (logits > 0).numpy()
        scores = [None] * len(masks) if presence is None else presence.tolist()
        size = picture.shape[:2]
        return [Answer(mask_from_canvas(mask, *size), score) for mask, score in zip(masks, scores, strict=True)]
