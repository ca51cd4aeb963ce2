"""Convolutions of many channels as sums of convolutions of fewer, which the NPU's compiler tiles better."""

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
