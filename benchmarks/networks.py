"""Phrase-to-mask networks side by side: size, simulated cost and estimates per device; docs/networks.md has the table.

    python -m benchmarks.networks                              # every network of ROWS that the table lacks
    python -m benchmarks.networks --only timm/resnet18 --res 320   # one, added to the table
    python -m benchmarks.networks --only photo --metrics metrics   # one that the pipeline has simulated already

The challenge's graph of each, with drawn weights (what it costs does not depend on them), by Qualcomm's compiler for
every chip that the simulator knows: the same figures on every machine. Rows that docs/data/networks.csv has are left as
they are; mIoU comes from docs/data/networks_miou.csv, which says of each figure where it is from.
"""

import argparse
import csv
import logging
import tempfile
from pathlib import Path

import torch

from benchmarks.graph import OPSET, TABLES
from promptseg.export.deployed_graph import deployed
from promptseg.export.onnx_export import count_flops, trace_graph
from promptseg.files import read_json
from promptseg.hubs.devices import devices, estimate_all
from promptseg.hubs.local.profile import simulate_all
from promptseg.networks import architecture, build
from promptseg.networks.xdecoder.mask_decoder import MaskAttention

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
    parser.add_argument("--metrics", type=Path, help="folder of what the pipeline recorded, of that model in fp16")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # not each constant that the exporter leaves unfolded
    table = TABLES / "networks.csv"
    recorded = read_metrics(arguments.only, arguments.metrics) if arguments.metrics else None
    res = int(recorded["res"]) if recorded else arguments.res
    for model, side in [(arguments.only, res)] if arguments.only else ROWS:
        rows = read_rows(table)
        if not any((row["model"], row["res"]) == (model, str(side)) for row in rows):
            rows.append(recorded or measure(model, side))
            print(rows[-1], flush=True)
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


def measure(model: str, res: int) -> dict[str, str]:
    """Export a network, drawn, and simulate it on every chip; what the compiler refuses stands in `error`."""
    torch.manual_seed(0)
    network = build(architecture(model, MaskAttention("inside", "bilinear"))).eval()
    graph = deployed(network, res)
    figures = {
        "model": model,
        "res": res,
        "precision": "fp16",
        "parameters_m": round(sum(each.numel() for each in network.parameters()) / 1e6, 1),
        "gflop": round(count_flops(graph) / 1e9, 1),
    }
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        path = Path(scratch) / "graph.onnx"
        trace_graph(graph, OPSET, path)
        try:
            simulations = simulate_all(path, Path(scratch))
        except ValueError as error:
            return {column: str({**figures, "error": str(error)[:300]}.get(column, "")) for column in COLUMNS}
    times = {chip: simulation.cost.bounds_ms for chip, simulation in simulations.items()}
    simulation = simulations[devices()[0].simulated_chip]
    cost = simulation.cost
    traffic = cost.input_fill_bytes + cost.fill_bytes + cost.spill_bytes + cost.output_bytes
    figures |= {
        "simulated_ms": round(cost.time_us / 1e3, 2),
        "ops_without_cost": cost.ops_without_cost,
        "binary_mb": round(simulation.binary_bytes / 1e6, 1),
        "ddr_mb": round(traffic / 1e6, 1),
    }
    for row in estimate_all(times, "fp16"):
        if row["device"] in SHOWN:
            figures[f"estimated_ms {row['device']}"] = round(row["latency_ms_estimated"], 1)
    return {column: str(figures.get(column, "")) for column in COLUMNS}


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


def markdown() -> str:
    """Return the table of docs/networks.md, from the two CSV files."""
    mious = {
        (row["model"], row["res"], row["data"]): f"{float(row['miou']):.3f} ({row['source']})"
        for row in read_rows(TABLES / "networks_miou.csv")
    }
    order = {(model, str(res)): place for place, (model, res) in enumerate(ROWS)}
    rows = read_rows(TABLES / "networks.csv")
    heads = ["model", "px", "parameters, M", "GFLOP", "simulated ms", "binary MB", "DDR MB"]
    heads += [f"est. ms {device}" for device in SHOWN] + ["mIoU shapes", "mIoU photographs"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in sorted(rows, key=lambda row: order.get((row["model"], row["res"]), len(order))):
        names = ("res", "parameters_m", "gflop", "simulated_ms", "binary_mb", "ddr_mb")
        cells = [f"`{row['model']}`", *(row[name] or "-" for name in names)]
        cells += [row[f"estimated_ms {device}"] or "-" for device in SHOWN]
        if row["error"]:
            cells[4] = "does not compile whole"
        key = row["model"], row["res"]
        cells += [mious.get((*key, data), "not measured") for data in ("shapes", "photographs")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
