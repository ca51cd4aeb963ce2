"""SAM's image encoder (a ViT with windows) and a simple pyramid on its last map, as X-Decoder's other backbone.

Sources: Kirillov et al., "Segment Anything" (2023); Li et al., "Exploring Plain Vision Transformer Backbones for Object
Detection" (2022). Maps are (B, H, W, C) inside the transformer. Positions are learnt for one size and resized for
others: absolute ones bicubically with antialias, relative ones linearly, as timm's SAM encoder does. Written here and
not taken from timm, which refuses sides that 16 does not divide and brings torchvision along; its version 1.0.31 was
found equal at 512 px, resized positions and all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 16
STRIDES = (4, 8, 16, 32)
NORM_EPS = 1e-6


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a windowed ViT and of its pyramid.

    Blocks attend within windows of `window` x `window` patches, those of `global_blocks` to all patches. Positions are
    learnt for `position_side` x `position_side` patches. `channels` are those of the maps at strides 4, 8, 16, 32.
    """

    dim: int
    depth: int
    heads: int
    window: int
    global_blocks: tuple[int, ...]
    position_side: int
    channels: tuple[int, int, int, int]


class VitAttention(nn.Module):
    """Self-attention over a map (B, H, W, C), with a bias from each query to each key's row and column.

    The tables hold one vector for every distance from -(side - 1) to side - 1.
    """

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_rows = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.relative_columns = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        height, width = x.shape[1:3]
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(q, height, width))
        return self.proj(attended.transpose(1, 2).flatten(2).view(x.shape))

    def _bias(self, q: Tensor, height: int, width: int) -> Tensor:
        """Queries (B, heads, H * W, C / heads) -> (B, heads, H * W, H * W)."""
        q = q.unflatten(2, (height, width))
        rows = q @ distances(self.relative_rows, height).transpose(1, 2)  # (B, heads, H, W, H): (H, C, H) per row
        columns = (q.transpose(2, 3) @ distances(self.relative_columns, width).transpose(1, 2)).transpose(2, 3)
        return (rows.unsqueeze(5) + columns.unsqueeze(4)).flatten(4).flatten(2, 3)


def distances(table: Tensor, side: int) -> Tensor:
    """Table [2 * any side - 1, C] -> [side, side, C]: the vector of query position i and key position j."""
    if len(table) != 2 * side - 1:
        table = F.interpolate(table.T[None], size=2 * side - 1, mode="linear")[0].T
    steps = torch.arange(side, device=table.device)
    return table[steps[:, None] - steps[None, :] + side - 1]


class VitBlock(nn.Module):
    """Pre-norm transformer block on (B, H, W, C); with `window` 0, over all patches."""

    def __init__(self, config: VitConfig, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.attention = VitAttention(config.dim, config.heads, window or config.position_side)
        self.norm2 = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, 4 * config.dim), nn.GELU(), nn.Linear(4 * config.dim, config.dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + (self._in_windows(self.norm1(x)) if self.window else self.attention(self.norm1(x)))
        return x + self.mlp(self.norm2(x))

    def _in_windows(self, x: Tensor) -> Tensor:
        """Attend within windows; the map is first zero-padded to whole ones, and the padding takes part."""
        batch, height, width, dim = x.shape
        down, across, side = -(-height // self.window), -(-width // self.window), self.window
        x = F.pad(x, (0, 0, 0, across * side - width, 0, down * side - height))
        x = x.view(batch, down, side, across, side, dim).transpose(2, 3).flatten(0, 2)
        x = self.attention(x).view(batch, down, across, side, side, dim).transpose(2, 3)
        return x.reshape(batch, down * side, across * side, dim)[:, :height, :width]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)


def _pyramid(dim: int, channels: tuple[int, int, int, int]) -> nn.ModuleList:
    """Four branches from the map at stride 16: enlarged fourfold and twofold, as it is, and halved."""
    half, quarter = dim // 2, dim // 4
    return nn.ModuleList(
        (
            nn.Sequential(
                nn.ConvTranspose2d(dim, half, 2, 2), _norm(half), nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2), _norm(quarter),
                nn.Conv2d(quarter, channels[0], 1), _norm(channels[0]), nn.GELU(),
            ),
            nn.Sequential(
                nn.ConvTranspose2d(dim, half, 2, 2), _norm(half),
                nn.Conv2d(half, channels[1], 1), _norm(channels[1]), nn.GELU(),
            ),
            nn.Sequential(nn.Conv2d(dim, channels[2], 1), _norm(channels[2]), nn.GELU()),
            nn.Sequential(
                nn.Conv2d(dim, 2 * dim, 2, 2), _norm(2 * dim),
                nn.Conv2d(2 * dim, channels[3], 1), _norm(channels[3]), nn.GELU(),
            ),
        )
    )  # fmt: skip


class VitBackbone(nn.Module):
    """Normalised picture float32 [B, 3, H, W] -> four maps [B, C, ceil(H / s), ceil(W / s)] at strides 4, 8, 16, 32.

    A picture is zero-padded to whole patches, and the map of patches to an even side for stride 32; what the finer maps
    have beyond the picture is cut off. Nothing is padded or cut where 32 divides the side.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, config.dim, PATCH, PATCH)
        side = config.position_side
        self.positions = nn.Parameter(torch.empty(1, side, side, config.dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(
            VitBlock(config, 0 if index in config.global_blocks else config.window) for index in range(config.depth)
        )
        self.pyramid = _pyramid(config.dim, config.channels)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """See the class."""
        height, width = picture.shape[2:]
        x = self.patch_embed(F.pad(picture, (0, -width % PATCH, 0, -height % PATCH))).permute(0, 2, 3, 1)
        x = x + self._positions(x.shape[1], x.shape[2])
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2)
        even = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        maps = [branch(even if stride == 32 else x) for stride, branch in zip(STRIDES, self.pyramid, strict=True)]
        return [each[:, :, : -(-height // s), : -(-width // s)] for s, each in zip(STRIDES, maps, strict=True)]

    def _positions(self, height: int, width: int) -> Tensor:
        """[1, height, width, C]."""
        if self.positions.shape[1:3] == (height, width):
            return self.positions
        channels_first = self.positions.permute(0, 3, 1, 2)
        return F.interpolate(channels_first, (height, width), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
