"""Sine and cosine encodings of positions on a map.

Source: Carion et al., "End-to-End Object Detection with Transformers" (2020), normalised variant.
"""

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000.0
EPS = 1e-6


def sine_positions(height: int, width: int, dim: int, like: Tensor) -> Tensor:
    """[height * width, dim], row by row: first half of the channels for y, second for x; dtype and device of `like`."""
    half = dim // 2
    channel = torch.arange(half, device=like.device)
    wavelength = TEMPERATURE ** (2 * (channel // 2) / half)

    def encode(length: int) -> Tensor:
        position = torch.arange(1, length + 1, device=like.device) / (length + EPS) * (2 * math.pi)
        angle = position[:, None] / wavelength
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)  # (length, half)

    y = encode(height)[:, None].expand(height, width, half)
    x = encode(width)[None].expand(height, width, half)
    return torch.cat((y, x), dim=2).flatten(0, 1).to(like.dtype)
