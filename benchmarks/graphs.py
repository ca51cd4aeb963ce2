"""The graphs that the benchmarks compare, from the same weights, and inputs that no network was tuned to."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.recipe import draw
from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.datasets.preprocess import CANVAS
from promptseg.datasets.tokenizer import ClipTokenizer
from promptseg.export.deployed_graph import REWRITES, DeployedNetwork, DeployedXDecoder, deployed, plain_mask
from promptseg.export.onnx_export import export_graphs
from promptseg.export.quantize import KEPT, quantize_graphs
from promptseg.hubs.base import HubInput
from promptseg.hubs.host import GraphInputs
from promptseg.hubs.local.profile import Simulation
from promptseg.networks import architecture, build
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.params import read_params
from promptseg.params.sections import Precision

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "weights" / "nano-shapes.safetensors"
MODELS = ("focal_t", "vit_b", "nano", "clipseg")
CHALLENGE_RULE = MaskAttention("outside", "bilinear")  # of the challenge's winner, whose size Focal-T is
PHRASES = ("the red circle.", "the small triangle left of the large one.")
SEED = 5


class Drawn(list[HubInput]):
    """Inputs of no data set, for weights that learnt none."""

    def few(self, count: int) -> "Drawn":
        """Return the first `count`."""
        return Drawn(self[:count])


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
    return draw_network(architecture(model, CHALLENGE_RULE))


def draw_network(config: Any) -> Network:
    """Build the network of a configuration, with the recipe's weights.

    Of CLIPSeg, transformers would draw some with variance 1: scores of 177,126 in the decoder's first attention, beyond
    float16, of which trained ones say nothing.
    """
    network = build(config).eval().requires_grad_(False)
    network.load_state_dict({key: draw(key, value.shape, SEED) for key, value in network.state_dict().items()})
    return network


def write_graphs(
    network: Network,
    model: str,
    res: int,
    precision: Precision,
    samples: GraphInputs | Drawn,
    calibration: GraphInputs | Drawn,
    folder: Path,
) -> tuple[Path, Path]:
    """Export as the pipeline does, by params.yaml, in a precision -> the folders of the graph and of its float one.

    Held to torch on the first of `samples`; ranges of integers are from `calibration`. In fp16 both folders are one.
    """
    config = replace(read_params(ROOT).export, precision=precision, keep=None if model in KEPT else ("decoder",))
    graphs, floats = folder / "graphs", folder / "float"
    if not config.integers:
        floats = graphs
    export_graphs(network, res, config, samples.few(1), floats, model=model, checkpoint_sha256="0" * 64)
    if config.integers:
        quantize_graphs(floats, config, calibration, graphs)  # type: ignore[arg-type]  # drawn inputs have `few`, too
    return graphs, floats


def costs_of(simulation: Simulation) -> dict[str, Any]:
    """Return a simulation's columns of the tables: milliseconds with their bounds, megabytes."""
    cost = simulation.cost
    traffic = cost.input_fill_bytes + cost.fill_bytes + cost.spill_bytes + cost.output_bytes
    names = ("simulated_ms", "simulated_ms_low", "simulated_ms_high")
    return dict(zip(names, (round(each, 2) for each in cost.bounds_ms), strict=True)) | {
        "ops_without_cost": cost.ops_without_cost,
        "binary_mb": round(simulation.binary_bytes / 1e6, 1),
        "ddr_mb": round(traffic / 1e6, 1),
    }


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
