"""One self-contained HTML page about one run: it loads nothing, so it works offline, by mail and on a phone."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from promptseg.files import atomic_path
from promptseg.report.figures import deployment_figures, headline, quality_figures
from promptseg.report.pictures import EXAMPLE_BYTES, Example, encode_jpeg
from promptseg.scoring import Scores

TEMPLATE = "page.html.j2"
GROUP_NOTES = {
    "best": "The highest IoU.",
    "median": "The middle of the ranking: what to expect.",
    "worst": "The lowest IoU.",
}


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


def flatten(nested: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return (dotted name, text) for each leaf of nested mappings, in order."""
    lines: list[tuple[str, str]] = []
    for name, value in nested.items():
        if isinstance(value, Mapping):
            lines += flatten(value, f"{prefix}{name}.")
        else:
            lines.append((f"{prefix}{name}", "null" if value is None else str(value)))
    return lines


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


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
