"""The outlines: signed distances of unit shapes, from additions, products and square roots only.

Those operations are rounded the same way by every machine, so masks do not depend on where they were made.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

REACH = 1.2  # no shape extends further than this many radii from its centre


def distance_px(shape: str, x_px: Plane, y_px: Plane, radius_px: float, angle_deg: float) -> Plane:
    """Signed distance (pixels, <= 0 inside) to a shape centred on the origin; y points down, angles turn clockwise.

    Exact near edges, a lower bound outside corners. `x_px` and `y_px` broadcast: float32 [1, w] and [h, 1].
    """
    cosine, sine = math.cos(math.radians(angle_deg)) / radius_px, math.sin(math.radians(angle_deg)) / radius_px
    x = np.float32(cosine) * x_px + np.float32(sine) * y_px
    y = np.float32(cosine) * y_px - np.float32(sine) * x_px
    return _UNIT_DISTANCES[shape](x, y) * np.float32(radius_px)


def _length(x: Plane, y: Plane) -> Plane:
    return np.sqrt(x * x + y * y)


def _circle(x: Plane, y: Plane) -> Plane:
    return _length(x, y) - np.float32(1)


def _ring(x: Plane, y: Plane) -> Plane:
    return np.abs(_length(x, y) - np.float32(0.75)) - np.float32(0.25)


def _square(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.82)


def _cross(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    long, short = np.maximum(x, y), np.minimum(x, y)
    return np.maximum(long - np.float32(1), short - np.float32(0.3))


def _diamond(x: Plane, y: Plane) -> Plane:
    half_width = np.float32(0.62)
    return (np.abs(x) + np.abs(y) * half_width - half_width) / np.float32(math.hypot(1, 0.62))


def _heart(x: Plane, y: Plane) -> Plane:
    """Union of a square on its corner and a circle on each of its upper sides."""
    half_diagonal = 0.8
    x, y = np.abs(x), y - np.float32(0.08)
    corner = (x + np.abs(y) - np.float32(half_diagonal)) * np.float32(math.sqrt(0.5))
    lobe = _length(x - np.float32(half_diagonal / 2), y + np.float32(half_diagonal / 2))
    return np.minimum(corner, lobe - np.float32(half_diagonal * math.sqrt(0.5)))


def _crescent(x: Plane, y: Plane) -> Plane:
    bite = np.float32(0.82) - _length(x - np.float32(0.48), y)
    return np.maximum(_circle(x, y), bite)


def _side_distances(x: Plane, y: Plane, count: int) -> list[Plane]:
    """How far a point lies along each outward normal of a `count`-gon that has a corner at the top."""
    angles = [math.pi / 2 + 2 * math.pi * side / count for side in range(count)]
    return [np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y for angle in angles]


def _triangle(x: Plane, y: Plane) -> Plane:
    first, second, third = _side_distances(x, y, 3)
    return np.maximum(np.maximum(first, second), third) - np.float32(0.5)


def _star(x: Plane, y: Plane) -> Plane:
    """A pentagram: the points outside at most one of its five lines, so the second largest distance decides."""
    first, second, *others = _side_distances(x, -y, 5)  # each line lies across a corner, not opposite one
    largest, runner_up = np.maximum(first, second), np.minimum(first, second)
    for other in others:
        runner_up = np.maximum(runner_up, np.minimum(largest, other))
        largest = np.maximum(largest, other)
    return runner_up - np.float32(math.cos(2 * math.pi / 5))


_UNIT_DISTANCES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
    "diamond": _diamond,
}
SHAPES: tuple[str, ...] = tuple(_UNIT_DISTANCES)
