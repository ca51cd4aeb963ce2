"""From scores to the page and the sheet of pictures that people look at."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from promptseg.datasets.records import Rle, Sample
from promptseg.report.curves import draw_curves, read_curve
from promptseg.report.page import Report
from promptseg.report.pictures import draw_examples, gallery_sheet
from promptseg.scoring import Scores

CURVE_PANELS = (("loss",), ("mask_bce", "mask_dice", "contrast", "region"), ("val_miou",))


def build_report(
    scores: Scores,
    samples: Sequence[Sample],
    predictions: Mapping[str, Rle],
    read: Callable[[str], BinaryIO],
    each: int,
    latency: Mapping[str, Any],
    curve: Path,
    origin: Mapping[str, Any],
) -> tuple[Report, bytes]:
    """Return what the page shows, for `write_report`, and the gallery as JPEG.

    `each` best, median and worst samples are shown; `read` returns an image's encoded bytes; `latency` is
    metrics/latency.json; `origin` is listed on the page.
    """
    examples = draw_examples(scores.rows, samples, predictions, read, each)
    curve_rows = read_curve(curve)
    trained = len(curve_rows) > 1
    page = Report(
        title="promptseg",
        scores=scores,
        latency=latency,
        examples=examples,
        curve_png=draw_curves(curve_rows, "step", CURVE_PANELS) if trained else None,
        provenance=origin,
    )
    return page, gallery_sheet(examples)
