"""sweep-plot: the experiments of a sweep over `res` as a table and a picture, from DVC's own records."""

import argparse
from pathlib import Path

from promptseg.commands import say
from promptseg.commands.project import project_root
from promptseg.commands.recommend import compare, say_what_is_left_out
from promptseg.experiments.records import read_experiments
from promptseg.experiments.sweep import draw_sweep
from promptseg.files import write_bytes, write_table
from promptseg.scoring import NAMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--prefix", default="", help="of the names of the sweep's experiments; by default all")
    parser.add_argument("--csv", type=Path, help="table to write; by default metrics/sweep.csv of the project")
    parser.add_argument("--svg", type=Path, help="picture to write; by default sweep.svg of the project")
    parser.add_argument("--latency", choices=NAMES, help="which one; by default the NPU's that most experiments have")


def run(options: argparse.Namespace) -> int:
    """Write both, and say what is in them and what is not."""
    root = project_root()
    table, picture = options.csv or root / "metrics" / "sweep.csv", options.svg or root / "sweep.svg"
    rows = read_experiments(root)
    if options.prefix and len(rows):
        rows = rows[rows["Experiment"].fillna("").str.startswith(options.prefix)]
    found = compare(root, rows, options.latency)
    points = found.points[found.points["can_be_applied"]].sort_values(["res", "latency_ms"])
    drawn = draw_sweep(points)
    write_table(table, points)
    write_bytes(picture, drawn.encode("utf-8"))
    say(f"{len(points)} experiments by the latency `{points['latency_source'].iloc[0]}`: {table}, {picture}")
    say_what_is_left_out(found)
    return 0
