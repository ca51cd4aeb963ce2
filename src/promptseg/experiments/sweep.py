"""A sweep over resolutions as a table and as one picture: what each size costs, and what it is worth."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from promptseg.experiments.points import Point, pareto_front
from promptseg.latencies import CPU, SPELLED
from promptseg.report.curves import OURS, SVG, THEIRS, to_svg

DECIMALS = 5


def sweep_csv(points: Sequence[Point]) -> str:
    """Return a table of the points, by resolution, a column for each field."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in fields(Point)], lineterminator="\n")
    writer.writeheader()
    for point in _by_res(points):
        row = asdict(point)
        writer.writerow(
            {name: round(value, DECIMALS) if isinstance(value, float) else value for name, value in row.items()}
        )
    return stream.getvalue()


def draw_sweep(points: Sequence[Point]) -> str:
    """Return an SVG of three panels: mIoU and latency against `res`, and one against the other, the front joined.

    Raises ValueError when there are fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"got {len(points)} experiments to draw, wanted at least two; queue them with `grid`")
    with mpl.rc_context(SVG):
        figure = Figure(figsize=(9.6, 3.1), layout="constrained")
        quality, latency, tradeoff = figure.subplots(1, 3)
        _draw_quality(quality, _by_res(points))
        _draw_latency(latency, _by_res(points))
        _draw_tradeoff(tradeoff, points)
        for axes in (quality, latency, tradeoff):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return to_svg(figure)


def _by_res(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: (point.res, point.latency_ms))


def _draw_quality(axes: Axes, points: Sequence[Point]) -> None:
    res = [point.res for point in points]
    axes.fill_between(res, [p.miou_low for p in points], [p.miou_high for p in points], color=OURS, alpha=0.15, lw=0)
    axes.plot(res, [point.miou for point in points], color=OURS, marker="o", ms=4)
    axes.set(xlabel="res (px)", ylabel="mIoU", title="mIoU, 95 % interval")


def _draw_latency(axes: Axes, points: Sequence[Point]) -> None:
    res = [point.res for point in points]
    bounded = [p for p in points if p.latency_ms_low is not None and p.latency_ms_high is not None]
    low, high = [p.latency_ms_low or 0.0 for p in bounded], [p.latency_ms_high or 0.0 for p in bounded]
    axes.fill_between([p.res for p in bounded], low, high, color=OURS, alpha=0.15, lw=0)
    source = points[0].latency_source
    axes.plot(res, [p.latency_ms for p in points], color=OURS, marker="o", ms=4, label=SPELLED[source])
    hosted = [p for p in points if p.latency_ms_cpu is not None and source != CPU]
    cpu = [p.latency_ms_cpu or 0.0 for p in hosted]
    if hosted:
        axes.plot([p.res for p in hosted], cpu, color=THEIRS, marker="o", ms=4, label=SPELLED[CPU])
    axes.set(xlabel="res (px)", ylabel="ms", title="latency", yscale="log")
    axes.legend(fontsize=8.5)


def _draw_tradeoff(axes: Axes, points: Sequence[Point]) -> None:
    front = pareto_front(points)
    axes.plot(
        [p.latency_ms for p in front], [p.miou for p in front], color=OURS, lw=1, ls="--", label="none beats these"
    )
    for point in points:
        colour = OURS if point in front else THEIRS
        axes.plot([point.latency_ms], [point.miou], color=colour, marker="o", ms=5)
        axes.annotate(str(point.res), (point.latency_ms, point.miou), (4, 4), textcoords="offset points")
    axes.set(xlabel=f"ms ({SPELLED[points[0].latency_source]})", ylabel="mIoU", title="the trade-off")
    axes.margins(x=0.12, y=0.12)
    axes.legend(fontsize=8.5)
