"""Whether training is right on a GPU, where a step's time goes, and how much of the card that uses.

    bash benchmarks/gpu.sh OUT                                  # all of it with benchmarks.train, in 8 minutes
    python -m benchmarks.gpu checks OUT --model focal_t --res 256
    python -m benchmarks.gpu profile OUT --model focal_t --res 590 --pictures 32

Runs on a processor, too, where it says nothing about a GPU but shows that the script works. Writes tables to the folder
OUT: checks.csv, batches.csv, steps.csv and operations.csv; `table OUT` prints them all as one page.

checks: the loss and the gradient's norm of one step in bfloat16 against float32 on the same batch; the compiled network
against the eager one; a run that was killed and resumed against one that was not, and two that were not against each
other, since a GPU adds up in any order. profile: floating-point operations of forward and backward (three times those
of forward, which torch's counter takes from matrix products and convolutions; of the backward it counts grouped
convolutions as whole ones), their share of the rate that the card reaches on one large bfloat16 product in the same
process, the operations that take longest, graph breaks of the compiled network, and how often a step waits for the GPU.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import machine
from benchmarks.train import ROOT, make_network, make_scenes
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.params import FinetuneConfig, read_params
from promptseg.training.data import Batch, GroundingData, Steps, batches
from promptseg.training.loop import Splits, finetune
from promptseg.training.losses import Objective
from promptseg.training.processes import prepare_network
from promptseg.training.snapshots import Snapshots

TABLES = ("checks.csv", "batches.csv", "steps.csv", "operations.csv", "speeds.csv")
MOST_OPERATIONS = 15
BFLOAT16_LOSS_OFF = 0.01  # relative to float32 on the same batch
RESUMED_STEPS, KILLED_AT = 4, 2


@dataclass(frozen=True)
class Check:
    """One figure against another: `difference` is relative to `wanted`, and `bound` the most that is right."""

    machine: str
    model: str
    res: int
    check: str
    got: float
    wanted: float
    difference: float
    bound: float
    passed: bool


@dataclass(frozen=True)
class Step:
    """Forward and backward of one step: seconds are medians; rates in 1e12 floating-point operations a second."""

    machine: str
    model: str
    res: int
    pictures: int
    compiled: bool
    seconds: float
    tera_operations: float
    rate_tflops: float
    ceiling_tflops: float
    share_of_ceiling: float
    graph_breaks: int
    waits: int
    peak_memory_gib: float


def main() -> None:
    """Run one part, or print what the parts wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("checks", "batches", "profile", "table"))
    parser.add_argument("out", type=Path, help="folder of the tables")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--res", type=int, default=256)
    parser.add_argument("--pictures", type=int, default=8, help="pictures per step, four phrases each")
    parser.add_argument("--most", type=int, default=256, help="pictures per step at which `batches` stops")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part == "table":
        sys.stdout.write(page(options.out))
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.model, options.res, options.pictures, Path(folder))
        if options.part == "checks":
            _append(options.out / "checks.csv", checks(bench))
        elif options.part == "batches":
            _append(options.out / "batches.csv", batch_sizes(bench, options.most))
        else:
            for compiled in (False, True):
                step, operations = profiled(bench, compiled)
                _append(options.out / "steps.csv", [step])
                _append(options.out / "operations.csv", operations)


class Bench:
    """A model at one size with scenes to train on, on the device that there is."""

    def __init__(self, model: str, res: int, pictures: int, folder: Path) -> None:
        self.model, self.res, self.pictures, self.folder = model, res, pictures, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config: FinetuneConfig = replace(
            read_params(ROOT).finetune, init=None, res=(res,), val_res=res, steps=RESUMED_STEPS, batch_size=pictures,
            val_every=RESUMED_STEPS, val_phrases=4, train_phrases=0, warmup_steps=1, snapshot_every_s=0.0,
        )  # fmt: skip
        self.paths = make_scenes(folder)
        self.machine = machine(self.device)

    def data(self, split: Any = "train") -> GroundingData:
        """The split's pictures at `res`."""
        return GroundingData(**self.paths, split=split, sizes=(self.res,), cache_bytes=2**31, canvas_rule="crop")

    def batch(self, pictures: int | None = None) -> Batch:
        """The first step's batch, on the device."""
        config = replace(self.config, batch_size=pictures or self.pictures)
        (first,) = next(iter(batches(Steps(self.data(), config, 1, 0), 0, 0)))
        return first.to(self.device)

    def network(self) -> XDecoder:
        """The model with weights drawn from one seed."""
        torch.manual_seed(0)
        return make_network(self.model).to(self.device).train()

    def objective(self, network: XDecoder, compiled: bool = False) -> nn.Module:
        """Loss terms of a batch."""
        prepare_network(network, compiled, checkpoint_activations=False)
        return Objective(network, self.config.loss_weights)

    def forward_backward(self, objective: nn.Module, batch: Batch, half: bool) -> tuple[float, float]:
        """Loss, and the norm of its gradient."""
        objective.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            terms = objective(batch)
        loss = terms.weighted(self.config.loss_weights)
        loss.backward()
        norm = nn.utils.get_total_norm([each.grad for each in objective.parameters() if each.grad is not None])
        return loss.item(), norm.item()

    def wait(self) -> None:
        """Let the GPU finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def checks(bench: Bench) -> list[Check]:
    """One step in bfloat16, and compiled, against float32 and eager; a resumed run against a whole one."""
    batch, network = bench.batch(), bench.network()
    plain = bench.forward_backward(bench.objective(network), batch, half=False)
    half = bench.forward_backward(bench.objective(network), batch, half=True)
    compiled = bench.forward_backward(bench.objective(bench.network(), compiled=True), batch, half=False)
    whole, again, resumed = (_trained(bench, name, killed) for name, killed in RUNS.items())
    zero, drift, distance = 0.0, _distance(again, whole), _distance(resumed, whole)
    return [
        _check(bench, "loss in bfloat16 against float32", half[0], plain[0], BFLOAT16_LOSS_OFF),
        _check(bench, "gradient's norm in bfloat16 against float32", half[1], plain[1], 0.05),
        _check(bench, "loss compiled against eager", compiled[0], plain[0], 1e-3),
        _check(bench, "gradient's norm compiled against eager", compiled[1], plain[1], 1e-2),
        Check(bench.machine, bench.model, bench.res, "the same run twice, largest difference of a weight", drift, zero,
              drift, 1e-3, drift <= 1e-3),
        Check(bench.machine, bench.model, bench.res, "resumed against whole, largest difference of a weight",
              distance, zero, distance, 2 * drift, distance <= 2 * drift),
    ]  # fmt: skip


RUNS = {"whole": False, "again": False, "resumed": True}


def _check(bench: Bench, name: str, got: float, wanted: float, bound: float) -> Check:
    difference = abs(got - wanted) / abs(wanted)
    return Check(bench.machine, bench.model, bench.res, name, got, wanted, difference, bound, difference <= bound)


class _KilledError(Exception):
    """Stands for what kills a run."""


class _KilledSnapshots(Snapshots):
    """Saves the state after KILLED_AT steps, and dies of it."""

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        if state["step"] == KILLED_AT:
            raise _KilledError


def _trained(bench: Bench, name: str, killed: bool) -> dict[str, Tensor]:
    """Weights after RESUMED_STEPS of the project's own loop; a killed run goes on from its snapshot."""
    splits = Splits(bench.data("train"), bench.data("val"), None)
    accelerator = Accelerator(cpu=bench.device.type == "cpu", mixed_precision=_mixed(bench.device))
    kinds: tuple[Callable[..., Snapshots], ...] = (_KilledSnapshots, Snapshots) if killed else (Snapshots,)
    for kind in kinds:
        network = bench.network()
        try:
            finetune(network, splits, bench.config, kind(bench.folder / name, 0.0), accelerator, None)
        except _KilledError:
            continue
        state: dict[str, Any] = torch.load(bench.folder / name / "state.pt", weights_only=True)
        return {key: value.float().cpu() for key, value in state["network"].items()}
    raise AssertionError("a run that nothing kills ends")


def _mixed(device: torch.device) -> str:
    return "bf16" if device.type == "cuda" else "no"


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def batch_sizes(bench: Bench, most: int) -> list[dict[str, Any]]:
    """Pictures a second of forward and backward while the batch doubles, until the memory is full."""
    rows, pictures = [], bench.pictures
    objective = bench.objective(bench.network())
    half = bench.device.type == "cuda"
    while pictures <= most:
        try:
            batch = bench.batch(pictures)
            if half:
                torch.cuda.reset_peak_memory_stats()
            seconds = _median_seconds(bench, partial(bench.forward_backward, objective, batch, half))
        except torch.OutOfMemoryError:
            break
        rows.append({
            "machine": bench.machine, "model": bench.model, "res": bench.res, "pictures": pictures,
            "pictures_per_s": pictures / seconds, "peak_memory_gib": _peak_gib(bench.device),
        })  # fmt: skip
        pictures *= 2
    return rows


def profiled(bench: Bench, compiled: bool) -> tuple[Step, list[dict[str, Any]]]:
    """Time, count and profile forward and backward of one step."""
    batch, half = bench.batch(), bench.device.type == "cuda"
    with FlopCounterMode(display=False) as counter, torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
        bench.objective(bench.network())(batch)
    objective = bench.objective(bench.network(), compiled)
    torch._dynamo.utils.counters.clear()

    def run() -> None:
        bench.forward_backward(objective, batch, half)

    seconds = _median_seconds(bench, run)
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if half else [])]
    with profile(activities=activities) as recorded:
        run()
        bench.wait()
    with _counted_waits(bench.device) as waits:
        run()
    key = "self_device_time_total" if half else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    operations = [
        {"machine": bench.machine, "model": bench.model, "res": bench.res, "compiled": compiled, "operation": event.key,
         "calls": event.count, "milliseconds": getattr(event, key) / 1e3, "share": getattr(event, key) / total}
        for event in events[:MOST_OPERATIONS]
    ]  # fmt: skip
    tera, ceiling = 3 * counter.get_total_flops() / 1e12, matrix_rate(bench.device)
    rate = tera / seconds
    step = Step(
        bench.machine, bench.model, bench.res, bench.pictures, compiled, seconds, tera, rate, ceiling, rate / ceiling,
        breaks, len(waits), _peak_gib(bench.device),
    )  # fmt: skip
    return step, operations


def matrix_rate(device: torch.device) -> float:
    """1e12 floating-point operations a second of one large square product: bfloat16 on a GPU, float32 elsewhere."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 1024
    one, other = (torch.randn(side, side, device=device).to(torch.bfloat16 if on_gpu else torch.float32) for _ in "ab")
    seconds = []
    for _ in range(10):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        one @ other
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / sorted(seconds[3:])[len(seconds[3:]) // 2] / 1e12


@contextmanager
def _counted_waits(device: torch.device) -> Iterator[list[Any]]:
    """Collect torch's warnings about operations that wait for the GPU; one is the loss that is read at the end."""
    if device.type != "cuda":
        yield []
        return
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    torch.cuda.set_sync_debug_mode("default")


def _median_seconds(bench: Bench, run: Callable[[], Any], warm: int = 2, measured: int = 5) -> float:
    seconds = []
    for _ in range(warm + measured):
        bench.wait()
        start = time.perf_counter()
        run()
        bench.wait()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[warm:])[measured // 2]


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def _append(path: Path, rows: list[Any]) -> None:
    table = pd.DataFrame([row if isinstance(row, dict) else asdict(row) for row in rows])
    table.to_csv(path, mode="a", header=not path.exists(), index=False)


def page(out: Path) -> str:
    """All tables of the folder, one below the other; raises ValueError when there is none."""
    found = [out / name for name in TABLES if (out / name).is_file()]
    if not found:
        raise ValueError(f"{out}: got no table, wanted one of {', '.join(TABLES)}; run the other parts first")
    return "".join(f"{path.stem}\n{pd.read_csv(path).to_string(index=False)}\n\n" for path in found)


if __name__ == "__main__":
    main()
