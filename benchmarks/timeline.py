"""Where the simulated milliseconds of a graph go, by group of operations: how the next millisecond is found.

    python -m benchmarks.timeline --model focal_t --res 590
    python -m benchmarks.timeline --res 590 --nodes 40          # the costliest nodes too
    python -m benchmarks.timeline --model clipseg --res 352

Simulated: the same on every machine. One compilation, minutes for Focal-T.
"""

import argparse
import csv
import tempfile
from dataclasses import fields
from pathlib import Path

from benchmarks.graph import DEVICE, OPSET, TABLES
from benchmarks.graphs import MODELS, PlainGraph, deployed_graph, make_network
from promptseg.export.deployed_graph import REWRITES
from promptseg.export.onnx_export import trace_graph
from promptseg.hubs.contract import module_of
from promptseg.hubs.local.process import run_compiler
from promptseg.hubs.local.profile import BINARY, PROFILE, TIMELINE, WRAPPER
from promptseg.hubs.local.session import CompileRequest
from promptseg.hubs.local.trace import NodeTime, add_up, read_timeline

THE_COMPILERS = "what the compiler adds"


def group_of(node: str) -> str:
    """Return the group that a reader looks for, of a node of the timeline by its module path."""
    match module_of(node):
        case ["backbone", "stages", index, *_]:
            return f"backbone, stage {int(index) + 1}"
        case ["backbone", "blocks", index, *_]:
            return f"backbone, block {int(index) + 1}"
        case ["backbone", *_]:
            return "backbone, the rest"
        case ["pixel_decoder", "encoder", *_]:
            return "encoder on the coarsest map"
        case ["pixel_decoder", "output", "slice(1, None, None)", index, *_]:  # the exporter's name of a sliced list
            return f"pyramid, output {int(index) + 1}"
        case ["pixel_decoder", "lateral" | "output" as part, index, *_]:
            return f"pyramid, {part} {index}"
        case ["pixel_decoder", *_]:
            return "pyramid, the rest"
        case ["text_encoder", *_]:
            return "text"
        case ["decoder", "level_features", *_]:
            return "mask features"
        case ["decoder" | "mask_decoder", "cross_attentions" | "layers", index, *_]:
            return f"decoder, layer {int(index) + 1}"
        case ["decoder" | "mask_decoder", *_]:
            return "decoder, the rest"
        case ["best_mask" | "to_canvas", *_]:
            return "the chosen mask"
        case ["<input>" | "<output>" | "graph", *_]:
            return "input, output, the first resize"
    return THE_COMPILERS


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
    plain = arguments.graph == "plain"
    graph = PlainGraph(network, arguments.res) if plain else deployed_graph(network, arguments.res, arguments.without)
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        folder = Path(scratch)
        trace_graph(graph.eval(), OPSET, folder / "graph.onnx")
        chip = DEVICE.simulated_chip
        wrapper, profile = str(folder / WRAPPER), str(folder / PROFILE)
        run_compiler(folder, CompileRequest("graph.onnx", wrapper, chip, profile, verbose=False, trace=True))
        times = read_timeline(folder / TIMELINE, folder / BINARY)
    name = "-".join(
        ["timeline", arguments.model, str(arguments.res), arguments.graph, *(f"no-{r}" for r in arguments.without)]
    )
    groups = sorted(add_up(times, group_of).items(), key=lambda item: -item[1].elapsed_ms)
    _report(dict(groups), arguments.tables / f"{name}.csv")
    for node, time in sorted(times.items(), key=lambda item: -item[1].elapsed_ms)[: arguments.nodes]:
        print(_line(node, time))


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
