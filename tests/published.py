"""The published X-Decoder's tiny fixture: its weights built again, under our names, and the numbers that it computed.

tests/data/xdecoder_tiny.{json,npz} were made by running the published code (Zou et al., 2023) on weights that `_draw`
builds: 72 px on a canvas of 128, for the paper's mask attention and for the challenge's.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from promptseg.xdecoder.mask_decoder import MaskAttention
from promptseg.xdecoder.model import XDecoder, tiny

DATA = Path(__file__).parent / "data"
VARIANTS = {"xdecoder": MaskAttention("inside", "bicubic"), "lpcvc25": MaskAttention("outside", "bilinear")}

_HEAD = r"^sem_seg_head\.predictor\."
_RENAMED = (  # applied one after the other
    (r"^backbone\.patch_embed\.proj", "backbone.stages.0.downsample.conv"),
    (r"^backbone\.patch_embed\.norm", "backbone.stages.0.downsample.norm"),
    *((rf"^backbone\.layers\.{n}\.downsample\.proj", f"backbone.stages.{n + 1}.downsample.conv") for n in range(3)),
    *((rf"^backbone\.layers\.{n}\.downsample\.norm", f"backbone.stages.{n + 1}.downsample.norm") for n in range(3)),
    (r"^backbone\.norm(\d)", r"backbone.stages.\1.output_norm"),
    (r"^backbone\.layers", "backbone.stages"),
    (r"\.gamma_(\d)", r".scale\1"),
    (r"\.dw(\d)", r".local\1"),
    (r"\.modulation\.f\.", ".modulation.input_proj."),
    (r"\.modulation\.h\.", ".modulation.context_proj."),
    (r"\.modulation\.proj\.", ".modulation.output_proj."),
    (r"\.focal_layers\.(\d)\.0", r".context_convs.\1"),
    (r"\.mlp\.fc1", ".mlp.0"),
    (r"\.mlp\.fc2", ".mlp.2"),
    (r"^sem_seg_head\.pixel_decoder", "pixel_decoder"),
    (r"\.transformer\.encoder\.layers\.(\d)\.self_attn", r".encoder.\1.attention"),
    (r"\.transformer\.encoder\.layers\.(\d)\.linear1", r".encoder.\1.ffn.0"),
    (r"\.transformer\.encoder\.layers\.(\d)\.linear2", r".encoder.\1.ffn.2"),
    (r"\.transformer\.encoder\.layers", ".encoder"),
    (r"\.(adapter|layer)_(\d)\.weight", r".\1_\2.conv.weight"),
    *((rf"\.adapter_{n}\.", f".lateral.{3 - n}.") for n in (1, 2, 3)),
    *((rf"\.layer_{n}\.", f".output.{4 - n}.") for n in (1, 2, 3, 4)),
    (_HEAD + r"lang_encoder\.lang_encoder", "text_encoder"),
    (_HEAD + r"lang_encoder\.lang_proj", "text_encoder.projection"),
    (_HEAD + r"lang_encoder\.logit_scale", "log_temperature"),
    (r"\.resblocks\.(\d)\.attn", r".blocks.\1.attention"),
    (r"\.resblocks\.(\d)\.ln_", r".blocks.\1.norm"),
    (r"\.resblocks\.(\d)\.mlp\.c_fc", r".blocks.\1.mlp.up"),
    (r"\.resblocks\.(\d)\.mlp\.c_proj", r".blocks.\1.mlp.down"),
    (r"\.ln_final", ".final_norm"),
    (_HEAD, "mask_decoder."),
    (r"\.transformer_self_attention_layers\.(\d)\.self_attn", r".layers.\1.self_attention"),
    (r"\.transformer_self_attention_layers\.(\d)\.norm", r".layers.\1.self_norm"),
    (r"\.transformer_cross_attention_layers\.(\d)\.multihead_attn", r".layers.\1.cross_attention"),
    (r"\.transformer_cross_attention_layers\.(\d)\.norm", r".layers.\1.cross_norm"),
    (r"\.transformer_ffn_layers\.(\d)\.linear1", r".layers.\1.ffn.0"),
    (r"\.transformer_ffn_layers\.(\d)\.linear2", r".layers.\1.ffn.2"),
    (r"\.transformer_ffn_layers\.(\d)\.norm", r".layers.\1.ffn_norm"),
    (r"\.decoder_norm", ".norm"),
    *((rf"\.mask_embed\.layers\.{n}", f".mask_embedding.{2 * n}") for n in range(3)),
    (r"\.query_feat\.weight", ".query_content"),
    (r"\.query_embed\.weight", ".query_position"),
    (r"\.level_embed\.weight", ".level_embedding"),
    (r"\.class_embed", ".class_projection"),
    (r"\.in_proj_", ".in_proj."),
)


def published_network(variant: str) -> XDecoder:
    """The tiny network with the published weights, in evaluation mode; loading is strict."""
    network = XDecoder(tiny(VARIANTS[variant])).eval()
    network.load_state_dict(_weights(network.config.mask_decoder.object_queries), strict=True)
    return network


def published_numbers() -> dict[str, Tensor]:
    """Inputs and expected outputs by their names in the fixture."""
    with np.load(DATA / "xdecoder_tiny.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _weights(object_queries: int) -> dict[str, Tensor]:
    fixture = json.loads((DATA / "xdecoder_tiny.json").read_text(encoding="utf-8"))
    weights = {}
    for key, shape in fixture["keys"].items():
        ours, value = key, torch.from_numpy(_draw(key, shape, fixture["seed"]))
        for pattern, replacement in _RENAMED:
            ours = re.sub(pattern, replacement, ours)
        if ours in ("mask_decoder.query_content", "mask_decoder.query_position"):
            value = value[:object_queries]  # the last one is the class query of other tasks
        if ours.endswith("context_proj.weight"):
            value = value[:, :, 0, 0]  # a 1x1 convolution there, a linear layer here
        assert ours not in weights
        weights[ours] = value
    return weights


def _draw(key: str, shape: list[int], seed: int) -> np.ndarray:
    z = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32).standard_normal(shape)
    z = np.asarray(z, np.float32)
    if len(shape) >= 2:
        return z / np.sqrt(np.prod(shape[1:])).astype(np.float32)
    if not shape:
        return np.ones((), np.float32)
    return np.float32(0.05) * z if key.endswith("bias") else 1 + np.float32(0.1) * z
