"""What several parts of X-Decoder use: multi-head attention, its additive masks, and encodings of positions.

Source of the encodings: Carion et al., "End-to-End Object Detection with Transformers" (2020), normalised variant.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKED = -10_000.0  # an additive bias that survives fp16 and whose exponential is zero in every float format
TEMPERATURE = 10_000.0  # of the encodings: their wavelengths rise from 1 to it, in units of 1 / 2 pi of the map
EPS = 1e-6


class Attention(nn.Module):
    """Multi-head attention with packed input projections (query, key, value rows in this order).

    Shapes: query [B, Q, C], key and value [B, K, C] -> [B, Q, C]. `bias` is added to the scores and broadcasts to
    [B, heads, Q, K].
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend; see the class for shapes."""
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        q, k, v = (self._split(F.linear(x, w, b)) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, heads, Q, C / heads)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def causal_bias(length: int) -> Tensor:
    """[length, length]: BLOCKED above the diagonal, 0 elsewhere; real also where weights are shapes only."""
    return torch.full((length, length), BLOCKED, device="cpu").triu(1)


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
