"""SAM's image encoder (a ViT with windows, timm's) and a simple pyramid on its last map, as X-Decoder's other backbone.

Sources: Kirillov et al., "Segment Anything" (2023); Li et al., "Exploring Plain Vision Transformer Backbones for Object
Detection" (2022). Positions are learnt for one size and resized for others: absolute ones bicubically with antialias,
relative ones linearly.
"""

from dataclasses import dataclass
from functools import partial

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
        # A second or more, and torchvision with it: only where there is such a backbone.
        from timm.models.vision_transformer_sam import Attention, VisionTransformerSAM

        self.encoder = VisionTransformerSAM(
            img_size=PATCH * config.position_side,
            patch_size=PATCH,
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.heads,
            norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),  # type: ignore[arg-type]  # called alike
            use_rel_pos=True,
            window_size=config.window,
            global_attn_indexes=config.global_blocks,
            num_classes=0,
        )
        self.encoder.neck = nn.Sequential()  # nothing: the pyramid stands in its place
        for module in self.encoder.blocks.modules():
            if isinstance(module, Attention):
                module.fused_attn = False  # type: ignore[misc]  # fused, torch's exporter refuses its bias
        self.pyramid = _pyramid(config.dim, config.channels)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """See the class."""
        height, width = picture.shape[2:]
        x = self.encoder.forward_features(F.pad(picture, (0, -width % PATCH, 0, -height % PATCH)))
        even = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        maps = [branch(even if stride == 32 else x) for stride, branch in zip(STRIDES, self.pyramid, strict=True)]
        return [each[:, :, : -(-height // s), : -(-width // s)] for s, each in zip(STRIDES, maps, strict=True)]
