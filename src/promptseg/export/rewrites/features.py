"""Mask features only where they are read, at the decoder's three sizes and for one mask; and that mask on the canvas.

`mask_features` is a linear 3x3 convolution, and a resize is linear, too: they may change places. What is resized is
then what the convolution would see through each of its nine windows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.datasets.preprocess import CANVAS
from promptseg.export.rewrites.convolutions import SplitConv
from promptseg.networks.network import CanvasRule
from promptseg.networks.xdecoder.mask_decoder import MaskDecoder
from promptseg.networks.xdecoder.model import MASK_STRIDE, masks_to_canvas

TAPS = 3  # of the convolution, along each axis
STEEPNESS = 1000.0  # the sigmoid that decides a pixel leaves 0 and 1 only for logits within a few thousandths of zero


class ResizedFeatures(nn.Module):
    """Features (1, M, h, w) as the network makes them, resized to each size.

    A bicubic, antialiased resize is two products with a constant matrix: the NPU has no operation for it.
    """

    def __init__(self, decoder: MaskDecoder, cells: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.decoder = decoder
        self.sizes = tuple(sizes)
        self.bilinear = decoder.rule.resize == "bilinear"
        for size in () if self.bilinear else self.sizes:
            self.register_buffer(f"matrix{size}", resizing_matrix(decoder, cells, size), persistent=False)

    def forward(self, features: Tensor) -> list[Tensor]:
        """(1, M, h, h) -> (1, M, s, s) for each size s."""
        if self.bilinear:
            return [self.decoder._resize_features(features, torch.Size((size, size))) for size in self.sizes]
        return [_sampled(features, getattr(self, f"matrix{size}")) for size in self.sizes]


class LevelFeatures(nn.Module):
    """`mask_features`, then `ResizedFeatures`, from the map before that convolution; only where `pays` says so.

    A bilinear resize to half or a quarter takes the mean of 2x2 values; the coarsest level goes through one matrix per
    axis, which for an eighth is quicker too.
    """

    @staticmethod
    def pays(decoder: MaskDecoder, cells: int) -> bool:
        """Tell whether resizing to half and a quarter takes the mean of 2x2 values.

        Elsewhere matrices would be needed, which cost more than the convolution saves.
        """
        return decoder.rule.resize == "bilinear" and cells % 4 == 0

    def __init__(self, conv: nn.Conv2d, decoder: MaskDecoder, cells: int, sizes: Sequence[int]) -> None:
        super().__init__()
        assert self.pays(decoder, cells)
        self.levels = nn.ModuleList(
            (SampledConv(conv, decoder, cells, sizes[0]), QuarteredConv(conv), HalvedConv(conv))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(1, C, h, h) -> (1, M, s, s) at an eighth, a quarter and half of h."""
        return [level(x) for level in self.levels]


class HalvedConv(nn.Module):
    """Convolution, then bilinear resize to half.

    Along an axis the first and the last window read means that start at odd places, the middle one those that start at
    even places. Four of the nine windows are a 2x2 convolution of one map of means, which an NPU does well. Those
    above, below and beside the middle would be convolutions of 2x1 and 1x2, which it does badly: they are stacked for
    one of 1x1.

    Means over a padded map are constant depth-wise convolutions: the NPU's compiler gets padded average pools wrong.
    """

    mean: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()
        assert conv.bias is not None
        self.corners, self.bias = nn.Parameter(weight[:, :, ::2, ::2].clone()), nn.Parameter(conv.bias.detach().clone())
        sides = [weight[:, :, 0, 1], weight[:, :, 2, 1], weight[:, :, 1, 0], weight[:, :, 1, 2]]
        self.middle = nn.Parameter(weight[:, :, 1:2, 1:2].clone())
        self.sides = nn.Parameter(torch.cat(sides, 1)[:, :, None, None])
        self.register_buffer("mean", torch.full((conv.in_channels, 1, 2, 2), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, h, h), h even -> (1, M, h / 2, h / 2)."""
        rows = self._means(x, (1, 0))  # rows that start at -1, 1, 3, ...
        columns = self._means(x, (0, 1))
        sides = F.conv2d(
            torch.cat((rows[:, :, :-1], rows[:, :, 1:], columns[..., :-1], columns[..., 1:]), 1), self.sides
        )
        corners = F.conv2d(self._means(x, (1, 1)), self.corners, self.bias)
        return corners + sides + F.conv2d(F.avg_pool2d(x, 2, 2), self.middle)

    def _means(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """Means of 2x2 values at every second place, zeros around: (1, C, h, h) -> (1, C, ., .)."""
        return F.conv2d(x, self.mean, stride=2, padding=padding, groups=x.shape[1])


class QuarteredConv(nn.Module):
    """Convolution, then bilinear resize to a quarter: no window reaches beyond the map."""

    mean: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = SplitConv(conv.weight, conv.bias, stride=4)
        self.register_buffer("mean", torch.full((conv.in_channels, 1, 2, 2), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, h, h), h a multiple of 4 -> (1, M, h / 4, h / 4)."""
        means = F.conv2d(x, self.mean, groups=x.shape[1])
        resized: Tensor = self.conv(means)
        return resized


class SampledConv(nn.Module):
    """Convolution, then any separable resize: each axis is sampled at every window's places by one matrix."""

    rows: Tensor

    def __init__(self, conv: nn.Conv2d, decoder: MaskDecoder, cells: int, size: int) -> None:
        super().__init__()
        resize = resizing_matrix(decoder, cells, size)
        padded = F.pad(resize, (1, 1))
        windows = [padded[:, 2 - tap : 2 - tap + cells] for tap in range(TAPS)]
        self.register_buffer("rows", torch.stack(windows, 1).flatten(0, 1), persistent=False)  # (size * TAPS, cells)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, h, h) -> (1, M, size, size)."""
        return F.conv2d(_sampled(x, self.rows), self.conv.weight, self.conv.bias, stride=TAPS)


class ProductMask(nn.Module):
    """One query's mask from mask features, by a product.

    The small operand stands on the right, where an NPU repacks what it did not know before.
    """

    def forward(self, kernel: Tensor, features: Tensor) -> Tensor:
        """Mask embedding (1, M), mask features (1, M, h, w) -> mask logits (h, w)."""
        return (features.permute(0, 2, 3, 1) @ kernel.T)[0, :, :, 0]


class TapMask(nn.Module):
    """One query's mask from the map before `conv`, by a convolution to one channel whose kernel the query makes.

    Each of its nine taps is a product on the whole map; a fixed convolution shifts and sums them.
    """

    shifts: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()  # (M, C, 3, 3)
        assert conv.bias is not None
        self.taps = nn.Parameter(weight.permute(0, 2, 3, 1).flatten(1).clone())  # (M, 9 * C)
        self.bias = nn.Parameter(conv.bias.detach().clone())
        self.channels = weight.shape[1]
        shifts = torch.eye(TAPS * TAPS).view(1, TAPS * TAPS, TAPS, TAPS)
        self.register_buffer("shifts", shifts, persistent=False)

    def forward(self, kernel: Tensor, x: Tensor) -> Tensor:
        """Mask embedding (1, M), map (1, C, h, w) -> mask logits (h, w)."""
        taps = (kernel @ self.taps).view(TAPS * TAPS, self.channels)
        products = (x.permute(0, 2, 3, 1) @ taps.T).permute(0, 3, 1, 2)  # (1, 9, h, w)
        return F.conv2d(products, self.shifts, padding=1)[0, 0] + kernel @ self.bias


class CanvasMask(nn.Module):
    """Logits at stride 4 to a decision on the canvas: the resize is two products with a constant matrix."""

    upsample: Tensor

    def __init__(self, res: int, rule: CanvasRule) -> None:
        super().__init__()
        self.register_buffer("upsample", upsampling_matrix(res, rule), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(h, w) -> (CANVAS, CANVAS), 0 to 1."""
        return torch.sigmoid(self.upsample @ logits @ self.upsample.T * STEEPNESS)


def resizing_matrix(decoder: MaskDecoder, cells: int, size: int) -> Tensor:
    """Float [size, cells]: the decoder's resize along one axis, as the matrix of that linear map."""
    units = torch.eye(cells).view(cells, 1, cells, 1).repeat(1, 1, 1, 2)  # of one column torch resizes no rows
    return decoder._resize_features(units, torch.Size((size, 2)))[:, 0, :, 0].T.contiguous()


def upsampling_matrix(res: int, rule: CanvasRule) -> Tensor:
    """Float [CANVAS, ceil(res / 4)]: `masks_to_canvas` along one axis, as the matrix of that linear map."""
    cells = -(-res // MASK_STRIDE)
    matrix = torch.empty(CANVAS, cells)
    for cell, unit in enumerate(torch.eye(cells)):  # one canvas at a time: all of them take 1 GB at the largest res
        rows = unit.view(1, cells, 1).expand(-1, -1, cells)
        matrix[:, cell] = masks_to_canvas(rows, res, CANVAS, rule)[0, :, CANVAS // 2]
    return matrix


def _sampled(x: Tensor, matrix: Tensor) -> Tensor:
    """Both axes of (1, C, h, h) through a matrix (n, h); it stands on the right, where an NPU packs it once."""
    return ((x @ matrix.T).transpose(2, 3) @ matrix.T).transpose(2, 3)
