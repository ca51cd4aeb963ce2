"""Networks that can be trained, exported and asked: functions of tensors, without files, devices or tokenizers.

Imports torch, timm and transformers' layers, and nothing else of this project. `Network` (network.py) is what the rest
of the chain uses of one; FAMILIES says which kinds there are, BUILDERS which sizes `model` in params.yaml names. What
differs between families elsewhere has one table each: what one learns from (training/losses.py), how it is deployed
(export/deployed_graph.py), whose weights it can start from (checkpoints/start.py). docs/extend.md adds one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from promptseg.networks.clipseg.model import ClipSeg, ClipSegConfig, rd64_refined
from promptseg.networks.clipseg.model import config_from_json as clipseg_from_json
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import (
    XDecoder,
    XDecoderConfig,
    config_from_json,
    focal_t,
    mobile,
    nano,
    on_timm,
    photo,
    vit_b,
)

TIMM = "timm/"


@dataclass(frozen=True)
class Family:
    """A kind of network: its class, and how its configuration is read from a checkpoint's JSON."""

    network: Callable[[Any], Network]
    config: type
    config_from_json: Callable[[Mapping[str, Any]], Any]


FAMILIES: dict[str, Family] = {
    "xdecoder": Family(XDecoder, XDecoderConfig, config_from_json),
    "clipseg": Family(ClipSeg, ClipSegConfig, clipseg_from_json),
}
BUILDERS: dict[str, Callable[[MaskAttention], Any]] = {
    "nano": nano,
    "mobile": mobile,
    "photo": photo,
    "focal_t": focal_t,
    "vit_b": vit_b,
    "clipseg": lambda _: rd64_refined(),
}


def architecture(model: str, mask_attention: MaskAttention) -> Any:
    """Return the configuration that `model` names. Raises ValueError for a backbone that will not do."""
    if model.startswith(TIMM):
        return on_timm(model.removeprefix(TIMM), mask_attention)
    return BUILDERS[model](mask_attention)


def family_of(config: Any) -> str:
    """Return the name in FAMILIES of the family that a configuration is of."""
    return next(name for name, family in FAMILIES.items() if type(config) is family.config)


def build(config: Any) -> Network:
    """Build the network of a configuration, with drawn weights."""
    return FAMILIES[family_of(config)].network(config)


def build_on_meta(config: Any) -> Network:
    """A network whose weights are shapes without memory, for `load_state_dict(..., strict=True, assign=True)`."""
    with torch.device("meta"):
        return build(config)
