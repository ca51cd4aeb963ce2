"""CLIPSeg in forms that an NPU likes: the same values, up to rounding, for one picture and one phrase.

Tokens are rows of a matrix. The class token is the last row: attention does not mind the order, and a map of patches
then needs no shift by one.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.export.rewrites.decoder import _linear
from promptseg.networks.clipseg.model import END_OF_TEXT, ClipSeg
from promptseg.networks.xdecoder.layers import causal_bias
from promptseg.networks.xdecoder.text_encoder import first_end_of_text

GELU_SLOPE = 1.702  # of CLIP's gelu, x * sigmoid(1.702 x)


class FoldedAttention(nn.Module):
    """transformers' `CLIPSegAttention` for one sequence, as matrix products.

    The scores' scale is in the query's weights. The keys' constant adds the same to all scores of a query, which
    softmax ignores; that of the values passes through, because attention sums to 1, into the output's.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads, scale = attention.num_heads, attention.scale
        self.query = _linear(attention.q_proj.weight.detach() * scale, attention.q_proj.bias.detach() * scale)
        self.key = _unbiased(attention.k_proj.weight)
        self.value = _unbiased(attention.v_proj.weight)
        self.out = _linear(attention.out_proj.weight.detach(), attention.out_proj(attention.v_proj.bias).detach())

    def forward(self, queries: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries (Q, C) and keys and values from x (N, C); bias (heads, Q, N) -> (Q, C)."""
        q, k, v = (self._split(each) for each in (self.query(queries), self.key(x), self.value(x)))
        scores = q @ k.transpose(1, 2)
        attended = (scores if bias is None else scores + bias).softmax(-1) @ v
        return self.out(attended.transpose(0, 1).reshape(queries.shape))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.heads, -1)).transpose(0, 1)  # (heads, N, C / heads)


class FoldedGeluMlp(nn.Module):
    """transformers' `CLIPSegMLP` with CLIP's gelu: its slope is in the weights, so that x * sigmoid(x) is left."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.up = _linear(mlp.fc1.weight.detach() * GELU_SLOPE, mlp.fc1.bias.detach() * GELU_SLOPE)
        self.down = _linear(mlp.fc2.weight.detach() / GELU_SLOPE, mlp.fc2.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        wide = self.up(x)
        narrow: Tensor = self.down(wide * torch.sigmoid(wide))
        return narrow


class FoldedBlock(nn.Module):
    """transformers' `CLIPSegEncoderLayer` (norms first, CLIP's gelu) for one sequence."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.layer_norm1, block.layer_norm2
        self.attention, self.mlp = FoldedAttention(block.self_attn), FoldedGeluMlp(block.mlp)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(N, C), bias (heads, N, N) -> (N, C)."""
        y = self.norm1(x)
        x = x + self.attention(y, y, bias)
        return x + self.mlp(self.norm2(x))

    def row(self, choose: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Only the row of x that `choose` (1, N), one-hot, names; bias (heads, 1, N) -> (1, C)."""
        y = self.norm1(x)
        chosen = choose @ x + self.attention(choose @ y, y, bias)
        return chosen + self.mlp(self.norm2(chosen))


class FoldedVision(nn.Module):
    """Picture to the three maps that the decoder reads, each reduced to its channels.

    Mean and std are in the patches' weights, and positions in one constant; pictures are not padded here.
    """

    rest: Tensor
    first: Tensor

    def __init__(self, network: ClipSeg, res: int) -> None:
        super().__init__()
        conv, vision = network.vision.embeddings.patch_embedding, network.vision
        weight = conv.weight.detach() / network.std
        self.patches = nn.Conv2d(3, weight.shape[0], conv.kernel_size, conv.stride, bias=False)
        self.patches.weight = nn.Parameter(weight)
        positions = network.positions(res).detach()
        offset = (weight * network.mean).sum((1, 2, 3))
        self.register_buffer("rest", positions[1:] - offset, persistent=False)
        self.register_buffer("first", positions[:1] + vision.embeddings.class_embedding.detach(), persistent=False)
        self.norm = vision.pre_layrnorm
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in vision.encoder.layers)
        self.reduces = network.decoder.reduces
        self.extract_layers = tuple(reversed(network.config.extract_layers))

    def forward(self, picture: Tensor) -> list[Tensor]:
        """(1, 3, res, res), RGB 0..255 -> of each extracted layer, the last first, (patches + 1, C)."""
        patches = self.patches(picture).permute(0, 2, 3, 1).flatten(0, 2)
        x = self.norm(torch.cat((patches + self.rest, self.first)))
        states = []
        for block in cast(Iterable[FoldedBlock], self.blocks):
            x = block(x)
            states.append(x)
        chosen = [states[layer] for layer in self.extract_layers]
        return [reduce(state) for reduce, state in zip(self.reduces, chosen, strict=True)]


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
        bias = causal_bias(length).expand(network.config.text.heads, -1, -1).contiguous()
        self.register_buffer("causal", bias, persistent=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Int (1, T) -> (1, P)."""
        x = self.tokens(token_ids[0]) + self.positions
        *blocks, last = cast(list[FoldedBlock], list(self.blocks))
        for block in blocks:
            x = block(x, self.causal)
        end = first_end_of_text(token_ids, END_OF_TEXT, x.dtype)
        # What follows the end must stay out, though all rows are keys.
        return self.projection(self.norm(last.row(end, x, end @ self.causal)))


class FoldedDecoder(nn.Module):
    """`ClipSeg.decode` for one picture, from maps that are reduced already.

    Both transposed convolutions have kernels as large as their strides: each cell makes its own 16x16 pixels, by two
    products, the second of them the same for each of 16 groups; one rearrangement puts them in place.
    """

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
        self.attention, self.mlp = FoldedAttention(block.self_attn), block.mlp
        self.norm1, self.norm2 = block.layer_norm1, block.layer_norm2

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        x = self.norm1(x + self.attention(x, x))
        mixed: Tensor = self.norm2(x + self.mlp(x))
        return mixed


class FoldedPixels(nn.Module):
    """The decoder's transposed convolutions as 1x1 convolutions and a rearrangement."""

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
        self.before = nn.Sequential(conv, nn.ReLU(), _pointwise(wide, first.bias.repeat(outer**2)), nn.ReLU())
        pixels = torch.einsum("pq,rs,cij->pirjqsc", torch.eye(outer), torch.eye(outer), second.weight[:, 0].detach())
        matrix = pixels.flatten(4, 6).flatten(0, 3)
        self.last = _pointwise(matrix, second.bias.expand(self.side**2))

    def forward(self, x: Tensor) -> Tensor:
        """(patches, C), row by row -> (res, res)."""
        cells = int(x.shape[0] ** 0.5)
        maps = x.unflatten(0, (cells, cells)).permute(2, 0, 1)[None]
        return F.pixel_shuffle(self.last(self.before(maps)), self.side)[0, 0]


def _unbiased(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.detach().clone())
    return linear


def _pointwise(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    conv.weight, conv.bias = (
        nn.Parameter(weight.detach()[:, :, None, None].clone()),
        nn.Parameter(bias.detach().clone()),
    )
    return conv
