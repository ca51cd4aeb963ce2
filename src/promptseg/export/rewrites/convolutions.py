"""Convolutions as the NPU does them best: many channels as sums of fewer, and group norms on its matrix unit."""

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.xdecoder.pixel_decoder import ConvNorm

PARTS = 2
LEAST_INPUTS = 512  # with fewer channels nothing was won


class SplitConv(nn.Module):
    """A convolution by `weight` (M, C, k, k), as the sum of PARTS over its inputs' shares where C >= LEAST_INPUTS."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        parts = PARTS if weight.shape[1] >= LEAST_INPUTS else 1
        self.weights = nn.ParameterList(part.detach().clone() for part in weight.chunk(parts, 1))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, M, ., .)."""
        # A split into one would stay in the exported graph.
        shares = x.split([weight.shape[1] for weight in self.weights], 1) if len(self.weights) > 1 else (x,)
        biases = (self.bias, *[None] * (len(shares) - 1))
        parts = zip(shares, self.weights, biases, strict=True)
        return reduce(torch.add, (F.conv2d(*part, self.stride, self.padding) for part in parts))


class MatrixConvNorm(nn.Module):
    """`ConvNorm` (convolution without bias, then group norm) with the statistics made by 1x1 convolutions.

    Channels are averaged group by group before places are, on a map of `groups` channels; the normalisation is one
    multiplication and one addition of equal shapes. A group norm does not see the scale of what it norms: each group's
    kernels are divided by their mean length, so that squares neither overflow nor vanish in fp16.
    """

    average: Tensor
    eps: Tensor

    def __init__(self, plain: ConvNorm) -> None:
        super().__init__()
        norm, conv = plain.norm, plain.conv
        groups, size = norm.num_groups, norm.num_channels // norm.num_groups
        weight = conv.weight.detach()
        length = weight.flatten(1).norm(dim=1).view(groups, size).mean(1).clamp_min(1e-12)  # (groups,)
        scaled = weight / length.repeat_interleave(size).view(-1, 1, 1, 1)
        self.conv = SplitConv(scaled, None, padding=conv.kernel_size[0] // 2)
        members = torch.eye(groups).repeat_interleave(size, 1)  # (groups, C)
        self.register_buffer("average", (members / size)[:, :, None, None], persistent=False)
        self.register_buffer("eps", (norm.eps / length.square()).view(1, groups, 1, 1), persistent=False)
        scale = (members.T * norm.weight.detach()[:, None])[:, :, None, None]
        self.scale, self.negative_scale = nn.Parameter(scale.clone()), nn.Parameter(-scale)
        self.shift = nn.Parameter(norm.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        y = self.conv(x)
        mean = F.adaptive_avg_pool2d(F.conv2d(y, self.average), 1)  # (B, groups, 1, 1)
        square = F.adaptive_avg_pool2d(F.conv2d(y * y, self.average), 1)
        inverse = torch.rsqrt(square - mean * mean + self.eps)
        shift = F.conv2d(mean * inverse, self.negative_scale, self.shift)
        # Tiled by hand: additions of equal shapes run on the matrix unit, those that broadcast take ten times as long.
        return y * F.conv2d(inverse, self.scale) + shift.repeat(1, 1, *y.shape[2:])
