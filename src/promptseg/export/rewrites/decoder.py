"""The mask decoder for one picture and one phrase, on matrices (queries, C) and (pixels, C)."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.xdecoder.layers import BLOCKED, sine_positions
from promptseg.networks.xdecoder.mask_decoder import LEVELS, DecoderLayer, MaskDecoder

STEEP = 30_000.0  # twice in a row, within fp16: numbers beyond 1.2e-9 from zero have a sign
SOFT_BLOCKED = -30.0  # the exponential of such a score is nothing in 16 bits, and in 8 bits nothing is left at -6


class PlainDecoder(nn.Module):
    """`MaskDecoder.forward_layers` unchanged, then the query that is most like the phrase."""

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def picture_features(self, mask_features: Tensor, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return what it reads of a picture: mask features (1, M, h, w) and LEVELS maps (1, C, ., .)."""
        return [mask_features, *pyramid]

    def forward(self, features: Sequence[Tensor], phrase: Tensor) -> tuple[Tensor, Tensor]:
        """`picture_features`, phrase (1, C) -> see `best_kernel`."""
        mask_features, *pyramid = features
        state = self.decoder.forward_layers(mask_features, pyramid, phrase)[-1][0]
        return best_kernel(self.decoder, state, phrase)


class FoldedCrossAttention(nn.Module):
    """`DecoderLayer.cross_attend` for one picture and one phrase: many pixels, few queries, plain matrix products.

    The pixels are neither projected nor cut into heads, which moves each of them several times on an NPU: scores are
    (q W_k^T) x^T instead of q (x W_k)^T, and results (attention x) W_v instead of attention (x W_v). A constant in the
    keys adds the same to all scores of a query, which softmax ignores; one in the values passes through, because
    attention sums to 1. Rows of scores are ordered head by head.
    """

    spread: Tensor
    far = BLOCKED

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
        spread = torch.eye(queries).repeat(self.heads, 1) * self.far
        spread[:, 0] = 0  # the first query attends everywhere
        self.register_buffer("spread", spread, persistent=False)

    def forward(
        self, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, blocked: Tensor | None
    ) -> Tensor:
        """Update the queries by what they attend to.

        queries, positions: (Q, C). keys, values: pixels (N, C), without the level's embedding. blocked: (Q, N), 1 where
        a query may not attend, else 0; None where all may attend everywhere. Returns the updated queries (Q, C).
        """
        count, dim = queries.shape
        q = self.query(queries + positions).view(count, self.heads, -1).transpose(0, 1)  # (heads, Q, C / heads)
        # A product repeats the bias for each head: adding one that broadcasts costs more than the attention itself.
        scores = (q @ self.key).reshape(-1, dim) @ keys.T  # (heads * Q, N)
        if blocked is not None:
            scores = scores + self._bias(blocked)
        attended = (scores.softmax(-1) @ values).view(self.heads, count, dim) @ self.value
        return self.norm(queries + self.out(attended.transpose(0, 1).reshape(count, dim)))

    def _bias(self, blocked: Tensor) -> Tensor:
        """Return what is added to the scores: (Q, N) -> (heads * Q, N)."""
        return self.spread @ blocked


class SoftCrossAttention(FoldedCrossAttention):
    """`FoldedCrossAttention` for integers: scores keep a range of their own, which a bias of BLOCKED would swallow."""

    far = SOFT_BLOCKED

    def _bias(self, blocked: Tensor) -> Tensor:
        # A query that is blocked everywhere is blocked nowhere: else all its scores would end at the range's lower end.
        return (self.spread * (1 - blocked.amin(1))) @ blocked


class MatrixDecoder(nn.Module):
    """`MaskDecoder.forward_layers` on matrices, then the query that is most like the phrase.

    Positions are constants. What the level embedding adds to keys changes no attention and is left out; what it adds to
    values is a constant of the layer.
    """

    cross_attention = FoldedCrossAttention

    def __init__(self, decoder: MaskDecoder, sizes: Sequence[int], level_features: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.level_features = level_features
        self.inside = decoder.rule.attends == "inside"
        self.alone = len(decoder.query_content) == 1
        count, dim = decoder.query_content.shape
        layers = [layer for layer in decoder.layers if isinstance(layer, DecoderLayer)]
        self.layers = nn.ModuleList(layers)
        self.cross_attentions = nn.ModuleList(
            self.cross_attention(layer, count, decoder.level_embedding[index % LEVELS].detach())
            for index, layer in enumerate(layers)
        )
        like = decoder.query_content.detach()
        for level, cells in enumerate(sizes):
            positions = sine_positions(cells, cells, dim, like).T.reshape(1, dim, cells, cells)
            self.register_buffer(f"positions{level}", positions.contiguous(), persistent=False)

    def picture_features(self, finest: Tensor, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Compute what depends on the picture alone: pixels (N, C) of every level, coarsest first.

        finest: what `level_features` takes: mask features (1, M, h, w), or the map (1, C, h, w) that they come from.
        pyramid: LEVELS maps (1, C, ., .), coarsest first. Returns the levels' keys, their values where those are others
        than the keys, and, where queries are several, their mask features (N, M): one query attends everywhere.
        """
        keys = [_pixels(x + getattr(self, f"positions{level}")) for level, x in enumerate(pyramid)]
        values = [] if self.decoder.values_carry_positions else [_pixels(x) for x in pyramid]
        masks = [] if self.alone else [_pixels(x) for x in self.level_features(finest)]
        return [*keys, *values, *masks]

    def forward(self, features: Sequence[Tensor], phrase: Tensor) -> tuple[Tensor, Tensor]:
        """Answer one phrase: `picture_features`, embedding (1, C) -> see `best_kernel`."""
        decoder = self.decoder
        keys, masks = features[:LEVELS], [] if self.alone else features[-LEVELS:]
        values = features[: len(features) - len(masks)][-LEVELS:]
        queries, text = decoder.first_queries(phrase)[0], phrase
        count = len(queries)
        positions = torch.cat((decoder.query_position, text))
        state = decoder.norm(queries)
        layers = cast(Iterable[DecoderLayer], self.layers)
        for index, (cross_attend, layer) in enumerate(zip(self.cross_attentions, layers, strict=True)):
            level = index % LEVELS
            blocked = self._blocked(decoder.mask_embedding(state), masks[level]) if masks else None
            queries = cross_attend(queries, decoder.query_position, keys[level], values[level], blocked)
            queries, text = layer.self_attend(torch.cat((queries, text))[None], positions[None])[0].split((count, 1))
            state = decoder.norm(queries)
        return best_kernel(decoder, state, phrase)

    def _blocked(self, kernels: Tensor, features: Tensor) -> Tensor:
        """Mask embeddings (Q, M), features (N, M) -> (Q, N), 1 where the rule forbids a query to attend, else 0.

        Comparisons as arithmetic.
        """
        masks = kernels @ features.T
        inside = ((masks * STEEP).clamp(-1, 1) * STEEP + 1).clamp(0, 1)  # 1 where masks >= 0
        # An empty mask blocks nothing: then the largest value is 0. Blocked everywhere amounts to blocked nowhere.
        return inside.amax(dim=1, keepdim=True) - inside if self.inside else inside


class SoftDecoder(MatrixDecoder):
    """`MatrixDecoder` for integers: the comparison is the range of a product, which costs nothing there."""

    cross_attention = SoftCrossAttention

    def _blocked(self, kernels: Tensor, features: Tensor) -> Tensor:
        return ((kernels * (-STEEP if self.inside else STEEP)) @ features.T).clamp(0, 1)


def best_kernel(decoder: MaskDecoder, state: Tensor, phrase: Tensor) -> tuple[Tensor, Tensor]:
    """Normed queries (Q, C), phrase (1, C) -> mask embedding (1, M) of the query most like the phrase, and likenesses.

    The latter (1, Q) are the cosine of each query with the phrase, times the length of the phrase's embedding.
    """
    likeness = (F.normalize(state @ decoder.class_projection, dim=-1) @ phrase.T).flatten()
    best = state if len(state) == 1 else state.index_select(0, likeness.argmax(0, keepdim=True))
    return decoder.mask_embedding(best), likeness[None]


def _pixels(x: Tensor) -> Tensor:
    """(1, C, h, w) -> (h * w, C), by way of channels last, which is how an NPU stores it."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return linear
