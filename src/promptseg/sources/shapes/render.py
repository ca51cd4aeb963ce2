"""Pixels: a textured ground, shaded objects on it, one light and a little sensor noise over all."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promptseg.sources.shapes.geometry import Plane
from promptseg.sources.shapes.scene import Layout, SceneObject, object_window

COLOUR_RGB = {  # 0..1
    "red": (0.82, 0.10, 0.11),
    "green": (0.13, 0.60, 0.20),
    "blue": (0.12, 0.27, 0.84),
    "yellow": (0.96, 0.87, 0.14),
    "orange": (0.96, 0.50, 0.06),
    "purple": (0.48, 0.16, 0.66),
    "pink": (0.98, 0.58, 0.77),
    "white": (0.95, 0.95, 0.94),
    "black": (0.06, 0.06, 0.07),
}
COLOUR_JITTER = 0.04
GROUNDS = ("clouds", "gradient", "stripes", "checks", "patches")
FINISHES = ("plain", "grain", "bands")


def render(layout: Layout, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paint a layout: uint8 RGB [height, width, 3]. Edges are antialiased; a mask is where coverage is >= 0.5."""
    clouds = _clouds(rng, layout.height, layout.width)
    picture = _ground(rng, clouds)
    for item in layout.objects:
        rows, columns, distance = object_window(item, layout)
        coverage = np.clip(np.float32(0.5) - distance, 0, 1)
        grain = clouds[::-1, ::-1][rows, columns]  # turned round, so that it does not continue the ground
        shade = _shade(rng, item, rows, columns, grain)
        for plane, value in zip(picture, _object_rgb(rng, item.colour), strict=True):
            plane[rows, columns] += coverage * (np.minimum(value * shade, 1) - plane[rows, columns])
    light = _ramp(rng, layout.height, layout.width) * np.float32(rng.uniform(0.0, 0.3)) + np.float32(0.85)
    noise = rng.random((layout.height, layout.width), np.float32) - np.float32(0.5)
    noise *= np.float32(rng.uniform(0.0, 0.06))
    pixels = np.empty((layout.height, layout.width, 3), np.uint8)
    for channel, plane in enumerate(picture):
        plane *= light
        plane += noise
        pixels[..., channel] = np.clip(plane, 0, 1, out=plane) * np.float32(255) + np.float32(0.5)
    return pixels


def _clouds(rng: np.random.Generator, height: int, width: int) -> Plane:
    """Noise of several octaves, about 0..1: float32 [height, width]."""
    cells = int(rng.integers(3, 7))
    field = rng.random((cells, cells), np.float32)
    amplitude, roughness = np.float32(1), np.float32(rng.uniform(0.45, 0.75))
    while field.shape[0] < max(height, width) // 5:
        side = field.shape[0] * 2
        amplitude *= roughness
        finer = np.asarray(Image.fromarray(field).resize((side, side), Image.Resampling.BICUBIC))
        field = finer + amplitude * (rng.random((side, side), np.float32) - np.float32(0.5))
    field -= field.min()
    field /= field.max()
    return np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BILINEAR))


def _ground(rng: np.random.Generator, clouds: Plane) -> Plane:
    """Two muted colours mixed by a pattern and by clouds: float32 RGB [3, height, width], 0..1."""
    weight = np.float32(rng.uniform(0.25, 0.6))
    mix = _pattern(rng, str(rng.choice(GROUNDS)), clouds) * (1 - weight) + clouds * weight
    brightness = rng.uniform(0.34, 0.6)  # neither black nor white objects drown
    contrast = rng.uniform(0.06, 0.15) * rng.choice((-1, 1))
    first = brightness - contrast + rng.uniform(-0.07, 0.07, 3)
    second = brightness + contrast + rng.uniform(-0.07, 0.07, 3)
    return np.stack([mix * np.float32(to - start) + np.float32(start) for start, to in zip(first, second, strict=True)])


def _pattern(rng: np.random.Generator, ground: str, clouds: Plane) -> Plane:
    height, width = clouds.shape
    if ground == "clouds":
        return clouds
    if ground == "gradient":
        return _ramp(rng, height, width)
    if ground == "patches":
        return np.clip((clouds - np.float32(rng.uniform(0.4, 0.6))) * 12, 0, 1)
    period = float(rng.uniform(0.05, 0.2)) * max(height, width)
    first = _wave(_ramp(rng, height, width, span_px=True) / np.float32(period))
    if ground == "stripes":
        return first
    return np.abs(first - _wave(_ramp(rng, height, width, span_px=True) / np.float32(period)))


def _wave(phase: Plane) -> Plane:
    """A square wave of period 1 with softened flanks, 0..1."""
    triangle = np.abs(phase - np.floor(phase) - np.float32(0.5)) * 2
    return np.clip((triangle - np.float32(0.5)) * 8 + np.float32(0.5), 0, 1)


def _ramp(rng: np.random.Generator, height: int, width: int, *, span_px: bool = False) -> Plane:
    """Rises in a random direction across the picture, from 0 to 1 or, with `span_px`, by one per pixel of its way."""
    across, down = rng.uniform(-1, 1, 2)
    norm = np.sqrt(across * across + down * down) if span_px else abs(across) * width + abs(down) * height
    columns = np.arange(width, dtype=np.float32)[None, :] * np.float32(across / norm)
    rows = np.arange(height, dtype=np.float32)[:, None] * np.float32(down / norm)
    return columns + rows - np.float32(min(across, 0) * width / norm + min(down, 0) * height / norm)


def _object_rgb(rng: np.random.Generator, colour: str) -> list[np.float32]:
    jitter = rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)
    return [np.float32(value) for value in np.clip(np.asarray(COLOUR_RGB[colour]) + jitter, 0, 1)]


def _shade(rng: np.random.Generator, item: SceneObject, rows: slice, columns: slice, grain: Plane) -> Plane:
    """Factor on the object's colour, about 0.75..1.15: a slope of light and the finish of its surface."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    shade = _ramp(rng, height, width) * np.float32(rng.uniform(0.05, 0.25)) + np.float32(0.85)
    finish = rng.choice(FINISHES)
    if finish == "grain":
        return shade + (grain - np.float32(0.5)) * np.float32(0.3)
    if finish == "bands":
        period = np.float32(item.radius * rng.uniform(0.25, 0.6))
        return shade * (1 - np.float32(0.15) * _wave(_ramp(rng, height, width, span_px=True) / period))
    return shade
