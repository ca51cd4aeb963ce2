"""Phrase-to-mask networks side by side: size, simulated cost and estimates per device; docs/networks.md has the table.

    python -m benchmarks.networks                              # every network of ROWS that the table lacks
    python -m benchmarks.networks --precision fp16                 # of those, in this precision alone
    python -m benchmarks.networks --only timm/resnet18 --res 320   # one, added to the table
    python -m benchmarks.networks --only photo --metrics metrics   # one that the pipeline has simulated already

The challenge's graph of each, with drawn weights (what it costs does not depend on them), by Qualcomm's compiler for
each chip that a device's estimate needs: the same figures on every machine. Integers are made as the pipeline makes
them, calibrated on drawn pictures; a graph that does not compile keeps the compiler's own words in `error`. Rows that
docs/data/networks.csv has are left as they are; mIoU comes from docs/data/networks_miou.csv, which says of each figure
where it is from.
"""

import argparse
import csv
import logging
import tempfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from benchmarks.graph import TABLES
from benchmarks.graphs import Drawn, costs_of, draw_network, make_inputs, write_graphs
from promptseg.export.deployed_graph import deployed
from promptseg.export.onnx_export import count_flops
from promptseg.files import read_json
from promptseg.hubs.devices import Chip, devices, estimate_all
from promptseg.hubs.local.profile import simulate
from promptseg.networks import architecture
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.params.sections import Precision

ROWS = (
    *((model, res) for model in ("nano", "mobile") for res in (192, 320, 512)),
    *(("photo", res) for res in (256, 320)),
    *((f"timm/{name}", 320) for name in (
        "mobilenetv4_conv_small", "repvit_m1", "resnet18", "fastvit_t8", "efficientvit_b0",
    )),
    ("clipseg", 352),
    *(("focal_t", res) for res in (256, 590)),
    ("vit_b", 320),
)  # fmt: skip
PRECISIONS: tuple[Precision, ...] = ("fp16", "w8a8", "w8a16")
PAIR = PRECISIONS[:2]  # whose sizes are shown
SHOWN = ("Snapdragon X Elite CRD", "Snapdragon X2 Elite CRD", "Samsung Galaxy S24", "Samsung Galaxy S25")
COLUMNS = (
    *("model", "res", "precision", "parameters_m", "gflop", "simulated_ms", "ops_without_cost", "binary_mb", "ddr_mb"),
    *(f"estimated_ms {device}" for device in SHOWN),
    "error",
)
PAGE = TABLES.parent / "networks.md"
BEGIN, END = "<!-- table: python -m benchmarks.networks -->", "<!-- end of the table -->"


def main() -> None:
    """Fill the table, and write the page's; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="a model as `model` in params.yaml names it")
    parser.add_argument("--res", type=int, default=320)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--metrics", type=Path, help="folder of what the pipeline recorded, of that model in fp16")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # not each constant that the exporter leaves unfolded
    table = TABLES / "networks.csv"
    recorded = read_metrics(arguments.only, arguments.metrics) if arguments.metrics else None
    res = int(recorded["res"]) if recorded else arguments.res
    chosen = [(arguments.only, res)] if arguments.only else ROWS
    for precision, (model, side) in product(["fp16"] if recorded else arguments.precision, chosen):
        key = (model, str(side), precision)
        if not any((row["model"], row["res"], row["precision"]) == key for row in read_rows(table)):
            row = recorded or compared(*key) or measure(model, side, precision)
            print(row, flush=True)
            rows = [*read_rows(table), row]  # read again: another one may have been added in these minutes
            with table.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def read_rows(table: Path) -> list[dict[str, str]]:
    """Read a table's rows; none of one that is not there."""
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measure(model: str, res: int, precision: Precision) -> dict[str, str]:
    """Export a network, drawn, and simulate it; what the compiler refuses stands in `error`."""
    network = draw_network(architecture(model, MaskAttention("inside", "bilinear")))
    samples = Drawn(make_inputs())
    figures = {
        "model": model,
        "res": res,
        "precision": precision,
        "parameters_m": round(sum(each.numel() for each in network.parameters()) / 1e6, 1),
        "gflop": round(count_flops(deployed(network, res)) / 1e9, 1),
    }
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        graphs, _ = write_graphs(network, model, res, precision, samples, samples, Path(scratch))
        try:
            simulations = {chip: simulate(graphs / "model.onnx", chip, Path(scratch)) for chip in chips_for(precision)}
        except (RuntimeError, ValueError) as error:
            figures["error"] = " ".join(str(error).split())[-200:]
            return {column: str(figures.get(column, "")) for column in COLUMNS}
    figures |= costs_of(simulations[devices()[0].simulated_chip])
    times = {chip: simulation.cost.bounds_ms for chip, simulation in simulations.items()}
    for row in estimate_all(times, precision):
        if row["device"] in SHOWN and row["latency_ms_estimated"] is not None:
            figures[f"estimated_ms {row['device']}"] = round(row["latency_ms_estimated"], 1)
    return {column: str(figures.get(column, "")) for column in COLUMNS}


def chips_for(precision: Precision) -> set[Chip]:
    """Return the simulator's chips that some device has a line for in a precision, and the default device's."""
    return {devices()[0].simulated_chip} | {each.simulated_chip for each in devices() if precision in each.lines}


def read_metrics(model: str, folder: Path) -> dict[str, str]:
    """Return a row of what the pipeline recorded: the same graph by the same simulator, with other weights.

    Raises ValueError where that was another model, or its precision not fp16.
    """
    latency, export = read_json(folder / "latency.json"), read_json(folder / "export.json")
    got = {name: read_json(folder / "fidelity.json")[name] for name in ("model", "precision")}
    if got != {"model": model, "precision": "fp16"}:
        raise ValueError(f"--metrics: got {got} in {folder}, wanted --only's {model!r} in fp16")
    figures = {
        "model": model,
        "res": export["res"],
        "precision": "fp16",
        "parameters_m": round(export["parameters"] / 1e6, 1),
        "gflop": round(export["gflops"], 1),
        "simulated_ms": round(latency["latency_ms_simulated"], 2),
        "ops_without_cost": latency["ops_without_cost"],
        "binary_mb": round(latency["binary_mb"], 1),
        "ddr_mb": round(latency["ddr_read_mb"] + latency["ddr_write_mb"], 1),
    }
    for row in read_rows(folder / "devices.csv"):
        if row["device"] in SHOWN and row["latency_ms_estimated"]:
            figures[f"estimated_ms {row['device']}"] = round(float(row["latency_ms_estimated"]), 1)
    return {column: str(figures.get(column, "")) for column in COLUMNS}


def compared(model: str, res: str, precision: str) -> dict[str, str] | None:
    """Return a row of what `benchmarks.precision` simulated already, or None: the same graph, not twice."""
    keys = ("model", "res", "precision")
    sizes = [row for row in read_rows(TABLES / "networks.csv") if (row["model"], row["res"]) == (model, res)]
    found = [row for row in read_rows(TABLES / "precision.csv") if tuple(map(row.get, keys)) == (model, res, precision)]
    if precision == "fp16" or not sizes or not found:
        return None
    figures = {name: sizes[0][name] for name in ("parameters_m", "gflop")} | found[0]
    return {column: figures.get(column, "") for column in COLUMNS}


def markdown() -> str:
    """Return the table of docs/networks.md, from the two CSV files."""
    mious = {
        (row["model"], row["res"], row["data"]): f"{float(row['miou']):.3f} ({row['source']})"
        for row in read_rows(TABLES / "networks_miou.csv")
    }
    order = {(model, str(res)): place for place, (model, res) in enumerate(ROWS)}
    found = {(row["model"], row["res"], row["precision"]): row for row in read_rows(TABLES / "networks.csv")}
    heads = ["model", "px", "parameters, M", "GFLOP", *(f"simulated ms {precision}" for precision in PRECISIONS)]
    heads += [f"{what} MB {' / '.join(PAIR)}" for what in ("binary", "DDR")]
    heads += [f"est. ms {device}, fp16" for device in SHOWN] + ["mIoU shapes", "mIoU photographs"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    keys = dict.fromkeys((model, res) for model, res, _ in found)
    for model, res in sorted(keys, key=lambda key: order.get(key, len(order))):
        rows = {precision: found.get((model, res, precision), {}) for precision in PRECISIONS}
        first = next(row for row in rows.values() if row)
        cells = [f"`{model}`", res, first["parameters_m"], first["gflop"], *map(time_of, rows.values())]
        for name in ("binary_mb", "ddr_mb"):
            cells.append(" / ".join(rows[precision].get(name) or "-" for precision in PAIR))
        cells += [rows["fp16"].get(f"estimated_ms {device}") or "-" for device in SHOWN]
        cells += [mious.get((model, res, data), "not measured") for data in ("shapes", "photographs")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def time_of(row: Mapping[str, str]) -> str:
    """Return a row's simulated milliseconds, or what stands in their place; none is a graph that was not made."""
    if row.get("error"):
        return "does not compile"
    costless = row.get("ops_without_cost", "0")
    return (row.get("simulated_ms") or "-") + ("" if costless == "0" else f" and {costless} pieces without a cost")


if __name__ == "__main__":
    main()
