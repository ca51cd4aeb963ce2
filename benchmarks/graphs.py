"""The two graphs that the benchmarks compare, from the same weights, and inputs that no network was tuned to."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.recipe import draw
from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.datasets.preprocess import CANVAS
from promptseg.datasets.tokenizer import ClipTokenizer
from promptseg.export.deployed_graph import REWRITES, DeployedNetwork, DeployedXDecoder, deployed, plain_mask
from promptseg.hubs.base import HubInput
from promptseg.networks.clipseg.model import ClipSeg, rd64_refined
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder, focal_t, vit_b

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "weights" / "nano-shapes.safetensors"
MODELS = ("focal_t", "vit_b", "nano", "clipseg")
CHALLENGE_RULE = MaskAttention("outside", "bilinear")  # of the challenge's winner, whose size Focal-T is
PHRASES = ("the red circle.", "the small triangle left of the large one.")
SEED = 5


class PlainGraph(nn.Module):
    """The network's own computation with the contract's border, nothing rewritten."""

    def __init__(self, network: Network, res: int) -> None:
        super().__init__()
        self.network = network
        self.res = res

    def forward(self, image_input: Tensor, text_input: Tensor) -> Tensor:
        """Float [1, 3, CANVAS, CANVAS], int32 [2, 1, 77] -> float [CANVAS, CANVAS]."""
        return plain_mask(self.network, image_input, text_input, self.res).float()


def deployed_graph(network: Network, res: int, without: Collection[str] = ()) -> DeployedNetwork:
    """The deployed form; of X-Decoder without the rewrites that are named."""
    if isinstance(network, XDecoder):
        return DeployedXDecoder(network, res, [name for name in REWRITES if name not in without])
    if without:
        raise SystemExit(f"--without: got {', '.join(without)}, which only X-Decoder's graph can be made without")
    return deployed(network, res)


def make_network(model: str) -> Network:
    """Nano as shipped, or a published size with drawn weights: what a graph costs does not depend on them."""
    if model == "nano":
        return load_checkpoint(NANO)[0].eval().requires_grad_(False)
    if model == "clipseg":
        torch.manual_seed(SEED)
        return ClipSeg(rd64_refined()).eval().requires_grad_(False)
    network = XDecoder({"focal_t": focal_t, "vit_b": vit_b}[model](CHALLENGE_RULE)).eval().requires_grad_(False)
    network.load_state_dict({key: draw(key, value.shape, SEED) for key, value in network.state_dict().items()})
    return network


def make_inputs() -> list[HubInput]:
    """Pictures with low and high frequencies, padded below, one per phrase."""
    tokens = ClipTokenizer().encode_all(list(PHRASES))
    return [HubInput(PHRASES[index], _picture(index), row[:, None]) for index, row in enumerate(tokens)]


def _picture(seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 12, 16, generator=generator) * 255
    picture = torch.zeros(1, 3, CANVAS, CANVAS)
    picture[:, :, :768] = nn.functional.interpolate(coarse, size=(768, CANVAS), mode="bicubic")
    picture[:, :, :768] += 20 * torch.randn(1, 3, 768, CANVAS, generator=generator)
    return picture.clamp(0, 255).round().numpy()
