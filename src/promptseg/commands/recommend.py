"""recommend: of the experiments that DVC has recorded, those that none beats, and the one to take."""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from promptseg.commands import say
from promptseg.commands.project import project_root
from promptseg.experiments.records import (
    Comparable,
    Floors,
    best_under,
    comparable_points,
    fastest_above,
    pareto_front,
    read_experiments,
)
from promptseg.params import read_params
from promptseg.scoring import NAMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--above-miou", type=float, metavar="MIOU", help="the fastest experiment of at least this mIoU")
    parser.add_argument(
        "--under-ms", type=float, metavar="MS", help="the best experiment of at most so many milliseconds"
    )
    parser.add_argument("--latency", choices=NAMES, help="which one; by default the NPU's that most experiments have")


def run(options: argparse.Namespace) -> int:
    """Print the table, the front marked, and what was asked for."""
    root = project_root()
    found = compare(root, read_experiments(root), options.latency)
    same = {name: f"{value:g}" if isinstance(value, float) else value for name, value in found.same.items()}
    say(", ".join(f"{name} {value}" for name, value in same.items()))
    for line in table(found.points):
        say(line)
    say("* no other is both faster and better")
    say_what_is_left_out(found)
    if options.above_miou is not None:
        point = fastest_above(found.points, options.above_miou)
        sure = "its interval lies above, too" if point.miou_low >= options.above_miou else "its interval reaches below"
        say(f"fastest of mIoU {options.above_miou:g} or more: {_spell(point)}; {sure}")
        _say_how_to_take(point)
    if options.under_ms is not None:
        point = best_under(found.points, options.under_ms)
        within = point.latency_ms_high <= options.under_ms  # False where there are no bounds: NaN
        sure = "within its bounds, too" if within else "its bounds reach above"
        say(f"best of {options.under_ms:g} ms or less: {_spell(point)}; {sure}")
        _say_how_to_take(point)
    return 0


def compare(root: Path, rows: pd.DataFrame, latency: str | None = None) -> Comparable:
    """Compare experiments of the project at `root`, whose params say which of them are too broken for that."""
    hub = read_params(root).hub
    return comparable_points(rows, Floors(hub.min_fidelity_mean, hub.min_fidelity_worst), latency)


def say_what_is_left_out(found: Comparable) -> None:
    """Name broken experiments with the reason, and count those that cannot be compared with the others."""
    for name, reason in found.broken.items():
        say(f"left out: {name}: {reason}")
    for kind, count in found.other_kinds.items():
        say(f"{count} more have only the latency `{kind}`, which is not compared with this one: --latency {kind}")
    if found.left_out:
        say(f"{found.left_out} more were asked other questions, or have no figures (yet)")


def table(points: pd.DataFrame) -> list[str]:
    """Return lines of at most 80 columns, the fastest point first, those of the front marked."""
    front = pareto_front(points)
    width = min(24, max(len("experiment"), *(len(name) for name in points["name"])))
    source = points["latency_source"].iloc[0]
    several = points["precision"].nunique() > 1  # then it is what tells points apart, and the host's time goes
    last = "precision" if several else "ms (cpu)"
    lines = [f"  {'experiment':{width}}  res  {'ms (' + source + ')':>14}  mIoU   95 % interval  {last}"]
    for point in points.itertuples():
        cpu = "-" if pd.isna(point.latency_ms_cpu) else f"{point.latency_ms_cpu:.1f}"
        cpu = point.precision if several else cpu
        interval = f"{point.miou_low:.3f} to {point.miou_high:.3f}"
        lines.append(
            f"{'*' if point.Index in front.index else ' '} {point.name[:width]:{width}} {point.res:4}"
            f"  {point.latency_ms:14.2f}  {point.miou:.3f}  {interval}  {cpu:>8}"
        )
    return lines


def _spell(point: Any) -> str:
    return f"{point.name} (res {point.res}, {point.latency_ms:.2f} ms {point.latency_source}, mIoU {point.miou:.3f})"


def _say_how_to_take(point: Any) -> None:
    say(f"  take it: dvc exp apply {point.name}" if point.can_be_applied else "  it is what you have")
