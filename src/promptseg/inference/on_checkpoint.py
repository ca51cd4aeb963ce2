"""A checkpoint as a model that answers phrases, on torch; it can say how sure it is."""

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.datasets.preprocess import CANVAS
from promptseg.inference.answer import Decision
from promptseg.networks.xdecoder.model import resize_canvas


class CheckpointModel:
    """Weights (.safetensors with its .json) run at `res`. Raises ValueError when they are missing or damaged."""

    why_no_confidence = ""

    def __init__(self, weights: Path, res: int) -> None:
        self.name = f"{weights} at {res} px"
        self._network, _ = load_checkpoint(weights)
        self._res = res

    @torch.inference_mode()
    def decide(self, canvas: NDArray[np.float32], tokens: NDArray[np.int32]) -> list[Decision]:
        """See `answer.Model`; the picture is encoded once, and the time is shared out evenly among the phrases."""
        start = time.perf_counter()
        picture = resize_canvas(torch.from_numpy(canvas), self._res)
        logits, similarity = self._network.predict(picture, torch.from_numpy(tokens[:, 0]), CANVAS)
        probabilities = similarity.softmax(dim=1).amax(dim=1)
        milliseconds = 1e3 * (time.perf_counter() - start) / len(tokens)
        return [
            Decision((each > 0).numpy(), float(probability), _mean_inside(each), milliseconds)
            for each, probability in zip(logits, probabilities, strict=True)
        ]


def _mean_inside(logits: Tensor) -> float | None:
    """Mean probability of the pixels that are inside; None where none is."""
    inside = logits[logits > 0]
    return float(inside.sigmoid().mean()) if len(inside) else None
