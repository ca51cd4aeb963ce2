"""What a precision buys and costs, by size: docs/data/precision.csv, its figure, and the table of docs/precision.md.

    python -m benchmarks.precision --model nano --res 256 320 384      # after `dvc repro`, for its data: half an hour
    python -m benchmarks.precision --model focal_t --res 256           # drawn weights; minutes each, and 8 GB

Each graph as the pipeline exports it, quantized on 24 samples of train (drawn weights: on one picture), simulated by
Qualcomm's compiler on the default device; its masks beside those of its float graph, and mIoU with its paired change,
are ONNX Runtime's, on --samples phrases of val. Rows that the table has are left as they are. A graph that does not
compile keeps the compiler's own words in `error`.
"""

import argparse
import csv
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.graph import TABLES
from benchmarks.graphs import ROOT, Drawn, costs_of, make_inputs, make_network, write_graphs
from promptseg.files import atomic_path
from promptseg.hubs.devices import devices
from promptseg.hubs.fidelity import compare_masks
from promptseg.hubs.host import GraphInputs, masks_on_host
from promptseg.hubs.local.profile import simulate
from promptseg.metrics import overlap
from promptseg.params import ExportConfig, read_params
from promptseg.params.sections import Precision
from promptseg.report.charts import to_svg

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
TABLE, FIGURE = TABLES / "precision.csv", TABLES.parent / "precision.svg"
PAGE = TABLES.parent / "precision.md"
BEGIN, END = "<!-- table: python -m benchmarks.precision -->", "<!-- end of the table -->"
COLUMNS = (
    *("model", "res", "precision", "simulated_ms", "simulated_ms_low", "simulated_ms_high", "ops_without_cost"),
    *("binary_mb", "ddr_mb", "phrases", "iou_float", "miou_change", "miou_change_low", "miou_change_high", "error"),
)


def main() -> None:
    """Fill the table, and write the page's and the figure; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("nano", "focal_t"), required=True)
    parser.add_argument("--res", type=int, nargs="+", required=True)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--samples", type=int, default=120, help="of val, spread over kinds of phrase and pictures")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    for res in arguments.res:
        for precision in arguments.precision:
            key = (arguments.model, str(res), precision)
            if not any((row["model"], row["res"], row["precision"]) == key for row in _rows()):
                measured = measure(arguments.model, precision, res, arguments.samples)
                row = {name: str(value) for name, value in measured.items()}
                rows = [*_rows(), {column: row.get(column, "") for column in COLUMNS}]
                print(rows[-1], flush=True)
                _write(rows)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    FIGURE.write_text(draw(pd.read_csv(TABLE)), encoding="utf-8")


def measure(model: str, precision: Precision, res: int, count: int) -> dict[str, object]:
    """Export, quantize and simulate one graph, and compare its masks with its float graph's."""
    samples, train = _inputs(model, count, read_params(ROOT).export)
    figures: dict[str, object] = {"model": model, "res": res, "precision": precision}
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        graphs, floats = write_graphs(make_network(model), model, res, precision, samples, train, Path(scratch))
        if graphs != floats:
            figures |= _compared(graphs, floats, samples)
        try:
            simulation = simulate(graphs / "model.onnx", devices()[0].simulated_chip, Path(scratch) / "cache")
        except (RuntimeError, ValueError) as error:
            return figures | {"error": " ".join(str(error).split())[-200:]}
    return figures | costs_of(simulation)


def _inputs(model: str, count: int, export: ExportConfig) -> tuple[GraphInputs | Drawn, GraphInputs | Drawn]:
    """Samples to compare masks on, and those to calibrate with."""
    if model != "nano":
        drawn = Drawn(make_inputs())
        return drawn, drawn.few(1)
    data = ROOT / "data"
    paths = data / "images", data / "samples.jsonl", data / "tokens.npy"
    val, train = (GraphInputs(*paths, split, None) for split in ("val", "train"))
    return val.few(count), train.few(export.calibration.samples)


def _compared(graphs: Path, floats: Path, samples: GraphInputs | Drawn) -> dict[str, object]:
    pairs = zip(masks_on_host(graphs, samples), masks_on_host(floats, samples), strict=True)
    if isinstance(samples, Drawn):  # no truth
        ious = [overlap(first.pred_mask, second.pred_mask).iou for first, second in pairs]
        return {"phrases": len(ious), "iou_float": round(float(np.mean(ious)), 3)}
    found, _ = compare_masks(("", ""), pairs, samples.samples)
    names = ("miou_change", "miou_change_low", "miou_change_high")
    changes = {name: round(getattr(found, name), 4) for name in names}
    return {"phrases": found.samples, "iou_float": round(found.iou_mean or 0.0, 3)} | changes


def draw(table: pd.DataFrame) -> str:
    """Draw simulated milliseconds by size, a line for each precision, a panel for each network, as SVG."""
    models = list(dict.fromkeys(table["model"]))
    figure = Figure(figsize=(4.2 * len(models), 3.2), layout="constrained")
    for axes, model in zip(np.atleast_1d(figure.subplots(1, len(models))), models, strict=True):
        for precision in PRECISIONS:
            rows = table.query("model == @model and precision == @precision").sort_values("res")
            rows = rows.dropna(subset=["simulated_ms"])
            if not rows.empty:
                axes.plot(rows["res"], rows["simulated_ms"], marker="o", label=precision)
        axes.set(title=model, xlabel="px", ylabel="simulated ms", ylim=(0, None))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(PRECISIONS))
    return to_svg(figure)


def markdown() -> str:
    """Return the table of docs/precision.md."""
    lines = [
        "| network | px | precision | simulated ms (bounds) | binary, MB | DDR, MB | IoU with float | change of mIoU |",
        "|" + "---|" * 8,
    ]
    for row in sorted(_rows(), key=_order):
        time = f"{row['simulated_ms']} ({row['simulated_ms_low']} to {row['simulated_ms_high']})"
        if row["ops_without_cost"] not in ("", "0"):
            time += f", {row['ops_without_cost']} pieces without a cost"
        change = "-"
        if row["miou_change"]:
            low, high = (float(row[f"miou_change_{end}"]) for end in ("low", "high"))
            change = f"{float(row['miou_change']):+.3f} ({low:+.3f} to {high:+.3f})"
        cells = [row["model"], row["res"], row["precision"], "does not compile" if row["error"] else time]
        cells += [row["binary_mb"] or "-", row["ddr_mb"] or "-", row["iou_float"] or "-", change]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(row: dict[str, str]) -> tuple[bool, int, int]:
    return row["model"] != "nano", int(row["res"]), PRECISIONS.index(row["precision"])


def _rows() -> list[dict[str, str]]:
    if not TABLE.is_file():
        return []
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(rows: Iterable[dict[str, str]]) -> None:
    with atomic_path(TABLE) as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
