"""Charts as SVG text, drawn by matplotlib: it inlines all it needs, adds no script, and repeats to the byte."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

WIDTH_INCHES, PANEL_INCHES, BAR_INCHES = 4.0, 2.2, 0.27  # readable where a phone shrinks it to 320 px
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


def read_curve(path: Path) -> list[dict[str, float | None]]:
    """Read a CSV of numbers, one dictionary a line; an empty cell is None.

    Raises ValueError with the line and column of a cell that is no number.
    """
    rows: list[dict[str, float | None]] = []
    with path.open(newline="", encoding="utf-8") as stream:
        for number, line in enumerate(csv.DictReader(stream), start=2):
            rows.append({column: _number(cell, f"{path}:{number}, {column}") for column, cell in line.items()})
    return rows


def draw_curves(rows: Sequence[Mapping[str, float | None]], x: str, panels: Sequence[Sequence[str]]) -> str:
    """Return an SVG with one panel, from the top, for each list of columns in `panels`, over the column `x`.

    Cells that are None or NaN (a score that is taken every few steps) are skipped, and the line goes on. The same rows
    give the same bytes. Raises ValueError when there are no rows or a column is not in them.
    """
    if not rows:
        raise ValueError("got a training curve without rows, wanted at least one; rerun `dvc repro finetune`")
    for column in [x, *(column for panel in panels for column in panel)]:
        if column not in rows[0]:
            raise ValueError(f"got a training curve of {sorted(rows[0])}, wanted the column {column!r} too")
    with mpl.rc_context(SVG):
        return to_svg(_curves(rows, x, panels))


def _curves(rows: Sequence[Mapping[str, float | None]], x: str, panels: Sequence[Sequence[str]]) -> Figure:
    figure = Figure(figsize=(WIDTH_INCHES, PANEL_INCHES * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for column in panel:
            points = [(row[x], row[column]) for row in rows if _present(row[x]) and _present(row[column])]
            marker = "." if len(points) <= 60 else ""
            axes.plot([at for at, _ in points], [value for _, value in points], marker=marker, label=column, lw=1.2)
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
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 2 else f"{value:.3g}"


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG text, without a date; call it within `rc_context(SVG)`."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _present(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _number(cell: str | None, where: str) -> float | None:
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError as error:
        raise ValueError(f"{where}: got {cell!r}, wanted a number or an empty cell") from error
