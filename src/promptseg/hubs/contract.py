"""The inputs and outputs of the deployed graph, as data: read by export, compilation, inference and tests.

The contract is that of the challenge (IEEE Low Power Computer Vision Challenge 2025, track 2). It never changes with
the resolution at which the network works inside.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptseg.datasets.preprocess import CANVAS

CONTEXT_LENGTH = 77  # CLIP's number of text tokens
MASK_THRESHOLD = 0.5  # a pixel of `pred_mask` above it is inside


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype and static shape of one tensor at the graph's border."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def check(self, array: NDArray[Any], owner: str) -> None:
        """Raise ValueError, with `owner` (a sample or a file), when dtype or shape differ from the contract."""
        if str(array.dtype) != self.dtype or array.shape != self.shape:
            got = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{owner}: got {self.name} as {got}, wanted {self.dtype} {list(self.shape)}")


# RGB 0..255, longest edge resized to CANVAS (bilinear), zeros to the right and below.
IMAGE_INPUT = TensorSpec("image_input", "float32", (1, 3, CANVAS, CANVAS))
# Row 0: CLIP ids; row 1: attention mask (kept in the signature even where the network ignores it).
TEXT_INPUT = TensorSpec("text_input", "int32", (2, 1, CONTEXT_LENGTH))
# 1 inside, 0 outside.
PRED_MASK = TensorSpec("pred_mask", "float32", (CANVAS, CANVAS))

INPUTS = (IMAGE_INPUT, TEXT_INPUT)
OUTPUTS = (PRED_MASK,)


def mask_of(pred_mask: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Decide each pixel of the network's output: float32 [CANVAS, CANVAS] -> bool of the same shape.

    A NaN is outside, as the challenge's comparison has it.
    """
    return pred_mask > MASK_THRESHOLD
