"""Any of timm's backbones that hands out maps at strides 4, 8, 16 and 32, under X-Decoder's decoders.

Sources: Wightman, "PyTorch Image Models" (2019), and of each backbone the paper that timm names. Batch norms keep the
statistics that they came with: pictures are few in a step of fine-tuning, and an export folds the norms into weights.
"""

import difflib
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

STRIDES = (4, 8, 16, 32)
EXAMPLES = "tf_efficientnet_lite0, mobilenetv4_conv_small, repvit_m1, fastvit_t8 or resnet18"


@dataclass(frozen=True)
class TimmConfig:
    """A backbone by its name in timm, and what `timm_config` read there.

    channels: of the maps at STRIDES; mean, std: of the pictures it was trained on, RGB 0..255.
    """

    name: str
    channels: tuple[int, int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def timm_config(name: str) -> TimmConfig:
    """Read a backbone's channels, mean and std from timm; no weights are made.

    Raises ValueError for a name that timm lacks, and for a backbone without maps at the four strides of STRIDES for
    pictures of any size.
    """
    import timm  # a second or more: only where there is such a backbone

    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(
            f"got the backbone {name!r}, wanted one that timm {timm.__version__} has"
            f"{': the nearest are ' + ', '.join(near) if near else f', such as {EXAMPLES}'}"
        )
    try:
        with torch.device("meta"):
            encoder: Any = timm.create_model(name, features_only=True).eval()
            reductions = encoder.feature_info.reduction()
            maps = encoder(torch.zeros(1, 3, 96, 96)) if set(STRIDES) <= set(reductions) else []
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError, LookupError) as error:
        raise ValueError(
            f"got the backbone {name!r}, from which timm takes no maps for a picture of any size "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); wanted one like {EXAMPLES}"
        ) from error
    if not maps:
        raise ValueError(
            f"got the backbone {name!r}, whose maps are at strides {', '.join(map(str, reductions))}; wanted strides "
            f"{', '.join(map(str, STRIDES))} among them, as of {EXAMPLES}"
        )
    picked = [_channels_first(encoder, maps[index]) for index in _places(reductions)]
    first, second, third, fourth = (each.shape[1] for each in picked)
    source = encoder.pretrained_cfg
    mean, std = ([round(255 * value, 4) for value in source[key]] for key in ("mean", "std"))
    return TimmConfig(name, (first, second, third, fourth), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


class TimmBackbone(nn.Module):
    """Normalised picture float32 [B, 3, H, W] -> four maps [B, C, ceil(H / s), ceil(W / s)] at strides 4, 8, 16, 32.

    A picture is zero-padded to a multiple of 32; what the maps have beyond it is cut off.
    """

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        import timm

        self.encoder: Any
        with torch.device("cpu"):  # never shapes only: some backbones compute tables that no checkpoint holds
            self.encoder = timm.create_model(config.name, features_only=True)
        self.places = _places(self.encoder.feature_info.reduction())
        for norm in self._norms():
            norm.num_batches_tracked = None  # of no use to statistics that stay, and no float
            norm.track_running_stats = False  # or loading would ask for it

    def train(self, mode: bool = True) -> Self:
        """Switch to training, except for the batch norms, which stay as they are."""
        super().train(mode)
        for norm in self._norms():
            norm.eval()
        return self

    def forward(self, picture: Tensor) -> list[Tensor]:
        """See the class."""
        height, width = picture.shape[2:]
        beyond = (0, -width % STRIDES[-1], 0, -height % STRIDES[-1])
        maps = self.encoder(F.pad(picture, beyond) if any(beyond) else picture)
        picked = [_channels_first(self.encoder, maps[index]) for index in self.places]
        if not any(beyond):
            return picked
        return [each[:, :, : -(-height // s), : -(-width // s)] for s, each in zip(STRIDES, picked, strict=True)]

    def _norms(self) -> list[_BatchNorm]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]


def _places(reductions: list[int]) -> list[int]:
    """Of maps with these strides, the index of the last at each of STRIDES."""
    return [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]


def _channels_first(encoder: Any, x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2) if str(getattr(encoder, "output_fmt", "NCHW")).endswith("NHWC") else x
