"""One picture and some phrases in, answers at the picture's size out, by whatever kind of model a file holds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptseg.datasets.preprocess import mask_from_canvas, picture_to_canvas
from promptseg.datasets.tokenizer import ClipTokenizer
from promptseg.inference.answer import Answer, Model

SUFFIXES = (".onnx", ".safetensors")


def open_model(path: Path, res: int) -> Model:
    """Open an ONNX file, which has its own resolution, or a checkpoint, which is run at `res`.

    Each brings its runtime only when it is opened: importing torch takes longer than answering with ONNX.
    Raises ValueError for another kind of file, and for one that is missing or damaged.
    """
    if path.suffix == ".onnx":
        from promptseg.inference.on_onnx import OnnxModel

        return OnnxModel(path)
    if path.suffix == ".safetensors":
        from promptseg.inference.on_checkpoint import CheckpointModel

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
