"""Picture -> canvas -> network input, and masks there and back. The one place where sizes are decided.

The canvas is the challenge's: 1024x1024, longest edge resized to 1024 (bilinear), zeros to the right and below.
"""

import io
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

CANVAS = 1024
MASK_STRIDE = 4  # mask logits have one value per 4x4 pixels of the network's input
_SIZES_KEPT = 32  # of edges, whose blending is worked out once
_AT_ONCE = 32  # old pixels, or about so many, that new ones are blended of in one product
MAX_PIXELS = 100_000_000  # above this a picture is a mistake or a decompression bomb
_BOMB = Image.DecompressionBombError
# What Pillow raises over damaged bytes of its many formats.
DAMAGED_PICTURE = (OSError, EOFError, SyntaxError, ValueError, LookupError, RuntimeError, struct.error, _BOMB)


@dataclass(frozen=True)
class Placement:
    """Where a picture of `height` x `width` lies on the canvas: its top left `canvas_height` x `canvas_width`."""

    height: int
    width: int
    canvas_height: int
    canvas_width: int

    @classmethod
    def of(cls, height: int, width: int) -> "Placement":
        """Scale the longest edge to CANVAS, keeping the aspect ratio; no edge shrinks below one pixel."""
        if height < 1 or width < 1:
            raise ValueError(f"got a picture of {width}x{height} px, wanted at least 1x1")
        scale = CANVAS / max(height, width)
        return cls(height, width, max(1, round(height * scale)), max(1, round(width * scale)))


def read_picture(encoded: BinaryIO | bytes, name: str) -> NDArray[np.uint8]:
    """Decode any picture that Pillow reads to uint8 RGB [height, width, 3], EXIF orientation applied.

    16-bit greys keep their upper 8 bits; transparency is laid over white. Raises ValueError, with `name`, when the
    bytes are no picture, are truncated, or hold more than MAX_PIXELS.
    """
    stream = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    try:
        image = Image.open(stream)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: got bytes that are no known picture format; replace the file") from error
    except DAMAGED_PICTURE as error:
        raise _unreadable(name, error) from error
    with image:
        return picture_of(image, name)


def picture_of(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Return an image of Pillow's as `read_picture` does: decoded, EXIF orientation applied. Raises as that does."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name}: got {width}x{height} px, wanted at most {MAX_PIXELS:,} pixels; make it smaller")
    try:
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except DAMAGED_PICTURE as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name}: got a picture that cannot be read ({error}); replace the file")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greys; "I" is how 16-bit PNG files open in older Pillows
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey.clip(0, 65535) // 256).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def picture_to_canvas(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 RGB [h, w, 3] -> uint8 RGB [3, CANVAS, CANVAS]; Pillow's bilinear (antialiased when it shrinks)."""
    place = Placement.of(*picture.shape[:2])
    canvas = np.zeros((3, CANVAS, CANVAS), np.uint8)
    for colour, plane in zip(picture.transpose(2, 0, 1), canvas, strict=True):  # plane by plane: a third less time
        image = Image.fromarray(np.ascontiguousarray(colour))
        resized = image.resize((place.canvas_width, place.canvas_height), Image.Resampling.BILINEAR)
        plane[: place.canvas_height, : place.canvas_width] = np.asarray(resized)
    return canvas


@dataclass(frozen=True, eq=False)
class _Blend:
    """How n new pixels along an edge are made of `size` old ones: each from `first` on, by `weights` [n, taps]."""

    size: int
    first: NDArray[np.intp]
    weights: NDArray[np.float64]

    @classmethod
    def bilinear(cls, size: int, wanted: NDArray[np.intp], scale: float) -> "_Blend":
        """Pillow's bilinear rule, antialiased when it shrinks: which of `size` old pixels make the `wanted` new ones.

        wanted: numbers of new pixels, each `scale` old ones wide.
        """
        centres, support = (wanted + 0.5) * scale, max(1.0, scale)
        first = np.maximum((centres - support + 0.5).astype(np.intp), 0)
        last = np.minimum((centres + support + 0.5).astype(np.intp), size)
        pixels = first[:, None] + np.arange((last - first).max(initial=1))
        weights = (1 - np.abs((pixels + 0.5 - centres[:, None]) / support)).clip(0) * (pixels < last[:, None])
        return cls(size, first, weights / weights.sum(axis=1, keepdims=True))

    def rows(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Blend rows, [size, values], to float32 [n, values]."""
        blended = np.empty((len(self.first), image.shape[1]), np.float32)
        for new, near, matrix in self._products:
            np.matmul(matrix, image[near].astype(np.float32, copy=False), out=blended[new])
        return blended

    def columns(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blend columns, [h, size, channels], to float32 [h, n, channels]."""
        height, _, channels = image.shape
        values, parts = image.reshape(height, self.size * channels), [np.zeros((height, 0), np.float32)]
        for near, matrix in _products_of_channels(self, channels):
            parts.append(values[:, near] @ matrix)
        return np.concatenate(parts, axis=1).reshape(height, len(self.first), channels)

    @cached_property
    def _products(self) -> list[tuple[slice, slice, NDArray[np.float32]]]:
        """A few new pixels each, the old ones near them, and the matrix that blends these, float32 [few, near]."""
        taps, count, products = np.arange(self.weights.shape[1]), len(self.first), []
        at_once = min(max(8, _AT_ONCE * count // self.size), 128)
        for start in range(0, count, at_once):
            new = slice(start, min(start + at_once, count))
            first, weights = self.first[new], self.weights[new]
            near = slice(int(first[0]), min(int(first[-1]) + len(taps), self.size))
            matrix = np.zeros((len(first), int(first[-1] - first[0]) + len(taps)), np.float32)
            matrix[np.arange(len(first))[:, None], (first - first[0])[:, None] + taps] = weights
            products.append((new, near, matrix[:, : near.stop - near.start]))
        return products


@lru_cache(maxsize=_SIZES_KEPT)
def _products_of_channels(blend: _Blend, channels: int) -> list[tuple[slice, NDArray[np.float32]]]:
    """Those of `blend` for pixels of several values, which lie beside each other."""
    products = []
    for _, near, matrix in blend._products:
        each = np.zeros((*matrix.T.shape, channels, channels), np.float32)
        each[..., range(channels), range(channels)] = matrix.T[..., None]
        wide = each.transpose(0, 2, 1, 3).reshape(matrix.shape[1] * channels, -1)
        products.append((slice(near.start * channels, near.stop * channels), wide))
    return products


def _square_of_canvas(res: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Along an edge of the square: the first of the two pixels of the canvas that make a pixel, the second's weight.

    As the networks resize (`resize_canvas`): bilinear, not antialiased.
    """
    places = ((np.arange(res) + 0.5) * (CANVAS / res) - 0.5).clip(0)
    low = np.minimum(places.astype(np.intp), CANVAS - 2)
    return low, np.minimum(places - low, 1.0)


@lru_cache(maxsize=_SIZES_KEPT)
def _square_of_picture(size: int, canvas_size: int, res: int) -> _Blend:
    """Along an edge: how pixels of the square are made of a picture's, by way of the canvas; without the padding."""
    low, share = _square_of_canvas(res)
    low, share = low[low < canvas_size], share[low < canvas_size]
    both = (np.minimum(low + each, canvas_size - 1) for each in (0, 1))
    one, other = (_Blend.bilinear(size, each, size / canvas_size) for each in both)
    taps = one.weights.shape[1] + other.weights.shape[1]
    weights = np.zeros((len(low), taps))
    weights[:, : one.weights.shape[1]] = (1 - share)[:, None] * one.weights
    rows, places = np.arange(len(low))[:, None], (other.first - one.first)[:, None] + np.arange(other.weights.shape[1])
    weights[rows, places] += (share * (low + 1 < canvas_size))[:, None] * other.weights
    return _Blend(size, one.first, weights)


def picture_to_square(picture: NDArray[np.uint8], res: int) -> NDArray[np.uint8]:
    """uint8 RGB [h, w, 3] -> uint8 RGB [res, res, 3]: `canvas_to_square` of its canvas, made without the canvas.

    The canvas rounds to whole numbers and this does not, so that some values differ by one.
    """
    (height, width), place = picture.shape[:2], Placement.of(*picture.shape[:2])
    low = _square_of_picture(height, place.canvas_height, res).rows(picture.reshape(height, -1))
    small = _square_of_picture(width, place.canvas_width, res).columns(low.reshape(len(low), width, 3))
    square = np.zeros((res, res, 3), np.uint8)
    square[: small.shape[0], : small.shape[1]] = np.rint(small, out=small)
    return square


def canvas_to_square(canvas: NDArray[np.float32], res: int) -> NDArray[np.uint8]:
    """RGB 0..255 [3, CANVAS, CANVAS] -> uint8 [res, res, 3]: as the networks resize (`resize_canvas`), then rounded."""
    low, exact = _square_of_canvas(res)
    share = exact.astype(np.float32)
    tall = canvas[:, low] * (1 - share[:, None]) + canvas[:, low + 1] * share[:, None]
    square = tall[:, :, low] * (1 - share) + tall[:, :, low + 1] * share
    return np.ascontiguousarray(np.rint(square).astype(np.uint8).transpose(1, 2, 0))


def logits_to_canvas(mask_logits: NDArray[np.float32], res: int, rule: str) -> NDArray[np.float32]:
    """Mask logits [h, h] of a res x res input, at stride 4 or 1 -> [CANVAS, CANVAS], as `masks_to_canvas` does.

    `rule` is the network's: "crop" or "stretch".
    """
    return _logits_at(mask_logits, res, rule, (CANVAS, CANVAS), (CANVAS, CANVAS))


def logits_to_mask(mask_logits: NDArray[np.float32], res: int, rule: str, height: int, width: int) -> NDArray[np.bool_]:
    """Mask logits as `logits_to_canvas` takes them -> the mask of a picture, bool [height, width].

    What `mask_from_canvas` makes of the mask on the canvas; of the canvas only those pixels are made that it takes.
    """
    place = Placement.of(height, width)
    return _logits_at(mask_logits, res, rule, (place.canvas_height, height), (place.canvas_width, width)) > 0


def _logits_at(
    mask_logits: NDArray[np.float32], res: int, rule: str, rows: tuple[int, int], columns: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the logits at some pixels of the canvas; rows, columns: how many there are, and how many are taken."""
    cells = len(mask_logits)
    side = cells if rule == "stretch" or cells == res else res / MASK_STRIDE
    down, across = (_logits_along(cells, side, *edge) for edge in (rows, columns))
    with np.errstate(invalid="ignore"):  # of logits that are no numbers, which whoever decides from them counts
        return down.rows(across.columns(mask_logits[..., None])[..., 0])


@lru_cache(maxsize=_SIZES_KEPT)
def _logits_along(cells: int, side: float, canvas_size: int, size: int) -> _Blend:
    """Along an edge: which logits make `size` of the canvas' first pixels, as Pillow's nearest neighbour takes them."""
    numbers = Image.fromarray(np.arange(canvas_size, dtype=np.int32)[None])
    taken = np.asarray(numbers.resize((size, 1), Image.Resampling.NEAREST))[0].astype(np.intp)
    return _Blend.bilinear(cells, taken, side / CANVAS)


def mask_to_canvas(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Bool [h, w] -> bool [CANVAS, CANVAS], nearest neighbour, zeros outside the picture."""
    place = Placement.of(*mask.shape)
    resized = Image.fromarray(mask).resize((place.canvas_width, place.canvas_height), Image.Resampling.NEAREST)
    canvas = np.zeros((CANVAS, CANVAS), bool)
    canvas[: place.canvas_height, : place.canvas_width] = np.asarray(resized)
    return canvas


def mask_from_canvas(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Bool [CANVAS, CANVAS] -> bool [height, width]: crop to the picture's place, resize back, nearest neighbour."""
    place = Placement.of(height, width)
    crop = Image.fromarray(mask[: place.canvas_height, : place.canvas_width])
    return cast(NDArray[np.bool_], np.asarray(crop.resize((width, height), Image.Resampling.NEAREST)))
