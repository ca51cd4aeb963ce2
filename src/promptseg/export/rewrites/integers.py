"""Forms for integer arithmetic, where every tensor has one scale: no constant that swallows a range, no float island.

In 8 bits a tensor has 256 steps. A bias of -10,000 makes a step of it 39, a product by 30,000 likewise; what is rounded
to the ends of a range costs nothing, because every product is brought to its output's range anyway.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.datasets.preprocess import CANVAS
from promptseg.export.rewrites.backbone import FoldedStem
from promptseg.export.rewrites.features import CanvasMask

BLOCK = 4  # pixels along each axis that the stem sees as channels: its stride
MILD = 0.125  # slope of the canvas's decision, which is at 0.5 for any: 4 logits on either side are kept apart


class MatrixResize(nn.Module):
    """The canvas to `res` x `res`, bilinear: two products with a constant matrix, which stand on the right.

    As planes of a picture in 8 bits the NPU's matrix unit does it in a twentieth of the time that a Resize takes, for
    which three channels are laid out as 32.
    """

    matrix: Tensor

    def __init__(self, res: int) -> None:
        super().__init__()
        units = torch.eye(CANVAS).view(CANVAS, 1, CANVAS, 1).repeat(1, 1, 1, 2)
        resized = F.interpolate(units, size=(res, 2), mode="bilinear")[:, 0, :, 0]
        self.register_buffer("matrix", resized.contiguous(), persistent=False)  # (CANVAS, res)

    def forward(self, canvas: Tensor) -> Tensor:
        """Float (1, 3, CANVAS, CANVAS) -> (1, 3, res, res)."""
        return ((canvas @ self.matrix).transpose(2, 3) @ self.matrix).transpose(2, 3)


class BlockStem(nn.Module):
    """`FoldedStem` on blocks of 4x4 pixels as 48 channels: a 7x7 convolution with stride 4 becomes 2x2 with stride 1.

    Three planes to three channels last takes the NPU longer than the rest of nano's backbone; to 48 it takes little.
    """

    border: Tensor

    def __init__(self, stem: FoldedStem) -> None:
        super().__init__()
        conv = stem.conv
        assert conv.kernel_size == (7, 7)
        assert conv.stride == (BLOCK, BLOCK)
        weight = F.pad(conv.weight.detach(), (1, 0, 1, 0))  # taps from 4 pixels before a block to its last one
        outputs = len(weight)
        blocks = weight.view(outputs, 3, 2, BLOCK, 2, BLOCK).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        self.weight, self.bias = nn.Parameter(blocks.clone()), conv.bias
        self.padding, self.norm = stem.padding, stem.norm
        self.register_buffer("border", stem.border, persistent=False)

    def forward(self, picture: Tensor) -> Tensor:
        """Float (1, res, res, 3), RGB 0..255 -> (1, h, w, C) at stride 4."""
        blocks = blocks_of(F.pad(picture.permute(0, 3, 1, 2), self.padding), BLOCK)
        x = F.conv2d(F.pad(blocks, (1, 0, 1, 0)), self.weight, self.bias)
        return cast(Tensor, self.norm(x.permute(0, 2, 3, 1) + self.border))


class BlockPatches(nn.Module):
    """A convolution whose stride is its kernel's side, on blocks of as many pixels as channels: a product, 1x1."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.side = conv.kernel_size[0]
        assert conv.stride == conv.kernel_size == (self.side, self.side)
        weight = conv.weight.detach().permute(0, 2, 3, 1).flatten(1)
        self.weight, self.bias = nn.Parameter(weight[:, :, None, None].clone()), conv.bias

    def forward(self, picture: Tensor) -> Tensor:
        """Float (1, C, h, w), whole blocks -> (1, D, h / side, w / side)."""
        return F.conv2d(blocks_of(picture, self.side), self.weight, self.bias)


class MildMask(nn.Module):
    """`CanvasMask` whose decision is cut to 0 and 1 by the last product's range; at 0.5, as everywhere."""

    def __init__(self, steep: CanvasMask) -> None:
        super().__init__()
        self.register_buffer("upsample", steep.upsample, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(h, w) -> (CANVAS, CANVAS), 0 to 1."""
        upsample = cast(Tensor, self.upsample)
        return ((upsample @ logits) @ (upsample.T * MILD) + 0.5).clamp(0, 1)


def blocks_of(planes: Tensor, side: int) -> Tensor:
    """(1, C, h, w) -> (1, side * side * C, h / side, w / side): a block's pixels as channels, row by row.

    Planes to channels last as a matrix is turned: as a picture it takes the NPU a thousand times as long. The rest is
    ONNX's SpaceToDepth.
    """
    _, channels, height, width = planes.shape
    last = planes.reshape(channels, -1).T.reshape(1, height, width, channels)
    cells = last.permute(0, 3, 1, 2).reshape(1, channels, height // side, side, width // side, side)
    blocks: Tensor = cells.permute(0, 3, 5, 1, 2, 4).reshape(1, side**2 * channels, height // side, width // side)
    return blocks
