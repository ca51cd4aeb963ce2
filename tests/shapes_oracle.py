"""Slow and obvious: whether a point lies in a shape, one point at a time, in double precision."""

import math


def corners(shape: str) -> list[tuple[float, float]]:
    if shape == "square":
        return [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
    if shape == "diamond":
        return [(0, -1), (0.62, 0), (0, 1), (-0.62, 0)]
    if shape == "triangle":
        return [(math.sin(turn), -math.cos(turn)) for turn in (2 * math.pi * k / 3 for k in range(3))]
    if shape == "star":
        inner = (3 - math.sqrt(5)) / 2  # of a pentagram
        radii = [1, inner] * 5
        return [(r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k, r in enumerate(radii)]
    assert shape == "cross"
    arm = [(0.3, -0.3), (0.3, -1), (-0.3, -1)]
    return [p for quarter in range(4) for p in [_turn(x, y, -90 * quarter) for x, y in arm]]


def _turn(x: float, y: float, degrees: float) -> tuple[float, float]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return x * c - y * s, x * s + y * c


def in_polygon(x: float, y: float, polygon: list[tuple[float, float]]) -> bool:
    """Count how many edges a ray to the right crosses."""
    inside = False
    for (x1, y1), (x2, y2) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            inside = not inside
    return inside


def in_unit_shape(shape: str, x: float, y: float) -> bool:
    if shape == "circle":
        return math.hypot(x, y) <= 1
    if shape == "ring":
        return 0.5 <= math.hypot(x, y) <= 1
    if shape == "crescent":
        return math.hypot(x, y) <= 1 and math.hypot(x - 0.48, y) >= 0.82
    if shape == "heart":
        y -= 0.08
        in_lobes = min(math.hypot(x - 0.4, y + 0.4), math.hypot(x + 0.4, y + 0.4)) <= 0.8 / math.sqrt(2)
        return in_lobes or abs(x) + abs(y) <= 0.8
    return in_polygon(x, y, corners(shape))


def covers(item, x: float, y: float) -> bool:
    """Whether a placed object (x, y, radius in pixels, angle clockwise in degrees) covers a point of the picture."""
    unit_x, unit_y = _turn((x - item.x) / item.radius, (y - item.y) / item.radius, -item.angle)
    return in_unit_shape(item.shape, unit_x, unit_y)
