"""The published X-Decoder's key names, ours beside them, and what else its files may hold.

Rows are (published name, our name, leaves); a row without leaves names one tensor. `key_table` spells them out for a
configuration, so that every key is known by its full name, and nothing is renamed by a pattern.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from promptseg.networks.xdecoder.backbone import FocalConfig
from promptseg.networks.xdecoder.model import MEAN, STD, XDecoderConfig
from promptseg.networks.xdecoder.timm_backbone import TimmConfig
from promptseg.networks.xdecoder.vit_backbone import VitConfig

Change = Literal["renamed", "squeezed", "cut"]
CHANGES: dict[Change, str] = {
    "renamed": "the same values",
    "squeezed": "a 1x1 convolution [O, I, 1, 1] there, the same linear layer [O, I] here",
    "cut": "the last row is the class query, which grounding queries never see; the object queries' rows are kept",
}

_CAPTIONING = "captioning: another task's head"
_BOXES = "boxes: another task's head"
DROPPED = {
    "sem_seg_head.predictor.caping_embed": _CAPTIONING,
    "sem_seg_head.predictor.pos_embed_caping.weight": _CAPTIONING,
    **{
        f"sem_seg_head.predictor.bbox_embed.layers.{layer}.{leaf}": _BOXES
        for layer in range(3)
        for leaf in ("weight", "bias")
    },
    "backbone_proj": "retrieval: another task's head",
    "criterion.empty_weight": "a buffer of the training loss",
    "sem_seg_head.predictor.self_attn_mask": "a buffer made from the number of queries; ours has no such mask",
    "pixel_mean": "a buffer; ours has the same constant",
    "pixel_std": "a buffer; ours has the same constant",
}
CONSTANTS = {"pixel_mean": MEAN, "pixel_std": STD}  # dropped only where they are what ours has
BESIDE_THE_MODEL = {  # entries of a file whose weights are under "model"
    **dict.fromkeys(("optimizer", "scheduler", "lr_scheduler", "scaler", "trainer"), "state of a training run"),
    **dict.fromkeys(("epoch", "iteration", "step"), "how far a training run was"),
    **dict.fromkeys(("__author__", "matching_heuristics"), "a note of the tool that wrote the file"),
}
PREFIXES = ("module.", "model.")  # of a network that was wrapped when its weights were stored

_Row = tuple[str, str, tuple[str, ...]]
_ONE: tuple[str, ...] = ()
_BOTH = ("weight", "bias")
_ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
_OUR_LEAVES = {"in_proj_weight": "in_proj.weight", "in_proj_bias": "in_proj.bias"}

_FOCAL_BLOCK: tuple[_Row, ...] = (
    ("gamma_1", "scale1", _ONE),
    ("gamma_2", "scale2", _ONE),
    ("dw1", "local1", _BOTH),
    ("dw2", "local2", _BOTH),
    ("norm1", "norm1", _BOTH),
    ("norm2", "norm2", _BOTH),
    ("modulation.f", "modulation.input_proj", _BOTH),
    ("modulation.h", "modulation.context_proj", _BOTH),
    ("modulation.proj", "modulation.output_proj", _BOTH),
    ("mlp.fc1", "mlp.0", _BOTH),
    ("mlp.fc2", "mlp.2", _BOTH),
)
_DOWNSAMPLE: tuple[_Row, ...] = (("proj", "conv", _BOTH), ("norm", "norm", _BOTH))
_VIT_BLOCK: tuple[_Row, ...] = (
    ("norm1", "norm1", _BOTH),
    ("attn.qkv", "attn.qkv", _BOTH),
    ("attn.proj", "attn.proj", _BOTH),
    ("attn.rel_pos_h", "attn.rel_pos_h", _ONE),
    ("attn.rel_pos_w", "attn.rel_pos_w", _ONE),
    ("norm2", "norm2", _BOTH),
    ("mlp.lin1", "mlp.fc1", _BOTH),
    ("mlp.lin2", "mlp.fc2", _BOTH),
)
_VIT_PYRAMID: tuple[_Row, ...] = (
    *((f"down_4.{layer}", f"0.{layer}", _BOTH) for layer in (0, 1, 3, 4, 5, 6)),
    *((f"down_8.{layer}", f"1.{layer}", _BOTH) for layer in (0, 1, 2, 3)),
    *((f"down_16.{layer}", f"2.{layer}", _BOTH) for layer in (0, 1)),
    *((f"down_32.{layer}", f"3.{layer}", _BOTH) for layer in (0, 1, 2, 3)),
)
_TEXT: tuple[_Row, ...] = (
    ("lang_proj", "text_encoder.projection", _ONE),
    ("logit_scale", "log_temperature", _ONE),
    ("lang_encoder.positional_embedding", "text_encoder.positional_embedding", _ONE),
    ("lang_encoder.token_embedding", "text_encoder.token_embedding", ("weight",)),
    ("lang_encoder.ln_final", "text_encoder.final_norm", _BOTH),
)
_TEXT_BLOCK: tuple[_Row, ...] = (
    ("ln_1", "norm1", _BOTH),
    ("ln_2", "norm2", _BOTH),
    ("attn", "attention", _ATTENTION),
    ("mlp.c_fc", "mlp.up", _BOTH),
    ("mlp.c_proj", "mlp.down", _BOTH),
)
_PIXEL_DECODER: tuple[_Row, ...] = (
    ("input_proj", "input_proj", _BOTH),
    ("mask_features", "mask_features", _BOTH),
    *((f"adapter_{level}.norm", f"lateral.{3 - level}.norm", _BOTH) for level in (1, 2, 3)),
    *((f"adapter_{level}", f"lateral.{3 - level}.conv", ("weight",)) for level in (1, 2, 3)),
    *((f"layer_{level}.norm", f"output.{4 - level}.norm", _BOTH) for level in (1, 2, 3, 4)),
    *((f"layer_{level}", f"output.{4 - level}.conv", ("weight",)) for level in (1, 2, 3, 4)),
)
_ENCODER_LAYER: tuple[_Row, ...] = (
    ("self_attn", "attention", _ATTENTION),
    ("linear1", "ffn.0", _BOTH),
    ("linear2", "ffn.2", _BOTH),
    ("norm1", "norm1", _BOTH),
    ("norm2", "norm2", _BOTH),
)
_MASK_DECODER: tuple[_Row, ...] = (
    ("decoder_norm", "norm", _BOTH),
    ("query_feat.weight", "query_content", _ONE),
    ("query_embed.weight", "query_position", _ONE),
    ("level_embed.weight", "level_embedding", _ONE),
    ("class_embed", "class_projection", _ONE),
    *((f"mask_embed.layers.{layer}", f"mask_embedding.{2 * layer}", _BOTH) for layer in range(3)),
)


@dataclass(frozen=True)
class Target:
    """Where a published tensor goes: our key, and what becomes of its values."""

    key: str
    change: Change


def key_table(config: XDecoderConfig) -> dict[str, Target]:
    """Every published key of the grounding path of `config`, spelled out, without a wrapper's prefix.

    Nobody published an X-Decoder on a backbone of timm's.
    """
    assert not isinstance(config.backbone, TimmConfig)
    head, pixels = "sem_seg_head.predictor.", "sem_seg_head.pixel_decoder."
    text = f"{head}lang_encoder."
    pairs = [
        *_backbone(config.backbone),
        *_under(text, "", _TEXT),
        *_numbered(f"{text}lang_encoder.resblocks", "text_encoder.blocks", config.text.layers, _TEXT_BLOCK),
        *_under(pixels, "pixel_decoder.", _PIXEL_DECODER),
        *_numbered(
            f"{pixels}transformer.encoder.layers",
            "pixel_decoder.encoder",
            config.pixel_decoder.encoder_layers,
            _ENCODER_LAYER,
        ),
        *_under(head, "mask_decoder.", _MASK_DECODER),
        *_decoder_layers(head, config.mask_decoder.layers),
    ]
    return {published: Target(ours, _change(published)) for published, ours in pairs}


def _change(published: str) -> Change:
    if published.endswith("modulation.h.weight"):
        return "squeezed"
    return "cut" if published.endswith(("query_feat.weight", "query_embed.weight")) else "renamed"


def _backbone(config: FocalConfig | VitConfig) -> Iterator[tuple[str, str]]:
    if isinstance(config, VitConfig):
        yield from _under("backbone.", "backbone.encoder.", (("pos_embed", "pos_embed", _ONE),))
        yield from _under("backbone.", "backbone.encoder.", (("patch_embed.proj", "patch_embed.proj", _BOTH),))
        yield from _numbered("backbone.blocks", "backbone.encoder.blocks", config.depth, _VIT_BLOCK)
        yield from _under("backbone.neck.", "backbone.pyramid.", _VIT_PYRAMID)
        return
    for stage, (depth, levels) in enumerate(zip(config.depths, config.focal_levels, strict=True)):
        theirs, ours = f"backbone.layers.{stage}", f"backbone.stages.{stage}"
        before = "backbone.patch_embed." if stage == 0 else f"backbone.layers.{stage - 1}.downsample."
        yield from _under(before, f"{ours}.downsample.", _DOWNSAMPLE)
        yield from _under("backbone.", f"{ours}.", ((f"norm{stage}", "output_norm", _BOTH),))
        convs = tuple((f"focal_layers.{n}.0", f"context_convs.{n}", ("weight",)) for n in range(levels))
        yield from _numbered(f"{theirs}.blocks", f"{ours}.blocks", depth, _FOCAL_BLOCK)
        for block in range(depth):
            yield from _under(f"{theirs}.blocks.{block}.modulation.", f"{ours}.blocks.{block}.modulation.", convs)


def _decoder_layers(head: str, layers: int) -> Iterator[tuple[str, str]]:
    cross_rows: tuple[_Row, ...] = (("multihead_attn", "cross_attention", _ATTENTION), ("norm", "cross_norm", _BOTH))
    self_rows: tuple[_Row, ...] = (("self_attn", "self_attention", _ATTENTION), ("norm", "self_norm", _BOTH))
    ffn_rows: tuple[_Row, ...] = (
        ("linear1", "ffn.0", _BOTH),
        ("linear2", "ffn.2", _BOTH),
        ("norm", "ffn_norm", _BOTH),
    )
    for kind, rows in (("cross_attention", cross_rows), ("self_attention", self_rows), ("ffn", ffn_rows)):
        yield from _numbered(f"{head}transformer_{kind}_layers", "mask_decoder.layers", layers, rows)


def _numbered(theirs: str, ours: str, count: int, rows: tuple[_Row, ...]) -> Iterator[tuple[str, str]]:
    for index in range(count):
        yield from _under(f"{theirs}.{index}.", f"{ours}.{index}.", rows)


def _under(theirs: str, ours: str, rows: tuple[_Row, ...]) -> Iterator[tuple[str, str]]:
    for published, own, leaves in rows:
        if not leaves:
            yield theirs + published, ours + own
        for leaf in leaves:
            yield f"{theirs}{published}.{leaf}", f"{ours}{own}.{_OUR_LEAVES.get(leaf, leaf)}"
