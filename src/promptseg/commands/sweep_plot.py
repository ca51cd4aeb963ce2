"""sweep-plot: the experiments of a sweep over `res` as a table and a picture, from DVC's own records."""

import argparse
from pathlib import Path

from promptseg.commands.console import say
from promptseg.commands.project import ROOT
from promptseg.experiments.records import comparable_points, read_experiments
from promptseg.experiments.sweep import draw_sweep, sweep_csv
from promptseg.files import write_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--prefix", default="", help="of the names of the sweep's experiments; by default all")
    parser.add_argument("--csv", type=Path, default=ROOT / "metrics" / "sweep.csv", help="table to write")
    parser.add_argument("--svg", type=Path, default=ROOT / "docs" / "sweep.svg", help="picture to write")


def run(options: argparse.Namespace) -> int:
    """Write both, and say what is in them."""
    rows = [row for row in read_experiments(ROOT) if str(row.get("Experiment") or "").startswith(options.prefix)]
    found = comparable_points(rows)
    points = [point for point in found.points if point.can_be_applied]
    picture = draw_sweep(points)
    write_bytes(options.csv, sweep_csv(points).encode("utf-8"))
    write_bytes(options.svg, picture.encode("utf-8"))
    say(f"{len(points)} experiments by the latency `{points[0].latency_source}`: {options.csv}, {options.svg}")
    for kind, count in found.other_kinds.items():
        say(f"{count} more have only the latency `{kind}`, which is not drawn beside this one")
    return 0
