"""Where the simulated milliseconds of a graph go, by group of operations: how the next millisecond is found.

    python -m benchmarks.timeline --model focal_t --res 590
    python -m benchmarks.timeline --res 590 --nodes 40          # the costliest nodes too

Simulated: the same on every machine. One compilation, minutes for Focal-T.
"""

import argparse
import csv
import tempfile
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.graph import DEVICE, OPSET, TABLES
from benchmarks.graphs import MODELS, PlainGraph, make_network
from promptseg.export.deployed_graph import REWRITES, DeployedGraph
from promptseg.export.onnx_export import trace_graph
from promptseg.hubs.local.hub import BINARY, PROFILE, TIMELINE, WRAPPER
from promptseg.hubs.local.process import run_compiler
from promptseg.hubs.local.session import Chip, CompileRequest
from promptseg.hubs.local.trace import NodeTime, read_timeline


@dataclass(frozen=True)
class Group:
    """Part of a node's module path -> the group that a reader looks for."""

    path: str
    name: str


GROUPS = (
    Group("backbone.stages.0", "backbone, stage 1"),
    Group("backbone.stages.1", "backbone, stage 2"),
    Group("backbone.stages.2", "backbone, stage 3"),
    Group("backbone.stages.3", "backbone, stage 4"),
    Group("pixel_decoder.encoder", "encoder on the coarsest map"),
    *(
        Group(f"pixel_decoder.{part}.{index}", f"pyramid, {part} {index}")
        for part in ("lateral", "output")
        for index in range(4)
    ),
    *(
        Group(f"pixel_decoder.output.slice(1, None, None).{index}", f"pyramid, output {index + 1}")  # of a sliced list
        for index in range(3)
    ),
    Group("pixel_decoder", "pyramid, the rest"),
    Group("level_features", "mask features"),
    Group("text_encoder", "text"),
    *(
        Group(f"decoder.{part}.{index}/", f"decoder, layer {index + 1}")
        for part in ("looks", "layers")
        for index in range(9)
    ),
    *(
        Group(f"decoder.{part}.{index}.", f"decoder, layer {index + 1}")
        for part in ("looks", "layers")
        for index in range(9)
    ),
    Group("decoder", "decoder, the rest"),
    Group("best_mask", "the chosen mask"),
    Group("to_canvas", "the chosen mask"),
    Group("<input>", "input, output, the first resize"),
    Group("<output>", "input, output, the first resize"),
    Group("graph/", "input, output, the first resize"),
)


def main() -> None:
    """Compile with a timeline and print it; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="focal_t")
    parser.add_argument("--res", type=int, required=True)
    parser.add_argument("--graph", choices=("plain", "deployed"), default="deployed")
    parser.add_argument("--without", choices=REWRITES, nargs="*", default=())
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--tables", type=Path, default=TABLES)
    arguments = parser.parse_args()
    network = make_network(arguments.model)
    kept = [name for name in REWRITES if name not in arguments.without]
    plain = arguments.graph == "plain"
    graph = PlainGraph(network, arguments.res) if plain else DeployedGraph(network, arguments.res, kept)
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        folder = Path(scratch)
        trace_graph(graph.eval(), OPSET, folder / "graph.onnx")
        chip = Chip(DEVICE.htp_arch, DEVICE.simulator_soc_model, DEVICE.vtcm_mb)
        wrapper, profile = str(folder / WRAPPER), str(folder / PROFILE)
        run_compiler(folder, CompileRequest("graph.onnx", wrapper, chip, profile, verbose=False, trace=True))
        times = read_timeline(folder / TIMELINE, folder / BINARY)
    name = "-".join(
        ["timeline", arguments.model, str(arguments.res), arguments.graph, *(f"no-{r}" for r in arguments.without)]
    )
    _report(_grouped(times), arguments.tables / f"{name}.csv")
    for node, time in sorted(times.items(), key=lambda item: -item[1].elapsed_ms)[: arguments.nodes]:
        print(_line(node, time))


def _grouped(times: dict[str, NodeTime]) -> dict[str, NodeTime]:
    groups: dict[str, NodeTime] = defaultdict(NodeTime)
    for node, time in times.items():
        total = groups[next((group.name for group in GROUPS if group.path in node), "what the compiler adds")]
        for field in fields(NodeTime):
            setattr(total, field.name, getattr(total, field.name) + getattr(time, field.name))
    return dict(sorted(groups.items(), key=lambda item: -item[1].elapsed_ms))


def _report(groups: dict[str, NodeTime], table: Path) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(NodeTime)]
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["group", *names])
        for group, time in groups.items():
            writer.writerow([group, *(round(getattr(time, name), 3) for name in names)])
            print(_line(group, time))


def _line(name: str, time: NodeTime) -> str:
    return (
        f"{time.elapsed_ms:8.2f} ms  matrix {time.matrix_ms:7.2f}  vector {time.vector_ms:7.2f}  "
        f"memory {time.memory_ms:7.2f}  {name}"
    )


if __name__ == "__main__":
    main()
