"""sweep-plot: the experiments of a sweep over `res` as a table and a picture, from DVC's own records."""

import argparse
from pathlib import Path

from promptseg.commands.console import say
from promptseg.commands.project import project_root
from promptseg.experiments.records import comparable_points, read_experiments
from promptseg.experiments.sweep import draw_sweep
from promptseg.files import write_bytes
from promptseg.scoring import write_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--prefix", default="", help="of the names of the sweep's experiments; by default all")
    parser.add_argument("--csv", type=Path, help="table to write; by default metrics/sweep.csv of the project")
    parser.add_argument("--svg", type=Path, default=Path("sweep.svg"), help="picture to write (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Write both, and say what is in them and what is not."""
    root = project_root()
    table = options.csv or root / "metrics" / "sweep.csv"
    rows = read_experiments(root)
    if options.prefix and len(rows):
        rows = rows[rows["Experiment"].fillna("").str.startswith(options.prefix)]
    found = comparable_points(rows)
    points = found.points[found.points["can_be_applied"]].sort_values(["res", "latency_ms"])
    picture = draw_sweep(points)
    write_table(table, points)
    write_bytes(options.svg, picture.encode("utf-8"))
    say(f"{len(points)} experiments by the latency `{points['latency_source'].iloc[0]}`: {table}, {options.svg}")
    for name, reason in found.broken.items():
        say(f"left out, broken: {name}: {reason}")
    for kind, count in found.other_kinds.items():
        say(f"{count} more have only the latency `{kind}`, which is not drawn beside this one")
    return 0
