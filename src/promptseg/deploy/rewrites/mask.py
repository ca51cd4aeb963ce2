"""The chosen query's mask, from its kernel to the canvas."""

import torch
from torch import Tensor, nn

from promptseg.preprocess import CANVAS
from promptseg.xdecoder.model import MASK_STRIDE, masks_to_canvas


class BestMask(nn.Module):
    """One mask: a product at stride 4, and the resize to the canvas as two products with a constant matrix."""

    upsample: Tensor

    def __init__(self, res: int) -> None:
        super().__init__()
        self.register_buffer("upsample", upsampling_matrix(res), persistent=False)

    def forward(self, kernel: Tensor, mask_features: Tensor) -> Tensor:
        """Kernel (1, M), mask features (1, M, h, w) -> logits (h, w).

        The small operand stands on the right, where an NPU repacks what it did not know before.
        """
        return (mask_features.permute(0, 2, 3, 1) @ kernel.T)[0, :, :, 0]

    def on_canvas(self, logits: Tensor) -> Tensor:
        """(h, w) -> (CANVAS, CANVAS)."""
        return self.upsample @ logits @ self.upsample.T


def upsampling_matrix(res: int) -> Tensor:
    """Float [CANVAS, ceil(res / 4)]: `masks_to_canvas` along one axis, as the matrix of that linear map."""
    cells = -(-res // MASK_STRIDE)
    matrix = torch.empty(CANVAS, cells)
    for cell, unit in enumerate(torch.eye(cells)):  # one canvas at a time: all of them take 1 GB at the largest res
        rows = unit.view(1, cells, 1).expand(-1, -1, cells)
        matrix[:, cell] = masks_to_canvas(rows, res, CANVAS)[0, :, CANVAS // 2]
    return matrix
