"""Curves over the steps of a training run, drawn from its table."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

WIDTH_INCHES, PANEL_INCHES, DPI = 4.4, 2.2, 150  # readable where a phone shrinks it to 320 px


def read_curve(path: Path) -> list[dict[str, float | None]]:
    """Read a CSV of numbers, one dictionary a line; an empty cell is None.

    Raises ValueError with the line and column of a cell that is no number.
    """
    rows: list[dict[str, float | None]] = []
    with path.open(newline="", encoding="utf-8") as stream:
        for number, line in enumerate(csv.DictReader(stream), start=2):
            rows.append({column: _number(cell, f"{path}:{number}, {column}") for column, cell in line.items()})
    return rows


def draw_curves(rows: Sequence[Mapping[str, float | None]], x: str, panels: Sequence[Sequence[str]]) -> bytes:
    """Return a PNG with one panel, from the top, for each list of columns in `panels`, over the column `x`.

    Cells that are None or NaN (a score that is taken every few steps) are skipped, and the line goes on. The same rows
    give the same bytes. Raises ValueError when there are no rows or a column is not in them.
    """
    if not rows:
        raise ValueError("got a training curve without rows, wanted at least one; rerun `dvc repro finetune`")
    for column in [x, *(column for panel in panels for column in panel)]:
        if column not in rows[0]:
            raise ValueError(f"got a training curve of {sorted(rows[0])}, wanted the column {column!r} too")
    figure = Figure(figsize=(WIDTH_INCHES, PANEL_INCHES * len(panels)), dpi=DPI, layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for column in panel:
            points = [(row[x], row[column]) for row in rows if _present(row[x]) and _present(row[column])]
            marker = "." if len(points) <= 60 else ""
            axes.plot([at for at, _ in points], [value for _, value in points], marker=marker, label=column, lw=1.2)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    all_axes[-1].set_xlabel(x)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
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
