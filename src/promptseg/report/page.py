"""One self-contained HTML page about one run: it loads nothing, so it works offline, by mail and on a phone."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from promptseg.files import atomic_path
from promptseg.report.pictures import EXAMPLE_BYTES, Example, encode_jpeg
from promptseg.scoring import Scores

TEMPLATE = "page.html.j2"
NOT_MEASURED = "not measured"
GROUP_NOTES = {
    "best": "The highest IoU.",
    "median": "The middle of the ranking: what to expect.",
    "worst": "The lowest IoU.",
}


@dataclass(frozen=True)
class Figure:
    """One number as the page shows it, with what it is and how it came about."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    `latency` is metrics/latency.json, where each figure may be null or missing; `curve_png` is None when nothing was
    trained; `provenance` is nested choices and versions (params, commit, tools), shown as dotted names.
    """

    title: str
    scores: Scores
    latency: Mapping[str, Any]
    examples: Sequence[Example]
    curve_png: bytes | None
    provenance: Mapping[str, Any]


def write_report(path: Path, report: Report) -> None:
    """Render the page and write it atomically. The same report gives the same bytes."""
    page = render_report(report)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def render_report(report: Report) -> str:
    """Return the page as HTML text. Phrases, and all else that users bring, are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(TEMPLATE).render(
        title=report.title,
        headline=headline(report.scores.summary, report.latency),
        quality=quality_figures(report.scores.summary),
        deployment=deployment_figures(report.latency),
        groups=report.scores.groups,
        curve=None if report.curve_png is None else _data_uri("image/png", report.curve_png),
        gallery=_gallery(report.examples),
        provenance=flatten(report.provenance),
    )


def headline(summary: Mapping[str, Any], latency: Mapping[str, Any]) -> list[Figure]:
    """Return the three figures to read first: quality, and latency on the NPU and on the host."""
    return [
        Figure(
            "mIoU",
            f"{summary['miou']:.3f}",
            f"95 % interval {summary['miou_ci_low']:.3f} to {summary['miou_ci_high']:.3f}; "
            f"{summary['miou_over_best_baseline']:.1f} times the best trivial baseline",
        ),
        Figure(
            "Latency on the NPU, estimated", _with_unit(latency.get("latency_ms_estimated"), "ms"), _bounds(latency)
        ),
        Figure("Latency on this host's CPU", _with_unit(_host(latency).get("latency_ms_cpu"), "ms"), "measured"),
    ]


def quality_figures(summary: Mapping[str, Any]) -> list[Figure]:
    """Return the overall scores, one per way of counting."""
    precision = [
        Figure(f"P@{name.removeprefix('p_at_')}", f"{value:.3f}", f"IoU of 0.{name.removeprefix('p_at_')} or more")
        for name, value in summary.items()
        if name.startswith("p_at_")
    ]
    return [
        Figure("mIoU", f"{summary['miou']:.3f}", f"on the original pictures: {_coverage(summary)}"),
        Figure("mIoU, canvas", f"{summary['miou_canvas']:.3f}", "the challenge's way: on the padded canvas"),
        Figure("cIoU", f"{summary['ciou']:.3f}", "sum of intersections over sum of unions"),
        *precision,
    ]


def deployment_figures(latency: Mapping[str, Any]) -> list[Figure]:
    """Return what compiling and profiling said; "not measured" where it said nothing."""
    return [
        Figure("NPU latency, estimated", _with_unit(latency.get("latency_ms_estimated"), "ms"), _bounds(latency)),
        Figure("NPU latency, simulated", _with_unit(latency.get("latency_ms_simulated"), "ms"), "before calibration"),
        Figure("DDR read", _with_unit(latency.get("ddr_read_mb"), "MB"), "per inference, from the compiler"),
        Figure("Spill", _with_unit(latency.get("spill_mb"), "MB"), "did not fit the NPU's own memory"),
        Figure(
            "Operations without a cost", _with_unit(latency.get("ops_without_cost"), ""), "the estimate leaves them out"
        ),
        Figure("Host CPU latency", _with_unit(_host(latency).get("latency_ms_cpu"), "ms"), "measured on this machine"),
    ]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return (dotted name, text) for each leaf of nested mappings, in order."""
    lines: list[tuple[str, str]] = []
    for name, value in nested.items():
        if isinstance(value, Mapping):
            lines += flatten(value, f"{prefix}{name}.")
        else:
            lines.append((f"{prefix}{name}", "null" if value is None else str(value)))
    return lines


def _bounds(latency: Mapping[str, Any]) -> str:
    """Say that an estimate is one, and how far it may be off."""
    low, high = latency.get("latency_ms_estimated_low"), latency.get("latency_ms_estimated_high")
    if latency.get("latency_ms_estimated") is None:
        return "nothing was compiled for the NPU"
    bounds = "bounds not known" if low is None or high is None else f"{_digits(low)} to {_digits(high)} ms"
    return f"{bounds}; an estimate from the compiler's simulator, not a measurement on a device"


def _coverage(summary: Mapping[str, Any]) -> str:
    scored = f"{summary['phrases']} phrases of {summary['pictures']} pictures"
    left_out = summary["phrases_without_prediction"]
    return f"{scored}; {left_out} more were not run" if left_out else scored


def _host(latency: Mapping[str, Any]) -> Mapping[str, Any]:
    return latency.get("host") or {}


def _with_unit(value: float | None, unit: str) -> str:
    return NOT_MEASURED if value is None else f"{_digits(value)} {unit}".strip()


def _digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _gallery(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [
        {
            "name": group,
            "note": note,
            "examples": [
                {"row": each.row, "source": _data_uri("image/jpeg", encode_jpeg(each.image, EXAMPLE_BYTES))}
                for each in examples
                if each.group == group
            ],
        }
        for group, note in GROUP_NOTES.items()
    ]


def _data_uri(media_type: str, content: bytes) -> Markup:
    return Markup(f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}")
