"""The published wrapper's own computation, written out plainly with our network's weights: slow, and obviously so.

The published decoder carries 201 queries where 100 answer (object queries, the class query, and the object queries once
more for grounding), makes every query's mask at full size after every layer, and resizes that for the attention mask.
Nothing that grounding does not need is left out here; self-attention's mask keeps the two groups apart. An oracle for
what we leave out, and the baseline of benchmarks/network.py and of benchmarks/graph.py.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.datasets.preprocess import CANVAS
from promptseg.networks.xdecoder.layers import BLOCKED, sine_positions
from promptseg.networks.xdecoder.mask_decoder import LEVELS, DecoderLayer, MaskAttention
from promptseg.networks.xdecoder.model import XDecoder, resize_canvas


@dataclass(frozen=True)
class ClassQuery:
    """The class query's content and position [1, C], which our checkpoints do not hold; grounding never sees it."""

    content: Tensor
    position: Tensor


class PublishedGraph(nn.Module):
    """The plain wrapper with the contract's border, for export; the class query is drawn, as it changes no mask."""

    def __init__(self, network: XDecoder, res: int) -> None:
        super().__init__()
        self.network = network
        self.res = res
        width = network.mask_decoder.query_content.shape[1]
        content, position = torch.randn(2, 1, width, generator=torch.Generator().manual_seed(0))
        self.content, self.position = nn.Parameter(content, False), nn.Parameter(position, False)

    def forward(self, image_input: Tensor, text_input: Tensor) -> Tensor:
        """Float [1, 3, CANVAS, CANVAS], int32 [2, 1, 77] -> float [CANVAS, CANVAS]."""
        query = ClassQuery(self.content, self.position)
        return plain_wrapper(self.network, query, image_input, text_input, self.res).float()


def plain_wrapper(network: XDecoder, query: ClassQuery, image: Tensor, text: Tensor, res: int) -> Tensor:
    """The contract's inputs, float [1, 3, CANVAS, CANVAS] and int [2, 1, T] -> bool [CANVAS, CANVAS]."""
    masks, embeddings, phrase = plain_grounding(network, query, resize_canvas(image, res), text[0])
    cosine = F.normalize(embeddings, dim=-1) @ F.normalize(phrase, dim=-1).T  # (Q, 1)
    best = masks[cosine.flatten().argmax(0, keepdim=True)]
    return F.interpolate(best[None], (CANVAS, CANVAS), mode="bilinear")[0, 0] > 0  # stretched, whatever `res` is


def plain_grounding(
    network: XDecoder, query: ClassQuery, picture: Tensor, token_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One picture float [1, 3, res, res] and one phrase int [1, T] -> the grounding queries' mask logits [Q, h, w],
    their embeddings [Q, C], and the phrase's [1, C].
    """
    decoder = network.mask_decoder
    mask_features, pyramid = network.encode(picture)
    phrase = network.text_encoder(token_ids)
    content, place = decoder.query_content, decoder.query_position
    queries = torch.cat((content, query.content, content))[None]  # (1, 2Q + 1, C)
    positions = torch.cat((place, query.position, place, phrase))[None]
    count, general = queries.shape[1], len(content) + 1
    text = phrase[None]
    apart = _groups_apart(len(content))
    for index, module in enumerate(decoder.layers):
        layer = cast(DecoderLayer, module)
        x = pyramid[index % LEVELS]
        masks, _ = _predict(network, queries, mask_features)
        bias = _attention_mask(masks, x.shape[-2:], general, decoder.rule, layer.cross_attention.heads)
        values = x.flatten(2).transpose(1, 2) + decoder.level_embedding[index % LEVELS]
        keys = values + sine_positions(x.shape[-2], x.shape[-1], x.shape[1], x)
        read = keys if decoder.values_carry_positions else values  # never in the published decoder, always in nano
        attended = layer.cross_attention(queries + positions[:, :count], keys, read, bias)
        queries = layer.cross_norm(queries + attended)
        together = torch.cat((queries, text), dim=1)
        placed = together + positions
        together = layer.self_norm(together + layer.self_attention(placed, placed, together, apart))
        together = layer.ffn_norm(together + layer.ffn(together))
        queries, text = together.split((count, 1), dim=1)
    masks, embeddings = _predict(network, queries, mask_features)
    return masks[0, general:], embeddings[0, general:], phrase


def _predict(network: XDecoder, queries: Tensor, mask_features: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (1, N, C) -> full-size mask logits (1, N, h, w) and embeddings (1, N, C)."""
    decoder = network.mask_decoder
    state = decoder.norm(queries)
    masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_embedding(state), mask_features)
    return masks, state @ decoder.class_projection


def _attention_mask(masks: Tensor, size: torch.Size, first_grounding: int, rule: MaskAttention, heads: int) -> Tensor:
    """Additive mask (1, heads, N, h * w) at a level's size, by the published code of either rule."""
    if rule.resize == "bicubic":
        small = F.interpolate(masks, size, mode="bicubic", antialias=True)
    else:
        small = F.interpolate(masks, size, mode="bilinear")
    blocked = (small.sigmoid().flatten(2)[:, None].repeat(1, heads, 1, 1) < 0.5).float()
    blocked[:, :, first_grounding] = 0  # meant for the class query, it falls on the first grounding query
    blocked[blocked.amin(dim=3) == 1] = 0
    return blocked * BLOCKED if rule.attends == "inside" else (1 - blocked) * BLOCKED


def _groups_apart(queries: int) -> Tensor:
    """Additive self-attention mask (2Q + 2, 2Q + 2): object queries, the class query, and grounding with the phrase."""
    group = torch.tensor([0] * queries + [1] + [2] * (queries + 1))
    return (group[:, None] != group[None, :]).float() * BLOCKED
