"""Picture -> canvas -> network input, and masks there and back. The one place where sizes are decided.

The canvas is the challenge's: 1024x1024, longest edge resized to 1024 (bilinear), zeros to the right and below.
"""

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

CANVAS = 1024
MASK_STRIDE = 4  # mask logits have one value per 4x4 pixels of the network's input
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


def canvas_to_square(canvas: NDArray[np.float32], res: int) -> NDArray[np.uint8]:
    """RGB 0..255 [3, CANVAS, CANVAS] -> uint8 [res, res, 3]: as the networks resize (`resize_canvas`), then rounded."""
    places = ((np.arange(res) + 0.5) * (canvas.shape[1] / res) - 0.5).clip(0)
    low = places.astype(np.intp)
    high, share = np.minimum(low + 1, canvas.shape[1] - 1), (places - low).astype(np.float32)
    tall = canvas[:, low] * (1 - share[:, None]) + canvas[:, high] * share[:, None]
    square = tall[:, :, low] * (1 - share) + tall[:, :, high] * share
    return np.ascontiguousarray(np.rint(square).astype(np.uint8).transpose(1, 2, 0))


def logits_to_canvas(mask_logits: NDArray[np.float32], res: int, rule: str) -> NDArray[np.float32]:
    """Mask logits [h, h] of a res x res input, at stride 4 or 1 -> [CANVAS, CANVAS], as `masks_to_canvas` does.

    `rule` is the network's: "crop" or "stretch".
    """
    cells = len(mask_logits)
    side = cells if rule == "stretch" or cells == res else res / MASK_STRIDE
    large = Image.fromarray(mask_logits).resize((CANVAS, CANVAS), Image.Resampling.BILINEAR, box=(0, 0, side, side))
    return cast(NDArray[np.float32], np.asarray(large))


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
