"""Pictures of what the model found: prediction and truth laid over a photograph, and a sheet of the best and worst."""

import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from promptseg.datasets.preprocess import mask_from_canvas, read_picture
from promptseg.datasets.records import Rle, Sample
from promptseg.report.overlay import encode_jpeg, overlay, shrink
from promptseg.scoring import SampleScore

EXAMPLE_SIDE = 480  # longest edge of an example, px
EXAMPLE_BYTES = 100_000
SHEET_BYTES = 290_000
SHEET_DPI = 110
CAPTION_COLUMNS, CAPTION_LINES = 30, 3


@dataclass(frozen=True)
class Example:
    """One scored phrase with its overlay, uint8 RGB [h, w, 3]; `group` is "best", "median" or "worst"."""

    group: str
    row: SampleScore
    image: NDArray[np.uint8]


def pick(rows: Sequence[SampleScore], each: int, taken: frozenset[str] = frozenset()) -> dict[str, list[SampleScore]]:
    """Choose up to `each` best, median and worst phrases by IoU, no two of one picture, ties by sample_id.

    The best are taken first, then the worst, then those nearest to the median rank; few pictures fill fewer places.
    Pictures that are `taken` fill none.
    """
    ranked = sorted(rows, key=lambda row: (-row.iou, row.sample_id))
    middle = len(ranked) // 2
    from_middle = [ranked[index] for index in sorted(range(len(ranked)), key=lambda index: abs(index - middle))]
    used = set(taken)
    chosen: dict[str, list[SampleScore]] = {"best": [], "median": [], "worst": []}
    for group, candidates in (("best", ranked), ("worst", ranked[::-1]), ("median", from_middle)):
        for row in candidates:
            if len(chosen[group]) < each and row.image not in used:
                used.add(row.image)
                chosen[group].append(row)
    return chosen


def draw_examples(
    rows: Sequence[SampleScore],
    samples: Sequence[Sample],
    predictions: Mapping[str, Rle],
    read: Callable[[str], BinaryIO],
    each: int,
) -> list[Example]:
    """Overlay the picked phrases (see `pick`) at EXAMPLE_SIDE px.

    `predictions`: sample_id -> mask on the canvas; `read` returns an image's encoded bytes, as `PictureArchives.read`
    does. Raises ValueError when a picture is damaged.
    """
    sample_of = {sample.sample_id: sample for sample in samples}
    examples = []
    for group, chosen in pick(rows, each).items():
        for row in chosen:
            sample = sample_of[row.sample_id]
            predicted = mask_from_canvas(predictions[row.sample_id].to_mask(), sample.height, sample.width)
            shown = shrink(read_picture(read(row.image), row.image), sample.mask.to_mask(), predicted, EXAMPLE_SIDE)
            examples.append(Example(group, row, overlay(*shown)))
    return examples


def gallery_sheet(examples: Sequence[Example]) -> bytes:
    """Lay the examples out as one JPEG, a row for each group, phrase and IoU below each picture.

    Raises ValueError when there are no examples.
    """
    groups = [group for group in ("best", "median", "worst") if any(each.group == group for each in examples)]
    if not groups:
        raise ValueError("got no examples, wanted at least one picture to show")
    rows = [[each for each in examples if each.group == group] for group in groups]
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(2.3 * columns, 2.75 * len(rows)), dpi=SHEET_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, row in zip(all_axes, rows, strict=True):
        for index, axes in enumerate(axes_row):
            axes.set_axis_off()
            axes.set_anchor("NW")
            if index < len(row):
                axes.imshow(row[index].image)
                axes.set_title(f"{row[index].group}: IoU {row[index].row.iou:.2f}", fontsize=9, loc="left")
                caption = _caption(row[index].row.phrase)
                axes.text(0, -0.03, caption, va="top", fontsize=8, transform=axes.transAxes, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # other scripts show as boxes here; the page has them all
        canvas.draw()
    return encode_jpeg(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3]), SHEET_BYTES)


def _caption(phrase: str) -> str:
    lines = textwrap.wrap(phrase, CAPTION_COLUMNS)
    shown = lines[:CAPTION_LINES]
    return "\n".join(shown) + ("…" if len(lines) > CAPTION_LINES else "")
