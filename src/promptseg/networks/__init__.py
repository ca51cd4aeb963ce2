"""Networks that can be trained, exported and asked: functions of tensors, without files, devices or tokenizers.

Imports torch and timm only, and nothing else of this project. `model` in params.yaml names one of BUILDERS, or, after
TIMM, a backbone of timm. Start reading at `xdecoder.model.XDecoder`.
"""

from collections.abc import Callable

from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoderConfig, focal_t, mobile, nano, on_timm, vit_b

BUILDERS: dict[str, Callable[[MaskAttention], XDecoderConfig]] = {
    "nano": nano,
    "mobile": mobile,
    "focal_t": focal_t,
    "vit_b": vit_b,
}
TIMM = "timm/"


def architecture(model: str, mask_attention: MaskAttention) -> XDecoderConfig:
    """Return the configuration that `model` names. Raises ValueError for a backbone that will not do."""
    if model.startswith(TIMM):
        return on_timm(model.removeprefix(TIMM), mask_attention)
    return BUILDERS[model](mask_attention)
