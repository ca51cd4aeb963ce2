"""Multi-head attention as X-Decoder uses it, and the additive masks that it takes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKED = -10_000.0  # an additive bias that survives fp16 and whose exponential is zero in every float format


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
