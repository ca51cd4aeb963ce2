"""What the deployment graph costs beside the plain network and the published wrapper, from the same weights.

    python -m benchmarks.graph npu --model focal_t --res 256 590            # minutes each: Qualcomm's compiler
    python -m benchmarks.graph npu --res 590 --without features             # what one rewrite is worth
    python -m benchmarks.graph npu --res 256 --graph plain
    python -m benchmarks.graph host --res 256 590 --runs 5                  # ONNX Runtime, side by side in one run
    python -m benchmarks.graph host --res 590 --without features

Rows that a table has already are left as they are, so a long list can be run bit by bit. Figures of the NPU are
simulated (see hubs/local/profile.py) and the same on every machine, save for how long compiling took; the host's are
this machine's.
"""

import argparse
import csv
import logging
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.graphs import MODELS, ROOT, PlainGraph, deployed_graph, make_inputs, make_network
from benchmarks.machine import machine
from benchmarks.plain_wrapper import PublishedGraph
from promptseg.export.deployed_graph import REWRITES
from promptseg.export.onnx_export import count_flops, trace_graph
from promptseg.hubs.devices import devices
from promptseg.hubs.host import HostSession
from promptseg.hubs.local.process import run_compiler
from promptseg.hubs.local.profile import BINARY, PROFILE, WRAPPER, read_simulated_cost
from promptseg.hubs.local.session import CompileRequest
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.model import XDecoder

OPSET = 18
GRAPHS = ("published", "plain", "deployed")
TABLES = ROOT / "docs" / "data"
DEVICE = devices()[0]


@dataclass(frozen=True)
class Key:
    """Which graph a row is about; `without` names the rewrites that were left out of the deployed one."""

    model: str
    res: int
    graph: str
    without: str


@dataclass(frozen=True)
class NpuRow:
    """One compilation. 1 MB = 1e6 bytes; `error` is empty where it compiled, and the figures are where it did not."""

    gflops: float
    nodes: int
    simulated_ms: float | None = None
    simulated_ms_low: float | None = None
    simulated_ms_high: float | None = None
    ops_without_cost: int | None = None
    costless_nodes: str = ""
    ddr_read_mb: float | None = None
    ddr_write_mb: float | None = None
    spill_mb: float | None = None
    binary_mb: float | None = None
    compile_s: float | None = None
    compile_memory_gb: float | None = None
    machine: str = ""
    error: str = ""


@dataclass(frozen=True)
class HostRow:
    """The published wrapper's computation, the plain network's, and the deployed graph, in turn; medians.

    `..._agreement` is the lowest share of canvas pixels that the deployed graph decides alike, over the samples.
    """

    published_ms: float
    plain_ms: float
    deployed_ms: float
    published_over_deployed: float
    plain_over_deployed: float
    published_agreement: float
    plain_agreement: float
    inside: float
    runs: int
    machine: str


def main() -> None:
    """Fill the tables; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("npu", "host"))
    parser.add_argument("--model", choices=MODELS, default="focal_t")
    parser.add_argument("--res", type=int, nargs="+", required=True)
    parser.add_argument("--graph", choices=GRAPHS, default="deployed")
    parser.add_argument("--without", choices=REWRITES, nargs="*", default=())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tables", type=Path, default=TABLES)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # not each constant that the exporter leaves unfolded
    network = make_network(arguments.model)
    for res in arguments.res:
        key = Key(arguments.model, res, arguments.graph, " ".join(arguments.without))
        if arguments.what == "npu":
            measure: Callable[[], NpuRow | HostRow] = partial(measure_npu, partial(make_graph, network, key))
        else:
            makers = {graph: partial(make_graph, network, replace(key, graph=graph)) for graph in GRAPHS}
            measure = partial(measure_host, makers, arguments.runs)
        _fill(arguments.tables / f"graph_{arguments.what}.csv", key, measure)


def make_graph(network: Network, key: Key) -> nn.Module:
    """Build the graph that `key` is about."""
    if key.graph == "published":
        assert isinstance(network, XDecoder)
        return PublishedGraph(network, key.res)
    if key.graph == "plain":
        return PlainGraph(network, key.res)
    return deployed_graph(network, key.res, key.without.split())


def measure_npu(make: Callable[[], nn.Module]) -> NpuRow:
    """Compile the graph once, for the simulator's chip."""
    graph = make().eval()
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        path, wrapper, profile = (Path(scratch) / name for name in ("graph.onnx", WRAPPER, PROFILE))
        trace_graph(graph, OPSET, path)
        nodes, gflops = len(onnx.load(path, load_external_data=False).graph.node), count_flops(graph) / 1e9
        chip = DEVICE.simulated_chip
        start = time.perf_counter()
        try:
            run_compiler(path.parent, CompileRequest(path.name, str(wrapper), chip, str(profile), verbose=False))
        except (ValueError, OSError) as error:
            return NpuRow(round(gflops, 1), nodes, machine=_machine(), error=str(error).partition(": ")[2][:200])
        seconds = time.perf_counter() - start
        cost = read_simulated_cost(profile)
        return NpuRow(
            gflops=round(gflops, 1),
            nodes=nodes,
            simulated_ms=cost.time_us / 1e3,
            simulated_ms_low=cost.time_us_low / 1e3,
            simulated_ms_high=cost.time_us_high / 1e3,
            ops_without_cost=cost.ops_without_cost,
            costless_nodes=" ".join(cost.costless_ops),
            ddr_read_mb=round((cost.input_fill_bytes + cost.fill_bytes) / 1e6, 1),
            ddr_write_mb=round((cost.output_bytes + cost.spill_bytes) / 1e6, 1),
            spill_mb=round(cost.spill_bytes / 1e6, 1),
            binary_mb=round((wrapper.parent / BINARY).stat().st_size / 1e6, 1),
            compile_s=round(seconds, 1),
            compile_memory_gb=round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2),
            machine=_machine(),
        )


def measure_host(makers: Mapping[str, Callable[[], nn.Module]], runs: int) -> HostRow:
    """Run the graphs in turn on ONNX Runtime, so that whatever else the machine does hits all of them."""
    samples = make_inputs()
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        sessions = {}
        for name, make in makers.items():
            path = Path(scratch) / f"{name}.onnx"
            trace_graph(make().eval(), OPSET, path)
            sessions[name] = HostSession(path)
        masks = {name: np.stack([session.run(sample) for sample in samples]) for name, session in sessions.items()}
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(runs):
            for name, session in sessions.items():
                start = time.perf_counter()
                session.run(samples[0])
                times[name].append((time.perf_counter() - start) * 1e3)
    median = {name: statistics.median(taken) for name, taken in times.items()}
    agreement = {name: float((mask == masks["deployed"]).mean(axis=(1, 2)).min()) for name, mask in masks.items()}
    return HostRow(
        published_ms=round(median["published"], 1),
        plain_ms=round(median["plain"], 1),
        deployed_ms=round(median["deployed"], 1),
        published_over_deployed=round(median["published"] / median["deployed"], 3),
        plain_over_deployed=round(median["plain"] / median["deployed"], 3),
        published_agreement=agreement["published"],
        plain_agreement=agreement["plain"],
        inside=round(float(masks["deployed"].mean()), 4),
        runs=runs,
        machine=_machine(),
    )


def _fill(table: Path, key: Key, measure: Callable[[], NpuRow | HostRow]) -> None:
    """Add the row of `key` to `table`, unless it is there."""
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline=""))) if table.is_file() else []
    wanted = {name: str(value) for name, value in asdict(key).items()}
    if any(wanted.items() <= row.items() for row in rows):
        print(f"{table.name} has {wanted}")
        return
    row = wanted | {name: "" if value is None else str(value) for name, value in asdict(measure()).items()}
    _write(table, [*rows, row])
    print(row, flush=True)


def _write(table: Path, rows: Sequence[dict[str, str]]) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: (row["model"], int(row["res"]), row["graph"] != "plain", row["without"]))
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)


def _machine() -> str:
    return machine(torch.device("cpu"))


if __name__ == "__main__":
    main()
