"""X-Decoder's pixel decoder: a transformer on the coarsest map, then a feature pyramid down to stride 4.

Source: Zou et al., "Generalized Decoding for Pixel, Image, and Language" (2023), after MaskFormer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.xdecoder.layers import Attention, sine_positions


@dataclass(frozen=True)
class PixelDecoderConfig:
    """Sizes of the pixel decoder.

    maps_carry_positions: whether position encodings are added to the coarsest map itself, and not only to what its
    tokens are compared by; every map and mask then knows left from right.
    """

    dim: int
    mask_dim: int
    heads: int
    ffn_dim: int
    encoder_layers: int
    norm_groups: int
    maps_carry_positions: bool = False


class EncoderLayer(nn.Module):
    """Post-norm transformer layer; positions are added to queries and keys only (B, T, C)."""

    def __init__(self, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config.dim, config.heads)
        self.norm1 = nn.LayerNorm(config.dim)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.ReLU(), nn.Linear(config.ffn_dim, config.dim)
        )
        self.norm2 = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, T, C), positions (T, C) -> (B, T, C)."""
        placed = x + positions
        x = self.norm1(x + self.attention(placed, placed, x))
        return self.norm2(x + self.ffn(x))


class ConvNorm(nn.Sequential):
    """Convolution without bias, then group norm; same size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(groups, outputs)


class PixelDecoder(nn.Module):
    """Four maps, finest first -> mask features [B, mask_dim, h, w] at stride 4, maps [B, dim, ., .] at 32, 16, 8."""

    def __init__(self, channels: Sequence[int], config: PixelDecoderConfig) -> None:
        super().__init__()
        dim = config.dim
        self.dim = dim
        self.maps_carry_positions = config.maps_carry_positions
        self.input_proj = nn.Conv2d(channels[-1], dim, 1)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        finer = channels[-2::-1]  # strides 16, 8, 4
        self.lateral = nn.ModuleList(ConvNorm(inputs, dim, 1, config.norm_groups) for inputs in finer)
        self.output = nn.ModuleList(ConvNorm(dim, dim, 3, config.norm_groups) for _ in channels)  # strides 32 to 4
        self.mask_features = nn.Conv2d(dim, config.mask_dim, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See the class."""
        coarsest, *outputs = self.output  # a slice of the list would lend its odd name to the exported nodes
        y = F.relu(coarsest(self._encode(self.input_proj(maps[-1]))))
        pyramid = [y]
        for lateral, output, finer in zip(self.lateral, outputs, maps[-2::-1], strict=True):
            y = lateral(finer) + F.interpolate(y, size=finer.shape[-2:], mode="nearest")
            y = F.relu(output(y))
            pyramid.append(y)
        return self.mask_features(y), pyramid[:3]

    def _encode(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        positions = sine_positions(height, width, self.dim, x)
        tokens = x.flatten(2).transpose(1, 2)  # (B, h * w, C)
        if self.maps_carry_positions:
            tokens = tokens + positions
        for layer in self.encoder:
            tokens = layer(tokens, positions)
        return tokens.transpose(1, 2).unflatten(2, (height, width))
