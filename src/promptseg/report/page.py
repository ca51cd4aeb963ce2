"""One self-contained HTML page about one run: it loads nothing, so it works offline, by mail and on a phone."""

import base64
import hashlib
import html
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from promptseg.report.charts import (
    device_bars,
    draw_bars,
    draw_curves,
    group_bars,
    layer_bars,
    operation_bars,
    part_bars,
    read_curve,
)
from promptseg.report.gallery import Shown, Tile, draw_examples, gallery_sheet, make_tiles, pick
from promptseg.scoring import RECORDED, Scores

_LOG = logging.getLogger(__name__)
FOLDER = Path(__file__).parent
TEMPLATE, SCRIPT = "page.html.j2", "page.js"
# What `python -m promptseg report` puts in, for a stage knows neither.
COMMIT, SENSITIVITY = "<!-- the git commit -->", "<!-- what 8 bits cost -->"
NOT_MEASURED = "not measured"
CURVE_PANELS = (("loss",), ("mask_bce", "mask_dice", "contrast", "region"), ("val_miou", "train_miou"))
TOOLS = ("numpy", "pandas", "pillow", "matplotlib", "pycocotools", "jinja2")  # that made the scores and the page


@dataclass(frozen=True)
class Figure:
    """One number as text, with its unit."""

    label: str
    value: str
    note: str


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


def build_report(
    scores: Scores,
    shown: Shown,
    records: Mapping[str, Mapping[str, Any]],
    tables: Mapping[str, Path],
    each: int,
    seed: int,
) -> tuple[Report, bytes]:
    """Return what the page shows, for `render_report`, and the gallery as JPEG; its headline goes to the log.

    `records` holds the contents of latency.json and fidelity.json under these names, and under "provenance" what is
    listed on the page; `tables` holds the files "curve" (the training), "ops" (the graph's operations), "layers" (the
    slowest of the compiled graph) and "devices" (every device's estimate). `each` best, median and worst samples are
    shown (on the page: of each kind of phrase); `seed` draws the groups' intervals.
    """
    page = Report(
        title="promptseg",
        scores=scores,
        latency=records["latency"],
        fidelity=records["fidelity"],
        charts=_charts(scores, records, tables, seed),
        tiles=make_tiles(scores.rows, shown, each),
        provenance=records["provenance"],
    )
    figures = headline(scores.summary, records["latency"], records["fidelity"])
    _LOG.info("%s", "; ".join(f"{figure.label}: {figure.value}" for figure in figures))
    return page, gallery_sheet(list(draw_examples(pick(scores.rows, each), shown)))


def _charts(
    scores: Scores, records: Mapping[str, Mapping[str, Any]], tables: Mapping[str, Path], seed: int
) -> list[Chart]:
    """Draw what there is: the simulator knows parts of the network, a device does not; a run may train nothing."""
    charts = [Chart("groups", "mIoU", draw_bars(group_bars(scores, seed), "mIoU", "best trivial baseline"))]
    layers, unit = layer_bars(tables["layers"])
    if layers:
        charts.append(Chart("layers", "The slowest layers of the compiled graph", draw_bars(layers, unit)))
    parts = part_bars(records["latency"])
    if parts:
        charts.append(Chart("parts", "Where the simulated milliseconds go", draw_bars(parts, "ms, simulated")))
    estimates = device_bars(tables["devices"])
    if estimates:
        charts.append(Chart("devices", "The same graph on other devices", draw_bars(estimates, "ms, estimated")))
    operations = draw_bars(operation_bars(tables["ops"]), "operations")
    charts.append(Chart("operations", "Operations of the exported graph", operations))
    rows = read_curve(tables["curve"])
    if len(rows) > 1:
        charts.append(Chart("training", "Training", draw_curves(rows, "step", CURVE_PANELS)))
    return charts


def provenance(
    choices: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Return what a page lists of its origin, nested: params, what each artefact says of itself, hashes, tools.

    `records`: those of `scoring.RECORDED`; checkpoint and compiled graph are listed whole. All of it follows from what
    the stage depends on. The git commit does not, and is not here: the same inputs would give another page after each
    commit. `python -m promptseg report` adds it.
    """
    compiled = {name: value for name, value in records["compiled"].items() if value not in (None, "")}
    measured = {artefact: records[artefact] for artefact in ("export", "latency", "fidelity")}
    return {
        **choices,
        "checkpoint": records["checkpoint"],
        "compiled": compiled,
        **{artefact: {name: record[name] for name in RECORDED[artefact]} for artefact, record in measured.items()},
        "sha256": dict(hashes),
        "tools": {name: version(name) for name in TOOLS},
    }


def render_report(report: Report) -> str:
    """Return the page as HTML text. Phrases, and all else that users bring, are escaped.

    The page's one script is allowed by its hash, so that no other can run, wherever it came from.
    """
    script = (FOLDER / SCRIPT).read_text(encoding="utf-8")
    templates = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return templates.get_template(TEMPLATE).render(
        title=report.title,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        headline=headline(report.scores.summary, report.latency, report.fidelity),
        quality=quality_figures(report.scores.summary),
        fidelity=fidelity_figures(report.fidelity),
        deployment=deployment_figures(report.latency),
        groups=report.scores.groups.dropna().reset_index().to_dict("records"),
        charts={chart.name: _picture(chart) for chart in report.charts},
        tiles=[_tile(tile) for tile in report.tiles],
        provenance=flatten(report.provenance),
        commit=COMMIT,
        sensitivity=SENSITIVITY,
    )


def insert_later(page: str, commit: str, sensitivity: str | None) -> str:
    """Put the git commit into a rendered page, and the SVG that `sensitivity` drew, if it ran.

    Raises ValueError when the page has no place for them.
    """
    if COMMIT not in page or SENSITIVITY not in page:
        raise ValueError("got a report that is not from this version, wanted a new one; run `dvc repro score`")
    section = ""
    if sensitivity is not None:
        caption = "What 8 bits cost, part by part"
        picture = _picture(Chart("sensitivity", caption, sensitivity))["source"]
        section = (
            f'<h2 id="sensitivity">{caption}</h2>\n<img class="chart" src="{picture}" alt="Chart: {caption}">\n'
            '<p class="note">Each alone in 8 bits, the rest in float: how far its masks are from those of the float '
            "graph. By <code>python -m promptseg sensitivity</code>, when it last ran; milliseconds are in "
            "metrics/sensitivity.csv.</p>\n"
        )
    return page.replace(COMMIT, f"Git commit: {html.escape(commit)}.", 1).replace(SENSITIVITY, section, 1)


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


def headline(summary: Mapping[str, Any], latency: Mapping[str, Any], fidelity: Mapping[str, Any]) -> list[Figure]:
    """Return the figures to read first: quality, whether what is timed has it, and latency on the NPU and on the host.

    `summary`, `latency` and `fidelity` are the contents of score.json, latency.json and fidelity.json, here and below;
    in the latter two each figure may be null or missing. A latency on the NPU comes from a device's clock, or else is
    called an estimate.
    """
    quality = (
        f"95 % interval {summary['miou_ci_low']:.3f} to {summary['miou_ci_high']:.3f}; "
        f"{summary['miou_over_best_baseline']:.1f} times the best trivial baseline"
    )
    measured = latency.get("latency_ms_device")
    if measured is None:
        npu = Figure("Latency on the NPU, estimated", _ms(latency, "latency_ms_estimated"), _estimate_note(latency))
    else:
        npu = Figure("Latency on the NPU, measured", _quantity(measured, "ms"), _device_note(latency))
    host = Figure("Latency on this host's CPU", _ms(_host(latency), "latency_ms_cpu"), _host_note(latency))
    binary = _comparison("Binary's masks, IoU with the scored ones", fidelity.get("binary"))
    return [Figure("mIoU", f"{summary['miou']:.3f}", quality), binary, npu, host]


def quality_figures(summary: Mapping[str, Any]) -> list[Figure]:
    """Return the overall scores, one per way of counting."""
    limits = [(name.removeprefix("p_at_"), value) for name, value in summary.items() if name.startswith("p_at_")]
    return [
        Figure("mIoU", f"{summary['miou']:.3f}", f"on the original pictures: {_coverage(summary)}"),
        Figure("mIoU, canvas", f"{summary['miou_canvas']:.3f}", "the challenge's way: on the padded canvas"),
        Figure("cIoU", f"{summary['ciou']:.3f}", "sum of intersections over sum of unions"),
        *(Figure(f"P@{limit}", f"{value:.3f}", f"IoU of 0.{limit} or more") for limit, value in limits),
    ]


def fidelity_figures(fidelity: Mapping[str, Any]) -> list[Figure]:
    """Return how far the masks that were scored are from the binary's and from those of float32, and whose they are."""
    return [
        Figure("Scored masks", fidelity.get("scored_by") or NOT_MEASURED, "what ran the graph, and in which precision"),
        _comparison("The binary's masks beside them", fidelity.get("binary")),
        _comparison("Those of this precision beside float32", fidelity.get("float32")),
        *(
            [_comparison("The binary's masks beside float32", fidelity["binary_float32"])]
            if fidelity.get("binary_float32")
            else []
        ),
        Figure("Outputs that are no numbers", _quantity(fidelity.get("non_finite"), ""), "NaN or infinite"),
    ]


def _comparison(label: str, compared: Mapping[str, Any] | None) -> Figure:
    """Say how alike two runners' masks of the same samples are; `compared` is a part of fidelity.json."""
    if not compared:
        return Figure(label, NOT_MEASURED, "no masks were compared")
    where = f"{compared['samples']} samples, {compared['runner']} beside {compared['reference']}"
    change = (
        f"mIoU changes by {compared['miou_change']:+.3f} "
        f"({compared['miou_change_low']:+.3f} to {compared['miou_change_high']:+.3f})"
    )
    if compared["iou_mean"] is None:
        return Figure(label, NOT_MEASURED, f"nothing but empty masks; {change}; {where}")
    interval = f"95 % interval {compared['iou_mean_low']:.3f} to {compared['iou_mean_high']:.3f}"
    worst = f"the worst {compared['iou_worst']:.3f} ({compared['worst_sample']})"
    return Figure(label, f"{compared['iou_mean']:.3f}", f"{interval}; {worst}; {change}; {where}")


def deployment_figures(latency: Mapping[str, Any]) -> list[Figure]:
    """Return what compiling, profiling and timing said; "not measured" where they said nothing.

    A device's clock and the compiler's simulator know different things besides the latency: the one's are shown where
    there is a measured latency, else the other's.
    """
    measured = latency.get("latency_ms_device") is not None
    return [
        Figure("NPU latency, measured", _ms(latency, "latency_ms_device"), "by a device's clock"),
        Figure("NPU latency, estimated", _ms(latency, "latency_ms_estimated"), _estimate_note(latency)),
        *_of_each_graph(latency),
        *(_from_the_device(latency) if measured else _from_the_compiler(latency)),
        Figure("Host CPU latency", _ms(_host(latency), "latency_ms_cpu"), _host_note(latency)),
    ]


def _of_each_graph(latency: Mapping[str, Any]) -> list[Figure]:
    """What a further phrase about a picture costs, and each graph, where there are several."""
    further = latency.get("further_phrase")
    if not further:
        return []
    kind = next(
        (kind for kind in ("device", "estimated") if further.get(f"latency_ms_{kind}") is not None), "simulated"
    )
    name = f"latency_ms_{kind}"
    graphs = ", ".join(f"{graph} {_ms(figures, name)}" for graph, figures in latency["graphs"].items())
    word = "measured" if kind == "device" else kind
    return [Figure(f"Each further phrase, {word}", _ms(further, name), f"of a picture that is encoded; {graphs}")]


def _from_the_device(latency: Mapping[str, Any]) -> list[Figure]:
    layers = "; ".join(
        f"{count} on the {unit.upper()}" for unit in ("npu", "gpu", "cpu") if (count := latency.get(f"layers_{unit}"))
    )
    return [
        Figure("First load", _ms(latency, "first_load_ms"), "of the binary, on the device"),
        Figure("Warm load", _ms(latency, "warm_load_ms"), "of the binary, on the device, once more"),
        Figure("Peak memory", _quantity(latency.get("peak_memory_mb"), "MB"), "on the device, during inference"),
        Figure("Layers", layers or NOT_MEASURED, "where the device ran them"),
    ]


def _from_the_compiler(latency: Mapping[str, Any]) -> list[Figure]:
    costless = _quantity(latency.get("ops_without_cost"), "")
    return [
        Figure("NPU latency, simulated", _ms(latency, "latency_ms_simulated"), "before calibration"),
        Figure("Operations without a cost", costless, "the simulation leaves them out"),
        Figure("DDR read", _quantity(latency.get("ddr_read_mb"), "MB"), "per inference, from the compiler"),
        Figure("Spill", _quantity(latency.get("spill_mb"), "MB"), "did not fit the NPU's own memory"),
    ]


def _device_note(latency: Mapping[str, Any]) -> str:
    """Say which device, and how far its runs were apart where it named them."""
    device, low, high = (latency.get(name) for name in ("device", "latency_ms_device_low", "latency_ms_device_high"))
    spread = "" if low is None or high is None else f"{_range(low, high)} over {latency.get('device_runs')} runs; "
    return f"{spread}{device or 'on a device'}"


def _estimate_note(latency: Mapping[str, Any]) -> str:
    """Say that an estimate is one, and how far it may be off."""
    if latency.get("latency_ms_estimated") is None:
        simulated = latency.get("latency_ms_simulated")
        if simulated is None:
            return "no simulation of the NPU was made"
        return f"{_quantity(simulated, 'ms')} simulated, and no line to estimate this precision by"
    bounds = _range(latency.get("latency_ms_estimated_low"), latency.get("latency_ms_estimated_high"))
    device = latency.get("device") or "the NPU"
    return f"{bounds}; an estimate for {device} from the compiler's simulator, not a measurement on a device"


def _host_note(latency: Mapping[str, Any]) -> str:
    host = _host(latency)
    if host.get("latency_ms_cpu") is None:
        return "no run on this host was timed"
    bounds = _range(host.get("latency_ms_cpu_low"), host.get("latency_ms_cpu_high"))
    return f"{bounds}; measured on {host.get('cpu') or 'the machine that made this page'}"


def _host(latency: Mapping[str, Any]) -> Mapping[str, Any]:
    return latency.get("host") or {}


def _coverage(summary: Mapping[str, Any]) -> str:
    scored = f"{summary['phrases']} phrases of {summary['pictures']} pictures"
    left_out = summary["phrases_without_prediction"]
    return f"{scored}; {left_out} more were not run" if left_out else scored


def _range(low: float | None, high: float | None) -> str:
    return "bounds not known" if low is None or high is None else f"{_digits(low)} to {_digits(high)} ms"


def _ms(figures: Mapping[str, Any], name: str) -> str:
    return _quantity(figures.get(name), "ms")


def _quantity(value: float | None, unit: str) -> str:
    return NOT_MEASURED if value is None else f"{_digits(value)} {unit}".strip()


def _digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
