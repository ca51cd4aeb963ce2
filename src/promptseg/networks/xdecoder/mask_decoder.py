"""X-Decoder's mask decoder on its grounding path: object queries attend to the picture, each other and the phrase.

Source: Zou et al., "Generalized Decoding for Pixel, Image, and Language" (2023), after Mask2Former. The published model
also carries queries for other tasks; self-attention hides them from the grounding queries, so they are not computed.
The phrase enters as one token, its embedding. The first query's attention is never limited by its mask: in the
published model an index meant for the class query falls on it, and weights are trained with that.

Shapes: P pictures; B phrases, a multiple of P, those of a picture following each other; Q object queries; C channels; M
channels of the mask features; N cells of a map.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.xdecoder.layers import BLOCKED, Attention, sine_positions

Attends = Literal["inside", "outside"]
Resize = Literal["bicubic", "bilinear"]
LEVELS = 3  # the maps at strides 32, 16 and 8 take turns


@dataclass(frozen=True)
class MaskAttention:
    """How a query's mask so far limits what it attends to next; part of a checkpoint: weights are trained with it.

    attends: "inside" its mask (the paper's rule; an empty mask limits nothing), or "outside" (the rule of the
    challenge's sample solution and its winner: inverted; a mask that covers everything limits nothing).
    resize: how the mask is brought to a map's size: "bicubic" (antialiased; the paper's) or "bilinear" (without).
    """

    attends: Attends
    resize: Resize

    def __post_init__(self) -> None:
        if self.attends not in get_args(Attends) or self.resize not in get_args(Resize):
            raise ValueError(f"got {self}, wanted attends of {get_args(Attends)} and resize of {get_args(Resize)}")


@dataclass(frozen=True)
class MaskDecoderConfig:
    """Sizes of the mask decoder, and its rules.

    values_carry_positions: whether position encodings are added to the values of cross-attention, too, and not only to
    its keys, as in the published decoder; `nano`, with few queries, learns relations sooner with both.
    phrase_query: whether the queries start from the phrase, and not from what they learnt alone. With one such query
    nothing has to be chosen: it is the answer, and few pictures teach it much sooner.
    """

    dim: int
    mask_dim: int
    heads: int
    ffn_dim: int
    layers: int
    object_queries: int
    values_carry_positions: bool
    mask_attention: MaskAttention
    phrase_query: bool = False


@dataclass(frozen=True)
class DecoderOutput:
    """Output after one layer: mask_logits float [B, Q, h, w]; query_embedding float [B, Q, C], to be compared with the
    phrase's embedding.
    """

    mask_logits: Tensor
    query_embedding: Tensor


class DecoderLayer(nn.Module):
    """Cross-attention to a map, self-attention among the queries and the phrase, feed-forward; each post-norm."""

    def __init__(self, config: MaskDecoderConfig) -> None:
        super().__init__()
        dim = config.dim
        self.cross_attention = Attention(dim, config.heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, config.heads)
        self.self_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, config.ffn_dim), nn.ReLU(), nn.Linear(config.ffn_dim, dim))
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Return the updated x.

        x: (B, Q + 1, C), object queries followed by the phrase token; positions: same shape; keys, values and bias: see
        `cross_attend`.
        """
        queries = self.cross_attend(x[:, :-1], positions[:, :-1], keys, values, bias)
        return self.self_attend(torch.cat((queries, x[:, -1:]), dim=1), positions)

    def cross_attend(
        self, queries: Tensor, query_positions: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> Tensor:
        """Cross-attention to a map: queries (B, Q, C), keys and values (P, N, C), bias (B, Q, N) -> (B, Q, C).

        Queries do not interact here, so those of all phrases of a picture attend to its keys as one set.
        """
        pictures, _, dim = keys.shape
        placed = (queries + query_positions).view(pictures, -1, dim)
        attended = self.cross_attention(placed, keys, values, bias.view(pictures, 1, placed.shape[1], -1))
        return self.cross_norm(queries + attended.view(queries.shape))

    def self_attend(self, x: Tensor, positions: Tensor) -> Tensor:
        """Self-attention and feed-forward: x and positions as in `forward` -> (B, Q + 1, C)."""
        placed = x + positions
        x = self.self_norm(x + self.self_attention(placed, placed, x))
        return self.ffn_norm(x + self.ffn(x))


class MaskDecoder(nn.Module):
    """Maps, mask features and a phrase -> a DecoderOutput after every layer (or after the last one only).

    The phrase embedding joins the queries, so its size is `config.dim`.
    """

    def __init__(self, config: MaskDecoderConfig) -> None:
        super().__init__()
        dim = config.dim
        self.rule = config.mask_attention
        self.values_carry_positions = config.values_carry_positions
        self.query_content = nn.Parameter(torch.randn(config.object_queries, dim))
        self.query_position = nn.Parameter(torch.randn(config.object_queries, dim))
        self.phrase_query = nn.Linear(dim, dim) if config.phrase_query else None
        self.level_embedding = nn.Parameter(torch.randn(LEVELS, dim))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.mask_embedding = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, config.mask_dim)
        )
        self.class_projection = nn.Parameter(torch.empty(dim, dim))
        nn.init.trunc_normal_(self.class_projection, std=0.02)

    def forward(
        self, mask_features: Tensor, pyramid: list[Tensor], phrase: Tensor, every_layer: bool
    ) -> list[DecoderOutput]:
        """mask_features (P, M, h, w), pyramid of LEVELS maps (P, C, ., .) coarsest first, phrase (B, C).

        Returns the output before the first layer and after each one when `every_layer`, else only the last.
        """
        states = self.forward_layers(mask_features, pyramid, phrase)
        pixels = mask_features.flatten(2)
        size = mask_features.shape[-2:]
        return [
            DecoderOutput(self._masks(state, pixels).unflatten(2, size), state @ self.class_projection)
            for state in (states if every_layer else states[-1:])
        ]

    def forward_layers(self, mask_features: Tensor, pyramid: list[Tensor], phrase: Tensor) -> list[Tensor]:
        """Inputs as in `forward` -> the normed queries (B, Q, C) before the first layer and after each one."""
        keys, values = zip(*(self._keys_and_values(x, level) for level, x in enumerate(pyramid)), strict=True)
        alone = len(self.query_content) == 1  # the first query attends everywhere
        sizes = [] if alone else [x.shape[-2:] for x in pyramid]
        level_features = [self._resize_features(mask_features.detach(), size) for size in sizes]
        text = phrase.unsqueeze(1)
        x = torch.cat((self.first_queries(phrase), text), dim=1)
        positions = torch.cat((self.query_position.expand(len(phrase), -1, -1), text), dim=1)
        states = [self.norm(x[:, :-1])]
        for index, layer in enumerate(cast(Iterable[DecoderLayer], self.layers)):
            level = index % LEVELS
            bias = (
                x.new_zeros(len(x), 1, 1)
                if alone
                else self._attention_bias(states[-1], level_features[level].flatten(2))
            )
            x = layer(x, positions, keys[level], values[level], bias)
            states.append(self.norm(x[:, :-1]))
        return states

    def first_queries(self, phrase: Tensor) -> Tensor:
        """Phrase embeddings (B, C) -> the queries before the first layer (B, Q, C)."""
        queries = self.query_content.expand(len(phrase), -1, -1)
        return queries if self.phrase_query is None else queries + self.phrase_query(phrase).unsqueeze(1)

    def _masks(self, state: Tensor, pixels: Tensor) -> Tensor:
        """Normed queries (B, Q, C), pixels (P, M, N) -> mask logits (B, Q, N)."""
        by_picture = self.mask_embedding(state).view(len(pixels), -1, pixels.shape[1])
        return (by_picture @ pixels).view(*state.shape[:2], -1)

    def _keys_and_values(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        values = x.flatten(2).transpose(1, 2) + self.level_embedding[level]  # (B, h * w, C)
        height, width = x.shape[-2:]
        keys = values + sine_positions(height, width, x.shape[1], x)
        return keys, keys if self.values_carry_positions else values

    def _resize_features(self, mask_features: Tensor, size: torch.Size) -> Tensor:
        """Resizing is linear, so masks may be made from resized features; once per level instead of once per layer."""
        if self.rule.resize == "bilinear":
            return F.interpolate(mask_features, size=size, mode="bilinear")
        return F.interpolate(mask_features, size=size, mode="bicubic", antialias=True)

    @torch.no_grad()
    def _attention_bias(self, state: Tensor, pixels: Tensor) -> Tensor:
        """Normed queries (B, Q, C), pixels (P, M, N) -> (B, Q, N): BLOCKED where a query must not attend, else 0."""
        masks = self._masks(state, pixels)
        inside = (masks >= 0).to(masks.dtype)
        blocked = inside  # blocked everywhere amounts to blocked nowhere: softmax ignores a constant
        if self.rule.attends == "inside":
            blocked = inside.amax(dim=2, keepdim=True) - inside  # an empty mask blocks nothing
        blocked = F.pad(blocked[:, 1:], (0, 0, 1, 0))  # the first query attends everywhere
        return blocked * BLOCKED
