"""devices: what the present graph, or any ONNX file, is estimated to need on every device that is known."""

import argparse
from pathlib import Path

from promptseg.commands import say
from promptseg.commands.project import project_root
from promptseg.files import write_rows
from promptseg.hubs.contract import read_graphs
from promptseg.hubs.devices import Device, devices, estimate_all
from promptseg.hubs.local.profile import Simulation, simulate_all
from promptseg.params import read_params, read_paths

HEAD = f"{'device':<24}{'estimated ms':>13}{'80 % within':>16}{'error':>7}{'models':>8}{'binary MB':>11}  simulated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--graph", type=Path, help="an ONNX file with static shapes; by default the project's graphs")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table there")
    parser.add_argument(
        "--precision", help="what it computes in, for the line (default: the project's; fp16 of --graph)"
    )


def run(options: argparse.Namespace) -> int:
    """Simulate on each simulated chip, unless that was done before, and print a row for each device."""
    if options.graph is None:
        root = project_root()
        graphs = read_graphs(read_paths(root)["graphs"])
        files, precision = {graph.name: graph.path for graph in graphs}, graphs.record.precision
        chosen, cache = read_params(root).hub.device, root / ".cache"
    else:
        files, precision = {options.graph.stem: options.graph}, "fp16"
        chosen, cache = None, Path.home() / ".cache" / "promptseg"
    precision = options.precision or precision
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0]}: got no such file, wanted an ONNX graph; `dvc repro export`, or name one (--graph)"
        )
    rows = []
    for name, graph in files.items():
        simulations = simulate_all(graph, cache / "simulations")
        if len(files) > 1:
            say(f"{name}:")
        say(HEAD)
        for device in devices():
            mark = "  <- hub.device" if device.name == chosen else ""
            say(describe(device, simulations[device.simulated_chip], precision) + mark)
        simulated_ms = {chip: simulation.cost.bounds_ms for chip, simulation in simulations.items()}
        estimates = estimate_all(simulated_ms, precision)
        rows += [{"graph": name, **row} if len(files) > 1 else row for row in estimates]
    if options.csv is not None:
        write_rows(options.csv, rows, list(rows[0]))
    say("estimates, not measurements: a line through published latencies; see docs/devices.md")
    return 0


def describe(device: Device, simulation: Simulation, precision: str) -> str:
    """Return a device's row: its estimate, or that the precision has no line yet; the simulated figure in any case."""
    line, chip = device.lines.get(precision), device.simulated_chip
    simulated_ms, low_ms, high_ms = simulation.cost.bounds_ms
    if line is None:
        estimated = f"{'no line yet':>13}{'':>31}"
    else:
        estimate = line.estimate(simulated_ms, low_ms, high_ms)
        within = f"{estimate.low_ms:.2f} to {estimate.high_ms:.2f}"
        estimated = f"{estimate.latency_ms:>13.2f}{within:>16}{line.median_error:>7.0%}{line.models:>8}"
    simulated = f"{simulated_ms:.2f} ms on {chip.soc_model} (v{chip.htp_arch})"
    return f"{device.name:<24}{estimated}{simulation.binary_bytes / 1e6:>11.1f}  {simulated}"
