"""The published X-Decoder's tiny fixture: its weights made again and converted, and the numbers that it computed.

tests/data/xdecoder_tiny.{json,npz} were made by running the published code (Zou et al., 2023) on weights that
`benchmarks.recipe` makes: 72 px on a canvas of 128, for the paper's mask attention and for the challenge's.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.recipe import made_up
from promptseg.checkpoints.published import convert
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder, tiny

DATA = Path(__file__).parent / "data"
VARIANTS = {"xdecoder": MaskAttention("inside", "bicubic"), "lpcvc25": MaskAttention("outside", "bilinear")}


def published_network(variant: str) -> XDecoder:
    """The tiny network with the published weights, in evaluation mode; loading is strict."""
    network = XDecoder(replace(tiny(VARIANTS[variant]), canvas_rule="stretch")).eval()
    network.load_state_dict(convert(published_weights(), network.config).weights, strict=True)
    return network


def published_numbers() -> dict[str, Tensor]:
    """Inputs and expected outputs by their names in the fixture."""
    with np.load(DATA / "xdecoder_tiny.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def published_weights() -> dict[str, Tensor]:
    """The fixture's weights by their published names; what must be made of them, its numbers tell."""
    fixture = json.loads((DATA / "xdecoder_tiny.json").read_text(encoding="utf-8"))
    return made_up(fixture["keys"], fixture["seed"])
