"""The chosen mask on the canvas."""

import torch
from torch import Tensor, nn

from promptseg.datasets.preprocess import CANVAS
from promptseg.networks.xdecoder.model import MASK_STRIDE, CanvasRule, masks_to_canvas

STEEPNESS = 1000.0  # the sigmoid that decides a pixel leaves 0 and 1 only for logits within a few thousandths of zero


class CanvasMask(nn.Module):
    """Logits at stride 4 to a decision on the canvas: the resize is two products with a constant matrix."""

    upsample: Tensor

    def __init__(self, res: int, rule: CanvasRule) -> None:
        super().__init__()
        self.register_buffer("upsample", upsampling_matrix(res, rule), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(h, w) -> (CANVAS, CANVAS), 0 to 1."""
        return torch.sigmoid(self.upsample @ logits @ self.upsample.T * STEEPNESS)


def upsampling_matrix(res: int, rule: CanvasRule) -> Tensor:
    """Float [CANVAS, ceil(res / 4)]: `masks_to_canvas` along one axis, as the matrix of that linear map."""
    cells = -(-res // MASK_STRIDE)
    matrix = torch.empty(CANVAS, cells)
    for cell, unit in enumerate(torch.eye(cells)):  # one canvas at a time: all of them take 1 GB at the largest res
        rows = unit.view(1, cells, 1).expand(-1, -1, cells)
        matrix[:, cell] = masks_to_canvas(rows, res, CANVAS, rule)[0, :, CANVAS // 2]
    return matrix
