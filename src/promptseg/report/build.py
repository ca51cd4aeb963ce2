"""From scores to the page and the sheet of pictures that people look at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from promptseg.datasets.records import Rle, Sample
from promptseg.report.curves import draw_bars, draw_curves, read_curve
from promptseg.report.details import group_bars, layer_bars, operation_bars, part_bars
from promptseg.report.gallery import draw_examples, gallery_sheet
from promptseg.report.page import Chart, Report
from promptseg.report.tiles import make_tiles
from promptseg.scoring import Scores

CURVE_PANELS = (("loss",), ("mask_bce", "mask_dice", "contrast", "region"), ("val_miou", "train_miou"))


@dataclass(frozen=True)
class Shown:
    """What is scored and can be looked at; `read` returns an image's encoded bytes, as `PictureArchives.read` does."""

    samples: Sequence[Sample]
    predictions: Mapping[str, Rle]
    read: Callable[[str], BinaryIO]


def build_report(
    scores: Scores, shown: Shown, records: Mapping[str, Mapping[str, Any]], curve: Path, each: int, seed: int
) -> tuple[Report, bytes]:
    """Return what the page shows, for `write_report`, and the gallery as JPEG.

    `records` holds the contents of latency.json, export.json and fidelity.json under these names, and under
    "provenance" what is listed on the page; `each` best, median and worst samples are shown (on the page: of each kind
    of phrase); `seed` draws the groups' intervals.
    """
    pictured = scores.rows, shown.samples, shown.predictions, shown.read, each
    page = Report(
        title="promptseg",
        scores=scores,
        latency=records["latency"],
        fidelity=records["fidelity"],
        charts=_charts(scores, records, curve, seed),
        tiles=make_tiles(*pictured),
        provenance=records["provenance"],
    )
    return page, gallery_sheet(draw_examples(*pictured))


def _charts(scores: Scores, records: Mapping[str, Mapping[str, Any]], curve: Path, seed: int) -> list[Chart]:
    """Draw what there is: a device names layers, the simulator parts of the network; a run may train nothing."""
    charts = [Chart("groups", "mIoU", draw_bars(group_bars(scores, seed), "mIoU", "best trivial baseline"))]
    layers, unit = layer_bars(records["latency"])
    if layers:
        charts.append(Chart("layers", "The slowest layers, by the device's own profile", draw_bars(layers, unit)))
    parts = part_bars(records["latency"])
    if parts:
        charts.append(Chart("parts", "Where the simulated milliseconds go", draw_bars(parts, "ms, simulated")))
    operations = operation_bars(records["export"])
    if operations:
        charts.append(Chart("operations", "Operations of the exported graph", draw_bars(operations, "operations")))
    rows = read_curve(curve)
    if len(rows) > 1:
        charts.append(Chart("training", "Training", draw_curves(rows, "step", CURVE_PANELS)))
    return charts
