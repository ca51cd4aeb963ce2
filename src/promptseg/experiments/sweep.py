"""A sweep over resolutions as one picture: what each size costs, and what it is worth."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from promptseg.experiments.records import pareto_front
from promptseg.report.charts import OURS, SVG, THEIRS, to_svg
from promptseg.scoring import CPU, SPELLED

MARKS = ("-", "--", ":", "-.")  # lines of the precisions


def draw_sweep(points: pd.DataFrame) -> str:
    """Return an SVG of three panels: mIoU and latency against `res`, and one against the other, the front joined.

    Raises ValueError when there are fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"got {len(points)} experiments to draw, wanted at least two; queue them with `grid`")
    with mpl.rc_context(SVG):
        figure = Figure(figsize=(9.6, 3.1), layout="constrained")
        quality, latency, tradeoff = figure.subplots(1, 3)
        by_res = points.sort_values(["res", "latency_ms"])
        for precision, each in by_res.groupby("precision", sort=False):
            style = MARKS[list(by_res["precision"].unique()).index(precision) % len(MARKS)]
            label = str(precision) if by_res["precision"].nunique() > 1 else ""
            _draw_quality(quality, each, style, label)
            _draw_latency(latency, each, style, label)
        _draw_tradeoff(tradeoff, points)
        for axes in (quality, latency, tradeoff):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return to_svg(figure)


def _draw_quality(axes: Axes, points: pd.DataFrame, style: str, label: str) -> None:
    axes.fill_between(points["res"], points["miou_low"], points["miou_high"], color=OURS, alpha=0.15, lw=0)
    axes.plot(points["res"], points["miou"], style, color=OURS, marker="o", ms=4, label=label or None)
    if label:
        axes.legend(fontsize=8.5)
    axes.set(xlabel="res (px)", ylabel="mIoU", title="mIoU, 95 % interval")


def _draw_latency(axes: Axes, points: pd.DataFrame, style: str, label: str) -> None:
    bounded = points.dropna(subset=["latency_ms_low", "latency_ms_high"])
    low, high = bounded["latency_ms_low"], bounded["latency_ms_high"]
    axes.fill_between(bounded["res"], low, high, color=OURS, alpha=0.15, lw=0)
    source = points["latency_source"].iloc[0]
    said = f"{SPELLED[source]}, {label}" if label else SPELLED[source]
    axes.plot(points["res"], points["latency_ms"], style, color=OURS, marker="o", ms=4, label=said)
    hosted = points.dropna(subset=["latency_ms_cpu"])
    if source != CPU and not hosted.empty:
        axes.plot(hosted["res"], hosted["latency_ms_cpu"], color=THEIRS, marker="o", ms=4, label=SPELLED[CPU])
    axes.set(xlabel="res (px)", ylabel="ms", title="latency", yscale="log")
    axes.legend(fontsize=8.5)


def _draw_tradeoff(axes: Axes, points: pd.DataFrame) -> None:
    front = pareto_front(points)
    axes.plot(front["latency_ms"], front["miou"], color=OURS, lw=1, ls="--", label="none beats these")
    for point in points.itertuples():
        colour = OURS if point.Index in front.index else THEIRS
        axes.plot([point.latency_ms], [point.miou], color=colour, marker="o", ms=5)
        precision = "" if points["precision"].nunique() == 1 else f" {point.precision}"
        axes.annotate(f"{point.res}{precision}", (point.latency_ms, point.miou), (4, 4), textcoords="offset points")
    axes.set(xlabel=f"ms ({SPELLED[points['latency_source'].iloc[0]]})", ylabel="mIoU", title="the trade-off")
    axes.margins(x=0.12, y=0.12)
    axes.legend(fontsize=8.5)
