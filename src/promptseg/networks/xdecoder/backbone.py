"""FocalNet with depth-wise convolutions in each block, as X-Decoder uses it.

Sources: Yang et al., "Focal Modulation Networks" (2022); Zou et al., "Generalized Decoding for Pixel, Image, and
Language" (2023). Maps are (B, H, W, C) inside a stage, so that linear layers and norms need no copies; convolutions see
the same memory as channels-last (B, C, H, W).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class FocalConfig:
    """Sizes of a Focal backbone; the tuples hold one number per stage."""

    embed_dim: int
    depths: tuple[int, int, int, int]
    focal_levels: tuple[int, int, int, int]
    focal_windows: tuple[int, int, int, int]
    layer_scale_init: float

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps at strides 4, 8, 16, 32."""
        return tuple(self.embed_dim * 2**stage for stage in range(4))


class DepthwiseConv(nn.Conv2d):
    """k x k depth-wise convolution on (B, H, W, C), same size."""

    def __init__(self, dim: int, kernel: int, bias: bool) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class FocalModulation(nn.Module):
    """Aggregate context at several scales, gate it per position, and multiply it onto the query (B, H, W, C)."""

    def __init__(self, dim: int, levels: int, window: int) -> None:
        super().__init__()
        self.dim = dim
        self.levels = levels
        self.input_proj = nn.Linear(dim, 2 * dim + levels + 1)
        self.context_convs = nn.ModuleList(
            DepthwiseConv(dim, window + 2 * level, bias=False) for level in range(levels)
        )
        self.context_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        query, context, gates = self.input_proj(x).split((self.dim, self.dim, self.levels + 1), dim=3)
        total: Tensor | None = None
        for level, conv in enumerate(self.context_convs):
            context = F.gelu(conv(context))
            gated = context * gates[..., level : level + 1]
            total = gated if total is None else total + gated
        everywhere = F.gelu(context.mean((1, 2), keepdim=True))
        total = everywhere * gates[..., self.levels :] + (0 if total is None else total)
        return self.output_proj(query * self.context_proj(total / (self.levels + 1)))


class FocalBlock(nn.Module):
    """Depth-wise convolution, modulation, depth-wise convolution, MLP; post-norm with layer scale (B, H, W, C)."""

    def __init__(self, dim: int, levels: int, window: int, layer_scale_init: float) -> None:
        super().__init__()
        self.local1 = DepthwiseConv(dim, 3, bias=True)
        self.modulation = FocalModulation(dim, levels, window)
        self.norm1 = nn.LayerNorm(dim)
        self.scale1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.local2 = DepthwiseConv(dim, 3, bias=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.norm2 = nn.LayerNorm(dim)
        self.scale2 = nn.Parameter(torch.full((dim,), layer_scale_init))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.local1(x)
        x = self.norm1(x + self.scale1 * self.modulation(x))
        x = x + self.local2(x)
        return self.norm2(x + self.scale2 * self.mlp(x))


class Downsample(nn.Module):
    """Strided convolution and norm; the map is first zero-padded to a multiple of the stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C')."""
        pad_h, pad_w = -x.shape[1] % self.stride, -x.shape[2] % self.stride
        x = F.pad(x.permute(0, 3, 1, 2), (0, pad_w, 0, pad_h))
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class FocalStage(nn.Module):
    """One resolution: a downsampling layer, then blocks, then a norm for the map that is handed out."""

    def __init__(self, downsample: Downsample, blocks: Sequence[FocalBlock], dim: int) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.output_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) -> the map for the next stage (B, h, w, C') and the normalised one for the decoder."""
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x, self.output_norm(x)


class FocalBackbone(nn.Module):
    """Normalised picture float32 [B, 3, H, W] -> four maps [B, C, ceil(H / s), ceil(W / s)] at strides 4, 8, 16, 32."""

    def __init__(self, config: FocalConfig) -> None:
        super().__init__()
        stages = []
        for index, dim in enumerate(config.channels):
            downsample = Downsample(3, dim, 7, 4, 3) if index == 0 else Downsample(dim // 2, dim, 3, 2, 1)
            blocks = [
                FocalBlock(dim, config.focal_levels[index], config.focal_windows[index], config.layer_scale_init)
                for _ in range(config.depths[index])
            ]
            stages.append(FocalStage(downsample, blocks, dim))
        self.stages = nn.ModuleList(stages)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """See the class."""
        x = picture.permute(0, 2, 3, 1)
        maps = []
        for stage in self.stages:
            x, normalised = stage(x)
            maps.append(normalised.permute(0, 3, 1, 2))
        return maps
