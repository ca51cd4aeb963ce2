"""Pictures of what the model found: prediction and truth laid over a photograph, and a sheet of the best and worst."""

import io
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from promptseg.datasets.records import Rle, Sample
from promptseg.preprocess import mask_from_canvas, read_picture
from promptseg.scoring import SampleScore

PREDICTION_RGB = (224, 32, 160)  # magenta: rare in photographs, and told from green and blue by colour-blind readers
STRIPE_EVERY, STRIPE_COLOURED, STRIPE_WHITE = 8, 2, 1  # in line widths; the rest of each period is the picture
EXAMPLE_SIDE = 480  # longest edge of an example, px
EXAMPLE_BYTES = 100_000
SHEET_BYTES = 290_000
SHEET_DPI = 110
CAPTION_COLUMNS, CAPTION_LINES = 30, 3
JPEG_QUALITIES = (85, 75, 65, 55, 45, 35, 25)


@dataclass(frozen=True)
class Example:
    """One scored phrase with its overlay, uint8 RGB [h, w, 3]; `group` is "best", "median" or "worst"."""

    group: str
    row: SampleScore
    image: NDArray[np.uint8]


def pick(rows: Sequence[SampleScore], each: int) -> dict[str, list[SampleScore]]:
    """Choose up to `each` best, median and worst phrases by IoU, no two of one picture, ties by sample_id.

    The best are taken first, then the worst, then those nearest to the median rank; few pictures fill fewer places.
    """
    ranked = sorted(rows, key=lambda row: (-row.iou, row.sample_id))
    middle = len(ranked) // 2
    from_middle = [ranked[index] for index in sorted(range(len(ranked)), key=lambda index: abs(index - middle))]
    used: set[str] = set()
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
            shown = _shrink(read_picture(read(row.image), row.image), sample.mask.to_mask(), predicted)
            examples.append(Example(group, row, overlay(*shown)))
    return examples


def overlay(picture: NDArray[np.uint8], truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Hatch the prediction and outline the truth, keeping the picture's own colours between the lines.

    `picture`: uint8 RGB [h, w, 3]; masks: bool [h, w]. Returns uint8 RGB [h, w, 3]. Stripes rather than a tint: magenta
    over green is grey, over magenta nothing, and the reader needs the colour that the phrase speaks of. The truth's
    outline is white within black and lies outside the mask, so that a mask of one pixel stays visible.
    Raises ValueError on unequal sizes.
    """
    if not picture.shape[:2] == truth.shape == prediction.shape:
        shapes = f"{picture.shape}, {truth.shape} and {prediction.shape}"
        raise ValueError(f"got a picture, a truth and a prediction of {shapes}, wanted one height and width")
    drawn = picture.copy()
    width = max(1, round(max(truth.shape) / 240))
    down, right = np.indices(truth.shape)
    phase = (down + right) // width % STRIPE_EVERY
    drawn[prediction & (phase < STRIPE_COLOURED + STRIPE_WHITE)] = 255
    drawn[prediction & ((phase < STRIPE_COLOURED) | _grow(~prediction, width))] = PREDICTION_RGB
    inner = _grow(truth, width) & ~truth
    drawn[_grow(truth, 2 * width) & ~truth & ~inner] = 0
    drawn[inner] = 255
    return drawn


def encode_jpeg(image: NDArray[np.uint8], limit_bytes: int) -> bytes:
    """Encode uint8 RGB [h, w, 3] at the best of JPEG_QUALITIES that stays within `limit_bytes`, or the lowest."""
    for quality in JPEG_QUALITIES:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=0)  # chroma in full: stripes are thin
        if stream.tell() <= limit_bytes:
            break
    return stream.getvalue()


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


def _grow(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Dilate by a square of 2 * pixels + 1; bool [h, w] in and out."""
    image = Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * pixels + 1))
    return cast(NDArray[np.bool_], np.asarray(image).astype(bool))


def _shrink(
    picture: NDArray[np.uint8], truth: NDArray[np.bool_], prediction: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """Resize a picture (antialiased) and its masks (nearest) so that the longest edge is EXAMPLE_SIDE."""
    height, width = truth.shape
    scale = EXAMPLE_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    masks = (np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in (truth, prediction))
    small_truth, small_prediction = masks
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)), small_truth, small_prediction
