"""Charts as SVG text, drawn by matplotlib: it inlines all it needs, adds no script, and repeats to the byte."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from promptseg.metrics import bootstrap_interval
from promptseg.scoring import BASELINES, Scores

WIDTH_INCHES, PANEL_INCHES, BAR_INCHES = 4.0, 2.2, 0.27  # readable where a phone shrinks it to 320 px
LONGEST_LABEL = 26  # characters beside a bar
MOST_OPERATIONS = 14
INK, OURS, THEIRS = "#1b1f24", "#a3126f", "#8c959f"
# Text stays text, so that a reader can find it; ids come from a fixed salt, or each run would write other bytes.
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "promptseg", "font.family": "sans-serif", "font.size": 9.5}


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart: a value with its interval, and, as a mark, the value to compare it with; or neither."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: float | None = None


def read_curve(folder: Path) -> pd.DataFrame:
    """Read DVCLive's tables, `<figure>.tsv` with the columns step and <figure>: a row for each step, a column for each.

    A figure that a step does not have is NaN. Raises ValueError when a table is damaged, or there is none.
    """
    try:
        tables = [pd.read_csv(path, sep="\t", index_col="step") for path in sorted(folder.glob("*.tsv"))]
        return pd.concat(tables, axis=1).sort_index().astype(float).reset_index()
    except ValueError as error:  # pandas raises its own kinds of it
        raise ValueError(f"{folder}: got no training curve ({error}); run `dvc repro finetune`") from error


def draw_curves(rows: pd.DataFrame, x: str, panels: Sequence[Sequence[str]]) -> str:
    """Return an SVG with one panel, from the top, for each list of columns in `panels`, over the column `x`.

    Empty cells (a score that is taken every few steps) are skipped, and the line goes on. The same rows give the same
    bytes. Raises ValueError when there are no rows or a column is not in them.
    """
    if rows.empty:
        raise ValueError("got a training curve without rows, wanted at least one; rerun `dvc repro finetune`")
    for column in [x, *(column for panel in panels for column in panel)]:
        if column not in rows:
            raise ValueError(f"got a training curve of {sorted(rows)}, wanted the column {column!r} too")
    with mpl.rc_context(SVG):
        return to_svg(_curves(rows, x, panels))


def _curves(rows: pd.DataFrame, x: str, panels: Sequence[Sequence[str]]) -> Figure:
    figure = Figure(figsize=(WIDTH_INCHES, PANEL_INCHES * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for column in panel:
            line = rows[[x, column]].dropna()
            axes.plot(line[x], line[column], marker="." if len(line) <= 60 else "", label=column, lw=1.2)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8.5)
    all_axes[-1].set_xlabel(x)
    return figure


def draw_bars(bars: Sequence[Bar], unit: str, mark: str = "") -> str:
    """Return an SVG of horizontal bars, the first on top, each with its value as text; `mark` names the marks.

    Raises ValueError when there are none.
    """
    if not bars:
        raise ValueError("got no bars to draw, wanted at least one")
    with mpl.rc_context(SVG):
        return to_svg(_bars(bars, f"{unit}; grey: {mark}" if mark else unit))


def _bars(bars: Sequence[Bar], axis: str) -> Figure:
    figure = Figure(figsize=(WIDTH_INCHES, 0.7 + BAR_INCHES * len(bars)), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars))
    axes.barh(places, [bar.value for bar in bars], height=0.62, color=OURS)
    for place, bar in zip(places, bars, strict=True):
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [place, place], color=INK, lw=1.1, marker="|", ms=5)
        if bar.mark is not None:
            axes.plot([bar.mark, bar.mark], [place - 0.38, place + 0.38], color=THEIRS, lw=2.2)
        end = max(value for value in (bar.value, bar.high, bar.mark) if value is not None)
        axes.annotate(_short(bar.value), (end, place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [bar.label for bar in bars])
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.set_xlabel(axis)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _short(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 2 else f"{value:#.3g}".rstrip(".")


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG text, without a date; call it within `rc_context(SVG)`."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def group_bars(scores: Scores, seed: int) -> list[Bar]:
    """Return a bar for each group that has phrases: mIoU, its 95 % interval, and the best trivial baseline as mark."""
    bars = []
    for name, group in scores.groups.dropna().iterrows():
        rows = scores.rows
        members = rows if name == "all" else rows[(rows["size"] == name) | (rows["phrase_kind"] == name)]
        low, high = bootstrap_interval(list(members["iou"]), list(members["image"]), seed)
        bars.append(Bar(f"{name} ({group['phrases']:.0f})", group["miou"], low, high, group[[*BASELINES]].max()))
    return bars


def part_bars(latency: Mapping[str, Any]) -> list[Bar]:
    """Return the simulated milliseconds of each part of the network, most first; or nothing."""
    parts = latency.get("simulated_parts_ms") or {}
    return [Bar(name, ms) for name, ms in sorted(parts.items(), key=lambda part: -part[1])]


def layer_bars(layers: Path) -> tuple[list[Bar], str]:
    """Return a bar for each layer of a CSV (name, unit, ms, cycles), and what they count; or nothing.

    Of a long name the end is shown, which tells nodes apart. A unit that all layers share is said with what they count.
    """
    table = pd.read_csv(layers)
    counted = "ms" if table["ms"].notna().any() else "cycles"
    rows = table.dropna(subset=[counted])
    names = [name if len(name) <= LONGEST_LABEL else f"…{name[1 - LONGEST_LABEL :]}" for name in rows["name"]]
    units = list(rows["unit"])
    if len(set(units)) == 1:
        return [Bar(*row) for row in zip(names, rows[counted], strict=True)], f"{counted}, {units[0]}"
    labels = (f"{name} ({unit})" for name, unit in zip(names, units, strict=True))
    return [Bar(*row) for row in zip(labels, rows[counted], strict=True)], counted


def device_bars(devices: Path) -> list[Bar]:
    """Return each device's estimate with its bounds, the quickest first; or nothing, where none was estimated."""
    columns = ["device", "latency_ms_estimated", "latency_ms_estimated_low", "latency_ms_estimated_high"]
    table = pd.read_csv(devices)[columns].dropna().sort_values("latency_ms_estimated")
    return [Bar(*row) for row in table.itertuples(index=False)]


def operation_bars(ops: Path) -> list[Bar]:
    """Return how many operations of each kind the exported graph has, from a CSV of columns op and count.

    The most frequent come first, as in the table; kinds beyond MOST_OPERATIONS are added up.
    """
    table = pd.read_csv(ops)
    counts = list(zip(table["op"], table["count"].tolist(), strict=True))
    bars = [Bar(name, count) for name, count in counts[:MOST_OPERATIONS]]
    rest = counts[MOST_OPERATIONS:]
    return [*bars, Bar(f"{len(rest)} other kinds", sum(count for _, count in rest))] if rest else bars
