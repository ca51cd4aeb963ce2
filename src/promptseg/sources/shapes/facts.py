"""What a viewer sees of a scene, and what is clearly true of it.

Every statement here is made with margins: it holds for the target and clearly fails for every rival, or it is not
made. Lengths are fractions of the picture's longest edge; y points down.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from promptseg.sources.shapes.scene import Layout, Masks

ORDER_MARGIN = 0.06  # between centres, for leftmost and the like
EDGE_MARGIN = 0.015  # between outer edges, for the same
RELATION_MARGIN = 0.08  # between centres, for "left of"
RELATION_CONE = 1.4  # how many times the distance across is contained in the distance along, for the same
OPPOSITE_MARGIN = 0.02  # how far on the other side a rival of "left of" must be
DISTANCE_MARGIN = 0.09  # between distances, for "closest to"
SIDE_BAND = 0.1  # of the picture's width or height: nothing near the middle line is on a side
AREA_RATIO, RADIUS_RATIO = 1.6, 1.25  # for "largest"
COVERED_SHARE = 0.07  # of the covered object's visible area, for "behind"


@dataclass(frozen=True)
class Seen:
    """One object by its visible pixels: centroid, extent, area; and how many of its pixels each other one covers."""

    index: int
    shape: str
    colour: str
    size: str
    radius: float
    area_px: int
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    covered_px: tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """The picture's width and height as fractions of its longest edge."""

    width: float
    height: float


def see(layout: Layout, masks: Masks) -> tuple[Frame, list[Seen]]:
    """Measure all objects of a scene, in the layout's order."""
    edge = max(layout.height, layout.width)
    seen = []
    for index, (item, mask) in enumerate(zip(layout.objects, masks.visible, strict=True)):
        by_row, by_column = np.count_nonzero(mask, axis=1), np.count_nonzero(mask, axis=0)
        rows, columns, area_px = np.flatnonzero(by_row), np.flatnonzero(by_column), int(by_row.sum())
        seen.append(
            Seen(
                index=index,
                shape=item.shape,
                colour=item.colour,
                size=item.size,
                radius=item.radius / edge,
                area_px=area_px,
                x=float(by_column @ np.arange(len(by_column)) / area_px + 0.5) / edge,
                y=float(by_row @ np.arange(len(by_row)) / area_px + 0.5) / edge,
                left=int(columns[0]) / edge,
                right=int(columns[-1] + 1) / edge,
                top=int(rows[0]) / edge,
                bottom=int(rows[-1] + 1) / edge,
                covered_px=tuple(int(count) for count in masks.hidden[index]),
            )
        )
    return Frame(layout.width / edge, layout.height / edge), seen


def is_clearly_larger(one: Seen, other: Seen) -> bool:
    """By visible area and by radius, so that neither occlusion nor a thin shape turns the order."""
    return one.area_px >= AREA_RATIO * other.area_px and one.radius >= RADIUS_RATIO * other.radius


def absolute_facts(target: Seen, rivals: list[Seen], frame: Frame) -> list[str]:
    """Names of ABSOLUTE_TEMPLATES that hold for `target` and clearly fail for each of `rivals` (one or more)."""
    facts = side_facts(target, rivals, frame) + _extremes(target, rivals) + _corners(target, rivals, frame)
    if all(is_clearly_larger(target, rival) for rival in rivals):
        facts.append("largest")
    if all(is_clearly_larger(rival, target) for rival in rivals):
        facts.append("smallest")
    return facts


def side_facts(target: Seen, rivals: list[Seen], frame: Frame) -> list[str]:
    """Halves of the picture that hold the whole target, while every rival is wholly in the other half."""
    half_x, half_y = frame.width / 2, frame.height / 2
    band_x, band_y = SIDE_BAND * half_x, SIDE_BAND * half_y
    tests: dict[str, tuple[Callable[[Seen], bool], Callable[[Seen], bool]]] = {
        "left_side": (lambda o: o.right <= half_x, lambda o: o.left >= half_x - band_x and o.x >= half_x + band_x),
        "right_side": (lambda o: o.left >= half_x, lambda o: o.right <= half_x + band_x and o.x <= half_x - band_x),
        "top_side": (lambda o: o.bottom <= half_y, lambda o: o.top >= half_y - band_y and o.y >= half_y + band_y),
        "bottom_side": (lambda o: o.top >= half_y, lambda o: o.bottom <= half_y + band_y and o.y <= half_y - band_y),
    }
    return [name for name, (holds, fails) in tests.items() if holds(target) and all(fails(rival) for rival in rivals)]


def _extremes(target: Seen, rivals: list[Seen]) -> list[str]:
    first_centres = {"left": target.x, "right": -target.x, "top": target.y, "bottom": -target.y}
    first_edges = {"left": target.left, "right": -target.right, "top": target.top, "bottom": -target.bottom}
    facts = []
    for name, centre in first_centres.items():
        centres = [{"left": o.x, "right": -o.x, "top": o.y, "bottom": -o.y}[name] for o in rivals]
        edges = [{"left": o.left, "right": -o.right, "top": o.top, "bottom": -o.bottom}[name] for o in rivals]
        if centre + ORDER_MARGIN <= min(centres) and first_edges[name] + EDGE_MARGIN <= min(edges):
            facts.append(name)
    return facts


def _corners(target: Seen, rivals: list[Seen], frame: Frame) -> list[str]:
    """Corners, and the middle, to which the target is clearly the closest; a corner only in its own quarter."""
    points = {
        "top_left": (0.0, 0.0),
        "top_right": (frame.width, 0.0),
        "bottom_left": (0.0, frame.height),
        "bottom_right": (frame.width, frame.height),
    }
    facts = []
    for name, (x, y) in points.items():
        in_quarter = abs(target.x - x) <= 0.45 * frame.width and abs(target.y - y) <= 0.45 * frame.height
        if in_quarter and _is_closest(target, rivals, x, y, 0.0):
            facts.append(name)
    middle_x, middle_y = frame.width / 2, frame.height / 2
    if math.hypot(target.x - middle_x, target.y - middle_y) <= 0.2 and _is_closest(
        target, rivals, middle_x, middle_y, 0.0
    ):
        facts.append("middle")
    return facts


def _is_closest(target: Seen, rivals: list[Seen], x: float, y: float, radius: float) -> bool:
    """By centres, and by the gaps between outlines taken as circles, so that large neighbours do not confuse."""
    own = math.hypot(target.x - x, target.y - y)
    for rival in rivals:
        theirs = math.hypot(rival.x - x, rival.y - y)
        own_gap, their_gap = max(0.0, own - radius - target.radius), max(0.0, theirs - radius - rival.radius)
        if own + DISTANCE_MARGIN > theirs or own_gap + DISTANCE_MARGIN / 2 > their_gap:
            return False
    return True


def relative_facts(target: Seen, anchor: Seen, rivals: list[Seen]) -> list[str]:
    """Names of RELATIVE_TEMPLATES that hold for target and anchor, and clearly fail for each rival and the anchor."""
    right, down = target.x - anchor.x, target.y - anchor.y
    directions = {
        "left_of": -right >= max(RELATION_MARGIN, RELATION_CONE * abs(down)) and target.right <= anchor.x,
        "right_of": right >= max(RELATION_MARGIN, RELATION_CONE * abs(down)) and target.left >= anchor.x,
        "above": -down >= max(RELATION_MARGIN, RELATION_CONE * abs(right)) and target.bottom <= anchor.y,
        "below": down >= max(RELATION_MARGIN, RELATION_CONE * abs(right)) and target.top >= anchor.y,
    }
    opposite: dict[str, Callable[[Seen], bool]] = {
        "left_of": lambda o: o.x >= anchor.x + OPPOSITE_MARGIN,
        "right_of": lambda o: o.x <= anchor.x - OPPOSITE_MARGIN,
        "above": lambda o: o.y >= anchor.y + OPPOSITE_MARGIN,
        "below": lambda o: o.y <= anchor.y - OPPOSITE_MARGIN,
    }
    facts = [name for name, holds in directions.items() if holds and all(map(opposite[name], rivals))]
    if rivals and _is_closest(target, rivals, anchor.x, anchor.y, anchor.radius):
        facts.append("closest_to")
    if rivals and all(_is_closest(rival, [target], anchor.x, anchor.y, anchor.radius) for rival in rivals):
        facts.append("furthest_from")
    untouched = all(o.covered_px[anchor.index] + anchor.covered_px[o.index] == 0 for o in rivals)
    if untouched and target.covered_px[anchor.index] >= COVERED_SHARE * target.area_px:
        facts.append("behind")
    if untouched and anchor.covered_px[target.index] >= COVERED_SHARE * anchor.area_px:
        facts.append("in_front_of")
    return facts
