"""One self-contained HTML page about one run: it loads nothing, so it works offline, by mail and on a phone."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from promptseg.files import atomic_path
from promptseg.report.figures import deployment_figures, headline, quality_figures
from promptseg.report.tiles import Tile
from promptseg.scoring import Scores

FOLDER = Path(__file__).parent
TEMPLATE, CHANGES_TEMPLATE, SCRIPT = "page.html.j2", "changes.html.j2", "page.js"
CHANGES = "<!-- what changed goes here -->"  # `python -m promptseg report` puts it in: a stage knows no commit


@dataclass(frozen=True)
class Chart:
    """An SVG with a name that the template places it by, and what it shows."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    `latency` and `fidelity` are the contents of metrics files, where each figure may be null or missing; of `charts`
    there are those that had something to draw; `provenance` is nested choices and versions, shown as dotted names.
    """

    title: str
    scores: Scores
    latency: Mapping[str, Any]
    fidelity: Mapping[str, Any]
    charts: Sequence[Chart]
    tiles: Sequence[Tile]
    provenance: Mapping[str, Any]


def write_report(path: Path, report: Report) -> None:
    """Render the page and write it atomically. The same report gives the same bytes."""
    page = render_report(report)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def render_report(report: Report) -> str:
    """Return the page as HTML text. Phrases, and all else that users bring, are escaped.

    The page's one script is allowed by its hash, so that no other can run, wherever it came from.
    """
    script = (FOLDER / SCRIPT).read_text(encoding="utf-8")
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            title=report.title,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
            headline=headline(report.scores.summary, report.latency),
            quality=quality_figures(report.scores.summary),
            deployment=deployment_figures(report.latency),
            groups=report.scores.groups,
            fidelity=report.fidelity,
            charts={chart.name: _picture(chart) for chart in report.charts},
            tiles=[_tile(tile) for tile in report.tiles],
            provenance=flatten(report.provenance),
            changes=CHANGES,
        )
    )


def insert_changes(page: str, changes: Any, head: str, base: str) -> str:
    """Put what changed since `base` into a rendered page; `changes` is an `experiments.changes.Changes`.

    `head` is the commit that the project stands at. Raises ValueError when the page has no place for it.
    """
    if CHANGES not in page:
        raise ValueError("got a report that is not from this version, wanted a new one; run `dvc repro score`")
    section = environment().get_template(CHANGES_TEMPLATE).render(changes=changes, head=head, base=base)
    return page.replace(CHANGES, section, 1)


def environment() -> Environment:
    """Return what renders this package's templates: everything escaped, nothing left undefined."""
    return Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return (dotted name, text) for each leaf of nested mappings, in order."""
    lines: list[tuple[str, str]] = []
    for name, value in nested.items():
        if isinstance(value, Mapping):
            lines += flatten(value, f"{prefix}{name}.")
        else:
            lines.append((f"{prefix}{name}", "null" if value is None else str(value)))
    return lines


def _picture(chart: Chart) -> dict[str, str]:
    return {"caption": chart.caption, "source": _data_uri("image/svg+xml", chart.svg.encode("utf-8"))}


def _tile(tile: Tile) -> dict[str, Any]:
    layers = {name: _data_uri("image/png", getattr(tile, name)) for name in ("prediction", "truth", "difference")}
    return {"group": tile.group, "row": tile.row, "picture": _data_uri("image/jpeg", tile.picture), "layers": layers}


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
