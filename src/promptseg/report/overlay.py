"""Masks drawn over a picture, and pictures as bytes; light, for a command line that draws one picture."""

import io
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

PREDICTION_RGB = (224, 32, 160)  # magenta: rare in photographs, and told from green and blue by colour-blind readers
STRIPE_EVERY, STRIPE_COLOURED, STRIPE_WHITE = 8, 2, 1  # in line widths; the rest of each period is the picture
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
JPEG_QUALITIES = (85, 75, 65, 55, 45, 35, 25)

Stroke = tuple[tuple[int, int, int], NDArray[np.bool_]]  # a colour, and the pixels that get it; later ones lie on top


def overlay(picture: NDArray[np.uint8], truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Hatch the prediction and outline the truth, keeping the picture's own colours between the lines.

    `picture`: uint8 RGB [h, w, 3]; masks: bool [h, w]. Returns uint8 RGB [h, w, 3]. Raises ValueError on unequal sizes.
    """
    if not picture.shape[:2] == truth.shape == prediction.shape:
        shapes = f"{picture.shape}, {truth.shape} and {prediction.shape}"
        raise ValueError(f"got a picture, a truth and a prediction of {shapes}, wanted one height and width")
    drawn = picture.copy()
    for colour, pixels in (*hatching(prediction), *outline(truth)):
        drawn[pixels] = colour
    return drawn


def hatching(mask: NDArray[np.bool_]) -> list[Stroke]:
    """Return what is painted to hatch a bool mask [h, w]: white and coloured stripes, and its edge.

    Stripes rather than a tint: magenta over green is grey, over magenta nothing, and the reader needs the colour that
    the phrase speaks of.
    """
    width = _line_width(mask)
    down, right = np.indices(mask.shape)
    phase = (down + right) // width % STRIPE_EVERY
    return [
        (WHITE, mask & (phase < STRIPE_COLOURED + STRIPE_WHITE)),
        (PREDICTION_RGB, mask & ((phase < STRIPE_COLOURED) | _grow(~mask, width))),
    ]


def outline(mask: NDArray[np.bool_]) -> list[Stroke]:
    """Return what is painted to outline a bool mask [h, w]: white within black.

    Both lie outside the mask, so that one of a single pixel stays visible.
    """
    width = _line_width(mask)
    inner = _grow(mask, width) & ~mask
    return [(BLACK, _grow(mask, 2 * width) & ~mask & ~inner), (WHITE, inner)]


def encode_jpeg(image: NDArray[np.uint8], limit_bytes: int) -> bytes:
    """Encode uint8 RGB [h, w, 3] at the best of JPEG_QUALITIES that stays within `limit_bytes`, or the lowest."""
    for quality in JPEG_QUALITIES:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=0)  # chroma in full: stripes are thin
        if stream.tell() <= limit_bytes:
            break
    return stream.getvalue()


def shrink(
    picture: NDArray[np.uint8], truth: NDArray[np.bool_], prediction: NDArray[np.bool_], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """Resize a picture (antialiased) and its masks (nearest) so that the longest edge is `side`."""
    height, width = truth.shape
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    masks = (np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in (truth, prediction))
    small_truth, small_prediction = masks
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)), small_truth, small_prediction


def _line_width(mask: NDArray[np.bool_]) -> int:
    return max(1, round(max(mask.shape) / 240))


def _grow(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Dilate by a square of 2 * pixels + 1; bool [h, w] in and out."""
    image = Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * pixels + 1))
    return cast(NDArray[np.bool_], np.asarray(image).astype(bool))
