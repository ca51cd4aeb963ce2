"""CLIPSeg in forms that an NPU likes: the same values, up to rounding, for one picture and one phrase.

Tokens are the pixels of a map, channels last, (1, h, w, C): products of them are 1x1 convolutions, which an NPU does
quicker on a map of 24 rows than on a matrix of as many rows (docs/clipseg.md). The class token comes behind the
patches: attention does not mind the order. What fills the map up behind it is never attended to.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.clipseg.model import ClipSeg
from promptseg.networks.xdecoder.layers import causal_bias
from promptseg.networks.xdecoder.text_encoder import first_end_of_text

GELU_SLOPE = 1.702  # of CLIP's gelu, x * sigmoid(1.702 x)
ROWS = 24  # of the map of a picture's tokens
GROUPS = 2  # of heads: one group's products fill the matrix unit while the vector unit takes the other's softmax


class FoldedAttention(nn.Module):
    """transformers' `CLIPSegAttention` for one sequence, heads in groups.

    The scores' scale is in the query's weights. The keys' constant adds the same to all scores of a query, which
    softmax ignores; that of the values passes through, because attention sums to 1, into the output's.
    """

    def __init__(self, attention: Any, groups: int) -> None:
        super().__init__()
        self.heads = attention.num_heads // groups
        q, k, v, out = attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
        weights, biases = (q.weight.detach() * attention.scale).chunk(groups), (q.bias.detach() * attention.scale)
        self.queries = nn.ModuleList(_pointwise(w, b) for w, b in zip(weights, biases.chunk(groups), strict=True))
        self.keys, self.values = (
            nn.ModuleList(_pointwise(w, None) for w in each.weight.detach().chunk(groups)) for each in (k, v)
        )
        self.out = _pointwise(out.weight, out(v.bias))

    def forward(self, queries: Tensor, x: Tensor, count: int, bias: Tensor | None = None) -> Tensor:
        """Attend to the first `count` tokens of x; of more queries than that, the others get a constant.

        queries (1, a, b, C), x (1, c, d, C), bias (heads, a * b, count) -> (1, a, b, C).
        """
        biases = [None] * len(self.queries) if bias is None else bias.chunk(len(self.queries))
        attended = []
        for query, key, value, each in zip(self.queries, self.keys, self.values, biases, strict=True):
            q, k, v = (self._split(part, count) for part in (query(queries), key(x), value(x)))
            scores = q @ k.transpose(1, 2)
            weights = (scores if each is None else scores + each).softmax(-1)
            rows = (weights @ v).transpose(0, 1).flatten(1)
            attended.append(F.pad(rows, (0, 0, 0, queries.shape[1] * queries.shape[2] - len(rows))))
        together: Tensor = self.out(torch.cat(attended, 1).view(queries.shape))
        return together

    def _split(self, x: Tensor, count: int) -> Tensor:
        return x.flatten(0, 2)[:count].unflatten(1, (self.heads, -1)).transpose(0, 1)  # (heads, count, C / heads)


class FoldedMlp(nn.Module):
    """transformers' `CLIPSegMLP`: with relu, or with CLIP's gelu, whose slope is in the weights.

    What is left of that is x * sigmoid(x), which the compiler joins to the convolution before it.
    """

    def __init__(self, mlp: Any, gelu: bool) -> None:
        super().__init__()
        slope = GELU_SLOPE if gelu else 1.0
        self.gelu = gelu
        self.up = _pointwise(mlp.fc1.weight.detach() * slope, mlp.fc1.bias.detach() * slope)
        self.down = _pointwise(mlp.fc2.weight.detach() / slope, mlp.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(1, h, w, C) -> (1, h, w, C)."""
        wide = self.up(x)
        narrow: Tensor = self.down(wide * torch.sigmoid(wide) if self.gelu else torch.relu(wide))
        return narrow


class FoldedBlock(nn.Module):
    """transformers' `CLIPSegEncoderLayer` (norms first, CLIP's gelu) for one sequence.

    reduce: a linear layer behind it, where nothing else reads the block: it goes into the last weights.
    """

    def __init__(self, block: Any, groups: int = 1, reduce: nn.Linear | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.layer_norm1, block.layer_norm2
        self.attention, self.mlp = FoldedAttention(block.self_attn, groups), FoldedMlp(block.mlp, gelu=True)
        self.reduce: nn.Module = nn.Identity()
        if reduce is not None:
            weight, down = reduce.weight.detach(), block.mlp.fc2
            self.reduce = _pointwise(weight, reduce.bias)
            self.mlp.down = _pointwise(weight @ down.weight.detach() / GELU_SLOPE, weight @ down.bias.detach())

    def forward(self, x: Tensor, count: int, bias: Tensor | None = None) -> Tensor:
        """(1, h, w, C), of which `count` tokens are attended to; bias (heads, h * w, count) -> (1, h, w, C).

        The result has the channels of `reduce` where there is one.
        """
        y = self.norm1(x)
        x = x + self.attention(y, y, count, bias)
        return self.reduce(x) + self.mlp(self.norm2(x))

    def row(self, choose: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Only the token of x (1, 1, N, C) that `choose` (1, N), one-hot, names; bias (heads, 1, N) -> (1, C)."""
        y = self.norm1(x)
        chosen = choose @ x + self.attention(choose @ y, y, x.shape[2], bias)
        return (chosen + self.mlp(self.norm2(chosen)))[0, 0]


class FoldedVision(nn.Module):
    """Picture to the maps that the decoder reads, each reduced to its channels.

    Mean and std are in the patches' weights, and positions in one constant; pictures are not padded here.
    """

    rest: Tensor
    behind: Tensor

    def __init__(self, network: ClipSeg, res: int) -> None:
        super().__init__()
        conv, vision = network.vision.embeddings.patch_embedding, network.vision
        weight = conv.weight.detach() / network.std
        patches = nn.Conv2d(3, weight.shape[0], conv.kernel_size, conv.stride, bias=False)
        patches.weight = nn.Parameter(weight)
        self.patches: nn.Module = patches
        positions = network.positions(res).detach()
        offset = (weight * network.mean).sum((1, 2, 3))
        self.register_buffer("rest", positions[1:] - offset, persistent=False)
        # The class token, and zeros that fill up the map: `ROWS` rows, as few columns as hold all, an even number.
        self.count = len(positions)
        self.columns = 2 * -(-self.count // (2 * ROWS))
        behind = torch.zeros(ROWS * self.columns - self.count + 1, weight.shape[0])
        behind[0] = positions[0] + vision.embeddings.class_embedding.detach()
        self.register_buffer("behind", behind, persistent=False)
        self.norm = vision.pre_layrnorm
        *blocks, last = vision.encoder.layers
        reduces = cast(list[nn.Linear], list(network.decoder.reduces))
        self.blocks = nn.ModuleList(FoldedBlock(block, GROUPS) for block in blocks)
        self.blocks.append(FoldedBlock(last, GROUPS, reduces[0]))
        self.extract_layers = network.config.extract_layers
        self.reduces = nn.ModuleList(_pointwise(each.weight, each.bias) for each in reduces)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """(1, 3, res, res), RGB 0..255 -> of each extracted layer, the last first, (patches + 1, C)."""
        patches = self.patches(picture).permute(0, 2, 3, 1).flatten(0, 2)
        x = self.norm(torch.cat((patches + self.rest, self.behind)).view(1, ROWS, self.columns, -1))
        maps: list[Tensor] = []
        *blocks, last = cast(list[FoldedBlock], list(self.blocks))
        for index, block in enumerate(blocks):
            x = block(x, self.count)
            if index in self.extract_layers:
                maps.insert(0, self.reduces[-1 - len(maps)](x))
        return [each.flatten(0, 2)[: self.count] for each in (last(x, self.count), *maps)]


class FoldedText(nn.Module):
    """`ClipSeg.phrase` for one phrase; the last block answers only for the end of the text."""

    causal: Tensor

    def __init__(self, network: ClipSeg) -> None:
        super().__init__()
        text, length = network.text, network.config.context_length
        self.tokens, self.positions = text.embeddings.token_embedding, text.embeddings.position_embedding.weight
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in text.encoder.layers)
        self.norm, self.projection = text.final_layer_norm, network.text_projection
        # As large as the scores: an addition that broadcasts costs an NPU ten times as much.
        self.end_of_text = network.end_of_text
        bias = causal_bias(length).expand(network.config.text.heads, -1, -1).contiguous()
        self.register_buffer("causal", bias, persistent=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Int (1, T) -> (1, P)."""
        x = (self.tokens(token_ids[0]) + self.positions)[None, None]
        *blocks, last = cast(list[FoldedBlock], list(self.blocks))
        for block in blocks:
            x = block(x, x.shape[2], self.causal)
        end = first_end_of_text(token_ids, self.end_of_text, x.dtype)
        # What follows the end must stay out, though all tokens are keys.
        phrase: Tensor = self.projection(self.norm(last.row(end, x, end @ self.causal)))
        return phrase


class FoldedDecoder(nn.Module):
    """`ClipSeg.decode` for one picture, from maps that are reduced already."""

    def __init__(self, network: ClipSeg) -> None:
        super().__init__()
        decoder = network.decoder
        self.multiply, self.add = decoder.film_mul, decoder.film_add
        self.conditional = network.config.conditional_layer
        self.blocks = nn.ModuleList(FoldedDecoderBlock(block) for block in decoder.layers)
        self.pixels = FoldedPixels(decoder.transposed_convolution, network.config.refined)

    def forward(self, maps: Sequence[Tensor], phrase: Tensor) -> Tensor:
        """Maps (patches + 1, C), phrase (1, P) -> mask logits (res, res)."""
        x: Tensor | None = None
        for index, (reduced, block) in enumerate(zip(maps, self.blocks, strict=True)):
            x = reduced if x is None else reduced + x
            if index == self.conditional:
                x = self.multiply(phrase) * x + self.add(phrase)
            x = block(x)
        assert x is not None
        return self.pixels(x[:-1])


class FoldedDecoderBlock(nn.Module):
    """transformers' `CLIPSegDecoderLayer` (norms last, relu) for one sequence."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.attention, self.mlp = FoldedAttention(block.self_attn, 1), FoldedMlp(block.mlp, gelu=False)
        self.norm1, self.norm2 = block.layer_norm1, block.layer_norm2

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        tokens = x[None, None]
        tokens = self.norm1(tokens + self.attention(tokens, tokens, len(x)))
        mixed: Tensor = self.norm2(tokens + self.mlp(tokens))
        return mixed[0, 0]


class FoldedPixels(nn.Module):
    """The decoder's transposed convolutions as products and a rearrangement.

    Their kernels are as large as their strides: each cell makes its own pixels, by two products, the second of them the
    same for each place of the first; one rearrangement puts them in place.
    """

    def __init__(self, transposed: Any, refined: bool) -> None:
        super().__init__()
        if not refined:
            self.before: nn.Module = nn.Identity()
            self.side = transposed.kernel_size[0]
            self.last = _pointwise(transposed.weight[:, 0].flatten(1).T, transposed.bias.expand(self.side**2))
            return
        conv, _, first, _, second = transposed
        outer, inner = first.kernel_size[0], second.kernel_size[0]
        self.side = outer * inner
        wide = first.weight.permute(2, 3, 1, 0).flatten(0, 2)  # rows: place (outer x outer), then channel
        self.before = nn.Sequential(LastConv(conv), nn.ReLU(), _pointwise(wide, first.bias.repeat(outer**2)), nn.ReLU())
        pixels = torch.einsum("pq,rs,cij->pirjqsc", torch.eye(outer), torch.eye(outer), second.weight[:, 0].detach())
        self.last = _pointwise(pixels.flatten(4).flatten(0, 3), second.bias.expand(self.side**2))

    def forward(self, x: Tensor) -> Tensor:
        """(patches, C), row by row -> (res, res)."""
        cells = math.isqrt(len(x))
        maps = self.last(self.before(x.view(1, cells, cells, -1))).permute(0, 3, 1, 2)
        return F.pixel_shuffle(maps, self.side)[0, 0]


class LastConv(nn.Module):
    """A convolution on maps whose channels are last."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(1, h, w, C) -> (1, h, w, D)."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _pointwise(weight: Tensor, bias: Tensor | None) -> LastConv:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    conv.weight = nn.Parameter(weight.detach()[:, :, None, None].clone())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return LastConv(conv)
