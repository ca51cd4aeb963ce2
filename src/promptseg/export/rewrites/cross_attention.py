"""The mask decoder's look at the picture, with many pixels and few queries, as plain matrix products."""

import torch
from torch import Tensor, nn

from promptseg.networks.xdecoder.layers import BLOCKED
from promptseg.networks.xdecoder.mask_decoder import DecoderLayer


class FoldedCrossAttention(nn.Module):
    """`DecoderLayer.cross_attend` for one picture and one phrase, on matrices.

    The pixels are neither projected nor cut into heads, which moves each of them several times on an NPU: scores are
    (q W_k^T) x^T instead of q (x W_k)^T, and results (attention x) W_v instead of attention (x W_v). A constant in the
    keys adds the same to all scores of a query, which softmax ignores; one in the values passes through, because
    attention sums to 1. Rows of scores are ordered head by head.
    """

    spread: Tensor

    def __init__(self, layer: DecoderLayer, queries: int, level_embedding: Tensor) -> None:
        super().__init__()
        attention = layer.cross_attention
        self.heads = attention.heads
        dim = attention.out_proj.in_features
        size = dim // self.heads
        weights, biases = attention.in_proj.weight.detach().chunk(3), attention.in_proj.bias.detach().chunk(3)
        self.query = _linear(weights[0] * size**-0.5, biases[0] * size**-0.5)
        self.key = nn.Parameter(weights[1].view(self.heads, size, dim).clone())
        self.value = nn.Parameter(weights[2].view(self.heads, size, dim).transpose(1, 2).clone())
        constant = weights[2] @ level_embedding + biases[2]
        self.out = _linear(attention.out_proj.weight.detach(), attention.out_proj(constant).detach())
        self.norm = layer.cross_norm
        spread = torch.eye(queries).repeat(self.heads, 1) * BLOCKED
        spread[:, 0] = 0  # the first query looks everywhere
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, blocked: Tensor) -> Tensor:
        """Queries and positions (Q, C), keys and values (N, C) without the level's embedding, blocked 0 or 1 (Q, N)
        -> (Q, C).
        """
        count, dim = queries.shape
        q = self.query(queries + positions).view(count, self.heads, -1).transpose(0, 1)  # (heads, Q, C / heads)
        # A product repeats the bias for each head: adding one that broadcasts costs more than the attention itself.
        scores = (q @ self.key).reshape(-1, dim) @ keys.T + self.spread @ blocked  # (heads * Q, N)
        attended = (scores.softmax(-1) @ values).view(self.heads, count, dim) @ self.value
        return self.norm(queries + self.out(attended.transpose(0, 1).reshape(count, dim)))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return linear
