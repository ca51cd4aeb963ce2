"""sensitivity: what 8 bits cost and save, part by part and layer by layer, and what `mixed` should keep.

    dvc repro export                      # with export.precision of integers: writes models/float/model.onnx
    python -m promptseg sensitivity       # a table, metrics/sensitivity.csv and .svg, and export.keep in params.yaml

Each part, then each layer, is put into 8 bits alone: IoU of the masks with those of the float graph, with the rest in
float (ONNX Runtime), and the simulated milliseconds of the whole graph, with the rest in 16 bits. Then, from 8 bits
everywhere, the layers that lose most for each millisecond that they save are put into 16 bits, one after the other;
those stay there that gain more than chance would give, and more for a millisecond than 16 bits everywhere do. After
`--minutes` no further layer is begun; those of the parts that lose most come first.
"""

import argparse
import json
import logging
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from promptseg.commands import say
from promptseg.commands.project import project_root
from promptseg.export.quantize import (
    MODULE_ALONE,
    Bits,
    Calibrated,
    bits_of,
    calibrate,
    calibration_inputs,
    is_named,
    prepared,
    quantized,
)
from promptseg.files import atomic_path, write_rows
from promptseg.hubs.contract import PARTS, module_of, part_of
from promptseg.hubs.devices import Chip, find_device
from promptseg.hubs.host import GraphInputs, HostSession
from promptseg.hubs.local.profile import simulate
from promptseg.hubs.local.session import qnn_available
from promptseg.metrics import bootstrap_interval, overlap
from promptseg.params import PARAMS_FILE, read_params, read_paths
from promptseg.report.charts import Bar, draw_bars

DEPTH = 3  # of the module path that is a layer: "decoder.cross_attentions.2"
LEAST_MS = 0.01  # that a layer is taken to save, where it saves less: the simulator's own noise
SEED = 0  # of the bootstrap
_log = logging.getLogger(__name__)
_PLAIN = re.compile(r"[\w./]+")  # a name that YAML reads as it stands; others are quoted
_KEEP = re.compile(r"^(  keep: )(?:\[[^\]\n]*\]|[^\s#]\S*|)", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One graph: what is in 8 bits or, of a choice, in 16; its masks beside the float ones, and its latency."""

    kind: str  # whole, part, layer or choice
    name: str
    ious: tuple[float, ...]  # one per sample
    latency_ms_simulated: float | None
    keeps: tuple[str, ...] = ()  # of a choice: the layers in 16 bits

    @property
    def iou_mean(self) -> float:
        """Mean over the samples."""
        return float(np.mean(self.ious))

    def figures(self, pictures: Sequence[str]) -> dict[str, Any]:
        """Return the row's columns of the table; `pictures` names each sample's."""
        low, high = bootstrap_interval(self.ious, pictures, SEED)
        return {
            "kind": self.kind,
            "name": self.name,
            "iou_mean": round(self.iou_mean, 5),
            "iou_mean_low": round(low, 5),
            "iou_mean_high": round(high, 5),
            "iou_worst": round(min(self.ious), 5),
            "latency_ms_simulated": self.latency_ms_simulated,
        }


@dataclass(frozen=True)
class Bench:
    """What every graph is measured with."""

    calibrated: Calibrated
    samples: GraphInputs
    masks: list[NDArray[np.bool_]]  # of the float graph
    chip: Chip
    cache: Path

    @property
    def pictures(self) -> list[str]:
        """Name of each sample's picture."""
        return [sample.image for sample in self.samples.samples]

    def measure(self, kind: str, name: str, bits: Mapping[str, Bits], timed: Mapping[str, Bits] | None = None) -> Row:
        """Quantize, decide the samples' masks, and simulate `timed`, or the same graph.

        A mixture that the compiler refuses, and every graph where there is no compiler, has no latency.
        """
        with tempfile.TemporaryDirectory(prefix="promptseg-") as folder:
            graph = Path(folder) / "model.onnx"
            onnx.save(quantized(self.calibrated, bits), graph)
            session = HostSession(graph)
            ious = [
                overlap(session.decide(sample).pred_mask, mask).iou
                for sample, mask in zip(self.samples, self.masks, strict=True)
            ]
            if timed is not None:
                onnx.save(quantized(self.calibrated, timed), graph)
            ms = self._simulated_ms(f"{kind} {name}", graph)
        return Row(kind, name, tuple(ious), ms)

    def _simulated_ms(self, what: str, graph: Path) -> float | None:
        try:
            return simulate(graph, self.chip, self.cache).cost.bounds_ms[0] if qnn_available() else None
        except ValueError as error:
            _log.warning("%s has no latency: %s", what, error)
            return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "--samples", type=int, default=32, help="of hub.split, spread over kinds of phrase (default 32)"
    )
    parser.add_argument(
        "--target", type=float, default=0.98, help="mean IoU with the float masks that is enough (0.98)"
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="after which no further layer is begun (15)")
    parser.add_argument("--parts-only", action="store_true", help="no layers: a choice among parts")
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="graphs at a time, of which each takes a core and its compiler's memory (2)",
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print, draw, choose, and write the choice to params.yaml."""
    for name in ("samples", "workers"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: got {getattr(options, name)}, wanted at least 1")
    ends = time.monotonic() + 60 * options.minutes
    root = project_root()
    bench = _bench(root, options.samples)
    nodes = bench.calibrated.nodes
    wide, narrow = (bits_of(nodes, precision) for precision in ("w8a16", "w8a8"))
    in_float: dict[str, Bits] = dict.fromkeys(wide, "float")
    with ThreadPoolExecutor(options.workers) as pool:
        whole = list(pool.map(bench.measure, repeat("whole"), ("float", "16 bits", "8 bits"), (in_float, wide, narrow)))
        # A quarter of the time is for the choice.
        rows = measure_alone(bench, wide, narrow, options.parts_only, ends - 60 * options.minutes / 4, pool)
    candidates = [row for row in rows if row.kind == ("part" if options.parts_only else "layer")]
    choices = choose(bench, whole, candidates, options.target, ends)
    keeps = choices[-1].keeps if choices else ()
    pictures = bench.pictures
    table = [row.figures(pictures) for row in (*whole, *rows, *choices)]
    for row in table:
        ms = "-" if row["latency_ms_simulated"] is None else f"{row['latency_ms_simulated']:.2f}"
        iou = f"{row['iou_mean']:.3f} ({row['iou_mean_low']:.3f} to {row['iou_mean_high']:.3f})"
        say(f"{row['kind']:7}{row['name']:50.50}  IoU {iou}, worst {row['iou_worst']:.3f}  {ms:>7} ms simulated")
    metrics = root / "metrics"
    write_rows(metrics / "sensitivity.csv", table, list(table[0]))
    with atomic_path(metrics / "sensitivity.svg") as path:
        path.write_text(
            draw_bars([Bar(row.name, 1 - row.iou_mean) for row in rows], "1 - IoU with the float masks"), "utf-8"
        )
    write_keep(root / PARAMS_FILE, keeps)
    say(f"export.keep: [{', '.join(keeps)}], for -S export.precision=mixed")
    return 0


def measure_alone(
    bench: Bench,
    wide: Mapping[str, Bits],
    narrow: Mapping[str, Bits],
    parts_only: bool,
    until: float,
    pool: ThreadPoolExecutor,
) -> list[Row]:
    """Put each part and then, but for `parts_only`, each layer into 8 bits alone; rows in the graph's order.

    wide, narrow: bits of all nodes, in 16 and in 8. After `until` (of the monotonic clock) no further layer is begun;
    those of the parts that lose most are first.
    """
    nodes = bench.calibrated.nodes
    rests: tuple[Mapping[str, Bits], ...] = (dict.fromkeys(wide, "float"), wide)
    parts = [part for part in PARTS if any(is_named(node, part) for node in nodes)]
    layers = {} if parts_only else layers_of(nodes)
    bar = tqdm(total=len(parts) + len(layers), desc="sensitivity", unit="graph")

    def measured(kind: str, name: str) -> Row:
        alone = {node.name for node in nodes if is_named(node, name)}
        decided, timed = (dict(rest) | {node: narrow[node] for node in alone} for rest in rests)
        row = bench.measure(kind, name, decided, timed)
        bar.update()
        return row

    def measured_in_time(layer: str) -> Row | None:
        return measured("layer", layer) if time.monotonic() <= until else None

    with bar:
        rows = list(pool.map(measured, repeat("part"), parts))
        lost = {row.name: 1 - row.iou_mean for row in rows}
        ordered = sorted(layers, key=lambda layer: lost.get(layers[layer], 0.0), reverse=True)
        of_layers = dict(zip(ordered, pool.map(measured_in_time, ordered), strict=True))
    if left := [layer for layer, row in of_layers.items() if row is None]:
        say(f"--minutes: {len(left)} layers were not begun: {', '.join(left)}")
    return [*rows, *(row for layer in layers if (row := of_layers[layer]))]


def choose(bench: Bench, whole: list[Row], candidates: Collection[Row], target: float, ends: float) -> list[Row]:
    """Put layers into 16 bits, those first that lose most for a millisecond saved, and keep those that are worth it.

    A layer is where its gain is no chance (the paired interval is above 0), more for a millisecond than that of 16 bits
    everywhere over 8, and leaves the graph no slower than in float. Returns a row for each one kept, its name all names
    so far; ends where `target` is reached, or when the time is over.
    """
    in_float, wide, best = whole
    usual_gain = _gain_per_ms(best, wide)
    choices: list[Row] = []
    for candidate in sorted(candidates, key=lambda row: _loss_per_ms(row, wide), reverse=True):
        if best.iou_mean >= target or candidate.iou_mean >= 1 or time.monotonic() > ends:
            break
        names = (*best.keeps, candidate.name)
        row = bench.measure("choice", " ".join(names), bits_of(bench.calibrated.nodes, "mixed", names))
        slower = (row.latency_ms_simulated or 0) > (in_float.latency_ms_simulated or float("inf"))
        gains = [gained - had for gained, had in zip(row.ious, best.ious, strict=True)]
        surely, _ = bootstrap_interval(gains, bench.pictures, SEED)
        if surely > 0 and _gain_per_ms(best, row) >= usual_gain and not slower:
            best = replace(row, keeps=names)
            choices.append(best)
    return choices


def layers_of(nodes: Iterable[onnx.NodeProto]) -> dict[str, str]:
    """Return the module paths of a graph's nodes, cut to DEPTH names, each with its part, in the graph's order.

    A module that has layers below it stands for its own operations alone: "decoder/".
    """
    parts = {".".join(module_of(node.name)[:DEPTH]): part_of(node.name) for node in nodes}
    above = {path for path in parts if any(other.startswith(f"{path}.") for other in parts)}
    return {path + MODULE_ALONE * (path in above): part for path, part in parts.items()}


def write_keep(params: Path, names: Collection[str]) -> None:
    """Set export.keep in params.yaml, and change nothing else of it. Raises ValueError where it has no such line."""
    text = params.read_text(encoding="utf-8")
    value = f"[{','.join(name if _PLAIN.fullmatch(name) else json.dumps(name) for name in names)}]"
    changed, count = _KEEP.subn(lambda match: match[1] + value, text)
    if count != 1:
        raise ValueError(f"{params}: got {count} lines `keep:` of one value, wanted one, of the section export")
    with atomic_path(params) as path:
        path.write_text(changed, encoding="utf-8")


def _bench(root: Path, samples: int) -> Bench:
    params, paths = read_params(root), read_paths(root)
    graph = paths["float"] / "model.onnx"
    if not graph.is_file():
        raise ValueError(
            f"{graph}: got no float graph in forms for integers, wanted one; `dvc repro export` with export.precision "
            "w8a8, w8a16 or mixed (with export.keep: []) writes it"
        )
    data = paths["images"], paths["samples"], paths["tokens"]
    calibration = params.export.calibration
    calibrated = calibrate(prepared(graph), calibration_inputs(*data, calibration.samples), calibration.method)
    few = GraphInputs(*data, params.hub.split, None).few(samples)
    session = HostSession(graph)
    masks = [session.run(sample) for sample in few]
    chip = find_device(params.hub.device).simulated_chip
    return Bench(calibrated, few, masks, chip, root / ".cache" / "simulations")


def _loss_per_ms(row: Row, wide: Row) -> float:
    if row.latency_ms_simulated is None or wide.latency_ms_simulated is None:
        return 1 - row.iou_mean
    return (1 - row.iou_mean) / max(wide.latency_ms_simulated - row.latency_ms_simulated, LEAST_MS)


def _gain_per_ms(row: Row, wider: Row) -> float:
    """IoU that `wider` gains over `row` for each millisecond that it takes more; without latencies, infinite."""
    if row.latency_ms_simulated is None or wider.latency_ms_simulated is None:
        return float("inf")
    return (wider.iou_mean - row.iou_mean) / max(wider.latency_ms_simulated - row.latency_ms_simulated, LEAST_MS)
