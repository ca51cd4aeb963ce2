"""What is where: sampling a layout of objects, and the masks that follow from it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptseg.sources.shapes.geometry import REACH, SHAPES, Plane, distance_px

PICTURE_SIZES = (  # (height, width), the proportions of photographs
    (480, 640),
    (427, 640),
    (360, 640),
    (384, 512),
    (640, 480),
    (640, 427),
    (512, 384),
    (500, 500),
    (448, 448),
)
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "black")
RADII = {"small": (0.032, 0.048), "medium": (0.075, 0.105), "large": (0.155, 0.205)}  # of the longest edge
SIZE_ODDS = (0.35, 0.4, 0.25)
LARGEST_TURN_DEG = {"square": 18.0, "diamond": 15.0, "cross": 18.0, "heart": 35.0}  # others turn freely
SMALLEST_VISIBLE_SHARE = 0.65
PLACE_ATTEMPTS = 20
APART_CLOSENESS = 0.95  # least distance of two centres, as a share of the sum of their radii
OVERLAP_ODDS, OVERLAP_CLOSENESS = 0.25, (0.55, 0.85)  # how often, and how closely, one is put onto or under another


@dataclass(frozen=True)
class SceneObject:
    """One object; centre and radius in pixels (y down), angle in degrees clockwise."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Layout:
    """A picture's size in pixels and its objects, painted in this order: later ones lie on top."""

    height: int
    width: int
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class Masks:
    """Who owns which pixel.

    `visible` is bool [object, height, width]: the pixels whose centre the object covers and no later object does.
    `hidden` is int [object, object]: how many pixels of the first the second, later one covers.
    """

    visible: NDArray[np.bool_]
    hidden: NDArray[np.int64]


def sample_count(rng: np.random.Generator, objects_min: int, objects_max: int) -> int:
    """Draw a scene's number of objects, its odds growing with the number of distractors.

    Where there are two objects, a guess is right half of the time, and the phrase need not be read.
    """
    counts = np.arange(objects_min, objects_max + 1)
    return int(rng.choice(counts, p=(counts - 1) / (counts - 1).sum()))


def sample_layout(rng: np.random.Generator, count: int) -> Layout | None:
    """Draw a picture size and `count` objects; None when they did not fit."""
    height, width = PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))]
    looks = _sample_looks(rng, count)
    objects: list[SceneObject] = []
    for shape, colour, size in looks:
        placed = _place(rng, (shape, colour, size), objects, height, width)
        if placed is None:
            return None
        objects.append(placed)
    order = rng.permutation(len(objects))
    return Layout(height, width, tuple(objects[i] for i in order))


def _sample_looks(rng: np.random.Generator, count: int) -> list[tuple[str, str, str]]:
    """Shapes, colours and sizes; most objects take their shape, their colour or both from an earlier one."""
    looks: list[tuple[str, str, str]] = []
    while len(looks) < count:
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(COLOURS))
        size = str(rng.choice(tuple(RADII), p=SIZE_ODDS))
        if looks:
            model_shape, model_colour, _ = looks[rng.integers(len(looks))]
            borrowed = rng.choice(("shape", "colour", "both", "nothing"), p=(0.42, 0.36, 0.12, 0.1))
            shape = model_shape if borrowed in ("shape", "both") else shape
            colour = model_colour if borrowed in ("colour", "both") else colour
        if (shape, colour, size) not in looks:
            looks.append((shape, colour, size))
    return looks


def _place(
    rng: np.random.Generator, look: tuple[str, str, str], others: list[SceneObject], height: int, width: int
) -> SceneObject | None:
    shape, colour, size = look
    radius = float(rng.uniform(*RADII[size])) * max(height, width)
    turn = LARGEST_TURN_DEG.get(shape, 180.0)
    angle = float(rng.uniform(-turn, turn))
    margin = 0.85 * radius  # less than a radius: some objects are cut by the picture's border
    strangers = [o for o in others if o.colour != colour]  # between two of one colour no border could be seen
    neighbour = strangers[rng.integers(len(strangers))] if strangers and rng.random() < OVERLAP_ODDS else None
    for _ in range(PLACE_ATTEMPTS):
        x, y = float(rng.uniform(margin, width - margin)), float(rng.uniform(margin, height - margin))
        if neighbour:
            x, y = _towards(neighbour, x, y, float(rng.uniform(*OVERLAP_CLOSENESS)) * (radius + neighbour.radius))
        inside = margin <= x <= width - margin and margin <= y <= height - margin
        apart = all(
            math.hypot(x - o.x, y - o.y) >= (REACH if o.colour == colour else APART_CLOSENESS) * (radius + o.radius)
            for o in others
            if o is not neighbour
        )
        if inside and apart:
            return SceneObject(shape, colour, size, x, y, radius, angle)
    return None


def _towards(start: SceneObject, x: float, y: float, distance: float) -> tuple[float, float]:
    """The point at `distance` from an object's centre, in the direction of (x, y)."""
    way = math.hypot(x - start.x, y - start.y)
    return start.x + (x - start.x) / way * distance, start.y + (y - start.y) / way * distance


def object_window(item: SceneObject, layout: Layout) -> tuple[slice, slice, Plane]:
    """Rows, columns and signed distance in pixels (float32 [rows, columns]) of the part of the picture around it.

    Pixel [row, column] is sampled at its centre, (column + 0.5, row + 0.5).
    """
    reach = REACH * item.radius
    rows = slice(max(0, math.floor(item.y - reach)), min(layout.height, math.ceil(item.y + reach)))
    columns = slice(max(0, math.floor(item.x - reach)), min(layout.width, math.ceil(item.x + reach)))
    return rows, columns, _distance(item, rows, columns)


def _distance(item: SceneObject, rows: slice, columns: slice) -> Plane:
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - item.y)
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] + np.float32(0.5 - item.x)
    return distance_px(item.shape, x, y, item.radius, item.angle)


def make_masks(layout: Layout) -> Masks | None:
    """Masks of all objects; None when one shows less than SMALLEST_VISIBLE_SHARE of its pixels.

    Pixels beyond the picture's border count as not visible.
    """
    count = len(layout.objects)
    covered = np.zeros((count, layout.height, layout.width), bool)
    for mask, item in zip(covered, layout.objects, strict=True):
        rows, columns, distance = object_window(item, layout)
        mask[rows, columns] = distance <= 0
    hidden = np.zeros((count, count), np.int64)
    visible = covered.copy()
    for below in range(count):
        for above in range(below + 1, count):
            hidden[below, above] = np.count_nonzero(covered[below] & covered[above])
            if hidden[below, above]:
                visible[below] &= ~covered[above]
    shares = [mask.sum() / _whole_area(item) for mask, item in zip(visible, layout.objects, strict=True)]
    return Masks(visible, hidden) if min(shares) >= SMALLEST_VISIBLE_SHARE else None


def _whole_area(item: SceneObject) -> int:
    """Pixels of the object on an unbounded picture."""
    reach = REACH * item.radius
    rows = slice(math.floor(item.y - reach), math.ceil(item.y + reach))
    columns = slice(math.floor(item.x - reach), math.ceil(item.x + reach))
    return int(np.count_nonzero(_distance(item, rows, columns) <= 0))
