"""How long one picture and one phrase take in torch, side by side: the published wrapper's computation, and ours.

    python -m benchmarks.network --model focal_t --res 590 --runs 5

Made-up weights, the whole contract (a canvas of 1024 in, a decided mask out). The runs take turns, so that whatever
else this machine does falls on all of them; medians are compared. Peak memory is that of the whole process.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.plain_wrapper import ClassQuery, plain_wrapper
from benchmarks.recipe import made_up
from promptseg.checkpoints.published import Conversion, convert, published_shapes
from promptseg.datasets.tokenizer import END_OF_TEXT
from promptseg.export.deployed_graph import DeployedXDecoder, plain_mask
from promptseg.hubs.contract import IMAGE_INPUT, TEXT_INPUT
from promptseg.networks import BUILDERS, build_on_meta
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder

WORDS = 6


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BUILDERS, default="focal_t")
    parser.add_argument("--res", type=int, default=590)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--attends", choices=("inside", "outside"), default="outside")
    parser.add_argument("--mask-resize", choices=("bilinear", "bicubic"), default="bilinear")
    arguments = parser.parse_args()
    network, query = _network(arguments.model, MaskAttention(arguments.attends, arguments.mask_resize))
    graph = DeployedXDecoder(network, arguments.res).eval()
    image, text = _inputs()
    ways: dict[str, Callable[[], Tensor]] = {
        "published wrapper, written plainly": lambda: plain_wrapper(network, query, image, text, arguments.res),
        "our network": lambda: plain_mask(network, image, text, arguments.res),
        "our deployment graph": lambda: graph(image, text),
    }
    with torch.inference_mode():
        times = _times_s(ways, arguments.runs)
    where = f"{torch.get_num_threads()} threads of {machine(torch.device('cpu'))}"
    print(f"{arguments.model} at res {arguments.res} in torch, {where}")
    first = statistics.median(next(iter(times.values())))
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"{name:36} {median:8.2f} s  ({min(measured):.2f} to {max(measured):.2f})  ratio {median / first:.2f}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def _network(model: str, rule: MaskAttention) -> tuple[XDecoder, ClassQuery]:
    config = replace(BUILDERS[model](rule), canvas_rule="stretch")  # as of published weights
    conversion = convert(made_up(published_shapes(config), seed=0), config)
    network = build_on_meta(config)
    network.load_state_dict(conversion.weights, assign=True)
    assert isinstance(network, XDecoder)
    return network.eval().requires_grad_(False), class_query(conversion)


def class_query(conversion: Conversion) -> ClassQuery:
    """The row that the conversion cut off."""
    head = "sem_seg_head.predictor."
    return ClassQuery(conversion.dropped[f"{head}query_feat.weight"], conversion.dropped[f"{head}query_embed.weight"])


def _inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(IMAGE_INPUT.shape, generator=generator) * 255
    text = torch.randint(1, END_OF_TEXT, TEXT_INPUT.shape, generator=generator, dtype=torch.int32)
    text[..., WORDS:] = END_OF_TEXT
    return image, text


def _times_s(ways: dict[str, Callable[[], Tensor]], runs: int) -> dict[str, list[float]]:
    """Seconds of each run of each way, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if run:
                times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
