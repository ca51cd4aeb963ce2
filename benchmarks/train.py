"""How fast a network trains here, against the plain loop of the same network, in one run.

    python -m benchmarks.train --model nano --res 192 256                  # a laptop: minutes
    python -m benchmarks.train --model focal_t --res 256 590 1024 --pictures 32 --workers 8 --compile   # one GPU

Both loops see the same scenes of `shapes`, made for the run; neither DVC nor a checkpoint is needed. `plain` is what
one would write first: float32, eager, all 77 text tokens, one decode and one rasterisation per use, losses read every
step. `promptseg` is training/loop.py's way of a step. Prints the figures and, with --csv, appends them to a table.
"""

import argparse
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks.machine import machine
from promptseg.datasets.records import read_samples
from promptseg.datasets.tokenizer import CONTEXT_LENGTH, END_OF_TEXT, ClipTokenizer, write_tokens
from promptseg.networks import BUILDERS
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.params import FinetuneConfig, ShapesConfig, read_params
from promptseg.sources.shapes import build_shapes
from promptseg.training.data import Batch, GroundingData, Steps, batches
from promptseg.training.losses import Objective
from promptseg.training.optimizers import make_optimizers
from promptseg.training.processes import make_accelerator, prepare_network

ROOT = Path(__file__).resolve().parent.parent
SCENES = ShapesConfig("shapes", 5, 48, 1, 1, objects_min=2, objects_max=6, targets_per_scene=2)


@dataclass(frozen=True)
class Measured:
    """One row: seconds are medians over steps."""

    machine: str
    model: str
    loop: str
    res: int
    pictures: int
    pictures_per_s: float
    data_wait_share: float
    forward_s: float
    backward_s: float
    optimizer_s: float
    peak_memory_gib: float


class Clock:
    """Seconds between marks; a GPU is waited for first."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._last = device, time.perf_counter()

    def mark(self) -> float:
        """Seconds since the last mark."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed


def main() -> None:
    """Measure every res in turn, plain first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(BUILDERS), default="nano")
    parser.add_argument("--res", type=int, nargs="+", default=[256])
    parser.add_argument("--pictures", type=int, default=8, help="pictures per step, four phrases each")
    parser.add_argument("--steps", type=int, default=8, help="measured steps, after two that warm up")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare pictures")
    parser.add_argument("--compile", action="store_true", help="compile the network (of promptseg's loop)")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = make_scenes(Path(folder))
        for res in options.res:
            config = replace(
                read_params(ROOT).finetune, res=(res,), steps=options.steps + 2, batch_size=options.pictures,
                workers=options.workers, compile=options.compile,
            )  # fmt: skip
            plain = measure("plain", options.model, config, paths)
            ours = measure("promptseg", options.model, config, paths)
            rows += [plain, ours]
            ratio = ours.pictures_per_s / plain.pictures_per_s
            print(*(_described(row) for row in (plain, ours)), f"  {ratio:.2f} times as fast", sep="\n")
    if options.csv:
        _append(options.csv, rows)


def _described(row: Measured) -> str:
    return (
        f"{row.machine}, {row.model} at {row.res}, {row.loop}: {row.pictures_per_s:.2f} pictures/s; step: "
        f"forward {row.forward_s:.3f} s, backward {row.backward_s:.3f} s, optimizer {row.optimizer_s:.3f} s, "
        f"{row.data_wait_share:.1%} waiting for data; peak {row.peak_memory_gib:.2f} GiB"
    )


def _append(path: Path, rows: list[Measured]) -> None:
    pd.DataFrame(rows).to_csv(path, mode="a", header=not path.exists(), index=False)


def make_scenes(folder: Path) -> dict[str, Path]:
    """Scenes and their tokens."""
    paths = {"images": folder / "images", "samples": folder / "samples.jsonl", "tokens": folder / "tokens.npy"}
    build_shapes(SCENES, paths["images"], paths["samples"], folder / "objects.jsonl")
    write_tokens(paths["tokens"], ClipTokenizer().encode_all([each.phrase for each in read_samples(paths["samples"])]))
    return paths


def make_network(model: str) -> XDecoder:
    """The model with drawn weights."""
    return XDecoder(BUILDERS[model](MaskAttention("inside", "bilinear")))


def measure(loop: str, model: str, config: FinetuneConfig, paths: dict[str, Path]) -> Measured:
    """Train for a few steps and take the medians."""
    accelerator = make_accelerator(bfloat16=False)
    device = accelerator.device
    torch.manual_seed(0)
    network = make_network(model).to(device).train()
    plain = loop == "plain"
    data = GroundingData(
        **paths, split="train", sizes=config.res, cache_bytes=0 if plain else 2**31, canvas_rule="crop"
    )
    if not plain:
        prepare_network(network, config.compile, config.checkpoint_activations)
    objective: nn.Module = Objective(network, config.loss_weights)
    objective = objective if plain else accelerator.prepare(objective)
    optimizers = [torch.optim.AdamW(network.parameters(), 1e-5)] if plain else make_optimizers(network, config)
    seconds: dict[str, list[float]] = {"data": [], "forward": [], "backward": [], "optimizer": []}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(device)
    for batch in _fed(data, config, plain):
        seconds["data"].append(clock.mark())
        terms = objective(batch.to(device))
        loss = terms.weighted(config.loss_weights)
        seconds["forward"].append(clock.mark())
        network.zero_grad(set_to_none=True)
        loss.backward()
        seconds["backward"].append(clock.mark())
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        if plain:
            terms.values()
        seconds["optimizer"].append(clock.mark())
    median = {name: float(torch.tensor(values[2:]).median()) for name, values in seconds.items()}
    step = sum(median.values())
    return Measured(
        machine(device), model, loop, config.res[0], config.batch_size,
        pictures_per_s=config.batch_size / step, data_wait_share=median["data"] / step,
        forward_s=median["forward"], backward_s=median["backward"], optimizer_s=median["optimizer"],
        peak_memory_gib=_peak_bytes(device) / 2**30,
    )  # fmt: skip


def _fed(data: GroundingData, config: FinetuneConfig, plain: bool) -> Iterator[Batch]:
    steps = Steps(data, config, 1, 0)
    for (batch,) in batches(steps, 0, 0 if plain else config.workers):
        yield _untrimmed(batch) if plain else batch


def _untrimmed(batch: Batch) -> Batch:
    ids = torch.full((len(batch.token_ids), CONTEXT_LENGTH), END_OF_TEXT, dtype=torch.int32)
    ids[:, : batch.token_ids.shape[1]] = batch.token_ids
    return replace(batch, token_ids=ids)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit  # of the process: the larger of both loops


if __name__ == "__main__":
    main()
