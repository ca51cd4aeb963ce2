"""CLIP-style causal text transformer with a projection, as X-Decoder uses it.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021); Zou et al.,
"Generalized Decoding for Pixel, Image, and Language" (2023).
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.xdecoder.layers import Attention, causal_bias

NORM_EPS = 1e-12  # the published text encoder's


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text encoder; the last id of the vocabulary ends a text, and pads it."""

    width: int
    heads: int
    layers: int
    context_length: int
    vocab_size: int


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), the approximation that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise."""
        return x * torch.sigmoid(1.702 * x)


class TextBlock(nn.Module):
    """Pre-norm transformer block (B, T, C)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(
            OrderedDict(up=nn.Linear(width, 4 * width), gelu=QuickGelu(), down=nn.Linear(4 * width, width))
        )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, T, C), bias (T, T) -> (B, T, C)."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y, bias)
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """Token ids -> the phrase embedding, in the space shared with the queries.

    It is read at the first end-of-text token; the causal mask keeps padding out of it, so no attention mask is taken.
    """

    causal: Tensor

    def __init__(self, config: TextConfig, proj_dim: int) -> None:
        super().__init__()
        self.end_of_text = config.vocab_size - 1
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.projection = nn.Parameter(torch.empty(config.width, proj_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.projection, std=config.width**-0.5)
        self.register_buffer("causal", causal_bias(config.context_length), persistent=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Int [B, T] -> float [B, P], T at most the context's length. Every row must hold the end of text."""
        length = token_ids.shape[1]
        x = self.token_embedding(token_ids) + self.positional_embedding[:length]
        causal = self.causal[:length, :length]
        for block in self.blocks:
            x = block(x, causal)
        end = (first_end_of_text(token_ids, self.end_of_text, x.dtype).unsqueeze(1) @ x).squeeze(1)
        return self.final_norm(end) @ self.projection


def first_end_of_text(token_ids: Tensor, end_of_text: int, dtype: torch.dtype) -> Tensor:
    """One-hot float [B, T] of the first `end_of_text`; rows are padded with it, so that its steps mark the place."""
    ends = (token_ids == end_of_text).to(dtype)
    return ends - F.pad(ends[:, :-1], (1, 0))
