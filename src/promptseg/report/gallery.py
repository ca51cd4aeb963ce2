"""Pictures of what the model found: a sheet of the best and worst, and the page's gallery with its layers."""

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from promptseg.datasets.preprocess import mask_from_canvas, read_picture
from promptseg.datasets.records import PHRASE_KINDS, Rle, Sample
from promptseg.report.overlay import Stroke, encode_jpeg, hatching, outline, overlay, shrink

GROUPS = ("best", "median", "worst")
EXAMPLE_SIDE = 480  # longest edge of a picture, px
EXAMPLE_BYTES = 100_000
SHEET_BYTES = 290_000
SHEET_DPI = 110
CAPTION_COLUMNS, CAPTION_LINES = 30, 3
PICTURES_BYTES = 2_400_000  # all JPEG files of a page together; base64 and the layers come on top
MOST_EACH = 6  # more would not fit into a page of 5 MB, nor into anybody's patience
FOUND_RGB, MISSED_RGB, EXTRA_RGB = (46, 160, 67), (9, 105, 218), (207, 34, 46)


@dataclass(frozen=True)
class Shown:
    """What is scored and can be looked at; `read` returns an image's encoded bytes, as `PictureArchives.read` does."""

    samples: Sequence[Sample]
    predictions: Mapping[str, Rle]
    read: Callable[[str], BinaryIO]


@dataclass(frozen=True)
class Example:
    """One scored phrase: its row of `Scores.rows` as a named tuple, which of GROUPS it is of, and what it shows.

    `picture`: uint8 RGB [h, w, 3], the longest edge EXAMPLE_SIDE; `truth` and `prediction`: bool [h, w].
    """

    group: str
    row: Any
    picture: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    prediction: NDArray[np.bool_]


@dataclass(frozen=True)
class Tile:
    """One scored phrase of the page: its picture as JPEG, and PNG layers of its size, transparent where nothing is."""

    group: str
    row: Any
    picture: bytes
    prediction: bytes
    truth: bytes
    difference: bytes


def pick(rows: pd.DataFrame, each: int, taken: frozenset[str] = frozenset()) -> list[tuple[str, Any]]:
    """Choose up to `each` best, median and worst phrases by IoU, no two of one picture, ties by sample_id.

    Returns (group, row as a named tuple), in the order of GROUPS. The best are taken first, then the worst, then those
    nearest to the median rank; few pictures fill fewer places. Pictures that are `taken` fill none.
    """
    ranked = list(rows.sort_values(["iou", "sample_id"], ascending=[False, True]).itertuples(index=False))
    middle = len(ranked) // 2
    from_middle = [ranked[index] for index in sorted(range(len(ranked)), key=lambda index: abs(index - middle))]
    used = set(taken)
    chosen: dict[str, list[Any]] = {group: [] for group in GROUPS}
    for group, candidates in (("best", ranked), ("worst", ranked[::-1]), ("median", from_middle)):
        for row in candidates:
            if len(chosen[group]) < each and row.image not in used:
                used.add(row.image)
                chosen[group].append(row)
    return [(group, row) for group, members in chosen.items() for row in members]


def draw_examples(chosen: Sequence[tuple[str, Any]], shown: Shown) -> Iterator[Example]:
    """Yield what `pick` chose with its picture and masks. Raises ValueError when a picture is damaged."""
    sample_of = {sample.sample_id: sample for sample in shown.samples}
    for group, row in chosen:
        sample = sample_of[row.sample_id]
        predicted = mask_from_canvas(shown.predictions[row.sample_id].to_mask(), sample.height, sample.width)
        picture = read_picture(shown.read(row.image), row.image)
        yield Example(group, row, *shrink(picture, sample.mask.to_mask(), predicted, EXAMPLE_SIDE))


def gallery_sheet(examples: Sequence[Example]) -> bytes:
    """Lay the examples out as one JPEG, a row for each group, phrase and IoU below each picture.

    Raises ValueError when there are no examples.
    """
    groups = [group for group in GROUPS if any(each.group == group for each in examples)]
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
                axes.imshow(overlay(row[index].picture, row[index].truth, row[index].prediction))
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


def make_tiles(rows: pd.DataFrame, shown: Shown, each: int) -> list[Tile]:
    """Make tiles of up to `each` best, median and worst phrases of every kind, no two of one picture, the best first.

    There are at most MOST_EACH of each. Raises ValueError when a picture is damaged.
    """
    chosen: list[tuple[str, Any]] = []
    for kind in PHRASE_KINDS:
        taken = frozenset(row.image for _, row in chosen)
        chosen += pick(rows[rows["phrase_kind"] == kind], min(each, MOST_EACH), taken)
    chosen.sort(key=lambda entry: (GROUPS.index(entry[0]), -entry[1].iou, entry[1].sample_id))
    limit = min(EXAMPLE_BYTES, PICTURES_BYTES // max(1, len(chosen)))
    return [
        Tile(
            group=example.group,
            row=example.row,
            picture=encode_jpeg(example.picture, limit),
            prediction=layer(hatching(example.prediction)),
            truth=layer(outline(example.truth)),
            difference=layer(difference(example.truth, example.prediction), alpha=190),
        )
        for example in draw_examples(chosen, shown)
    ]


def difference(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> list[Stroke]:
    """Return what is painted of two bool masks [h, w]: found, missed and too much, in colours of their own."""
    return [
        (FOUND_RGB, truth & prediction),
        (MISSED_RGB, truth & ~prediction),
        (EXTRA_RGB, prediction & ~truth),
    ]


def layer(strokes: Sequence[Stroke], alpha: int = 255) -> bytes:
    """Return strokes as a PNG with a palette, transparent where none is; `alpha` (0..255) is how much they cover."""
    index = np.zeros(strokes[0][1].shape, np.uint8)
    for place, (_, pixels) in enumerate(strokes, start=1):
        index[pixels] = place
    image = Image.fromarray(index, "P")
    image.putpalette(bytes(4) + b"".join(bytes((*colour, alpha)) for colour, _ in strokes), "RGBA")
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
