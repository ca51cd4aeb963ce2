"""What is said of a photograph's objects, made from their names and masks; and the names that it does not show.

A name means all that bears it; a place, a size or a colour means one object among those of its name, and is said only
where it tells them apart. Templates and synonyms vary what is trained on; scored are the plain wordings, the first.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from promptseg.datasets.records import Rle

Said = Literal["name", "place", "size", "colour"]
NAME_TEMPLATES = ("{}", "the {}", "a {}", "all {}", "every {}", "any {} in the picture", "find the {}")
SIDE_TEMPLATES = ("the {1} on the {0}", "the {0} {1}", "{1} on the {0}", "{0} {1}", "the {1} to the {0}")
END_TEMPLATES = ("the {0}most {1}", "the {1} on the far {0}", "{0}most {1}", "the {1} on the {0}")
LARGE_TEMPLATES = ("the largest {}", "the biggest {}", "the larger {}", "largest {}")
SMALL_TEMPLATES = ("the smallest {}", "the smaller {}", "smallest {}")
ABOVE_TEMPLATES = ("the {} at the top", "the upper {}", "the top {}")
BELOW_TEMPLATES = ("the {} at the bottom", "the lower {}", "the bottom {}")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
MOST_ALIKE = 6  # objects of one name, above which none is told apart
LEAST_AREA = 0.002  # of the picture, of an object that is told apart by more than its name
SIDE_GAP, HEIGHT_GAP = 0.08, 0.12  # between centres, as shares of the picture
LARGER = 1.4  # times the area of the next

SYNONYMS = {
    "person": ("man or woman", "human", "people", "man", "woman", "somebody"),
    "airplane": ("plane", "aeroplane", "aircraft"),
    "bicycle": ("bike", "cycle"),
    "motorcycle": ("motorbike",),
    "car": ("automobile", "vehicle"),
    "couch": ("sofa", "settee"),
    "tv": ("television", "screen", "monitor"),
    "cell phone": ("mobile phone", "phone", "smartphone"),
    "dining table": ("table",),
    "potted plant": ("plant", "houseplant"),
    "refrigerator": ("fridge",),
    "donut": ("doughnut",),
    "sports ball": ("ball",),
    "cup": ("mug", "glass"),
    "wine glass": ("glass",),
    "dog": ("puppy", "hound"),
    "cat": ("kitten", "kitty"),
    "cow": ("cattle",),
    "horse": ("pony",),
    "sheep": ("lamb",),
    "boat": ("ship",),
    "truck": ("lorry",),
    "bus": ("coach",),
    "train": ("locomotive",),
    "stop sign": ("road sign",),
    "hair drier": ("hairdryer", "hair dryer"),
    "remote": ("remote control",),
    "mouse": ("computer mouse",),
    "laptop": ("notebook computer", "computer"),
    "handbag": ("bag", "purse"),
    "suitcase": ("luggage", "bag"),
    "backpack": ("rucksack", "bag"),
    "teddy bear": ("stuffed animal", "teddy"),
    "oven": ("stove", "cooker"),
    "tie": ("necktie",),
    "hot dog": ("sausage",),
    "skis": ("pair of skis",),
    "bag": ("handbag", "purse"),
    "purse": ("bag", "handbag"),
    "pants": ("trousers", "jeans"),
    "jeans": ("pants", "trousers"),
    "sweater": ("pullover", "jumper"),
    "jumper": ("sweater", "pullover"),
    "shoes": ("footwear",),
    "sneakers": ("shoes",),
    "heels": ("shoes", "high heels"),
    "pumps": ("shoes",),
    "loafers": ("shoes",),
    "flats": ("shoes",),
    "wedges": ("shoes",),
    "sunglasses": ("shades",),
    "blouse": ("shirt", "top"),
    "t-shirt": ("tee", "shirt"),
    "top": ("shirt",),
    "blazer": ("jacket",),
    "jacket": ("coat",),
    "deer": ("antelope",),
    "turtle": ("tortoise",),
}
PLURALS = {"person": "people", "knife": "knives", "mouse": "mice", "sheep": "sheep", "deer": "deer", "skis": "skis",
           "scissors": "scissors", "broccoli": "broccoli", "couch": "couches", "bus": "buses", "bench": "benches",
           "sandwich": "sandwiches", "toothbrush": "toothbrushes", "wine glass": "wine glasses"}  # fmt: skip
# Names, by their centres in the cube of colours (Berlin and Kay, 1969, has the eleven).
COLOURS = {
    "black": (25, 25, 25), "white": (235, 235, 235), "grey": (128, 128, 128), "red": (180, 35, 40),
    "orange": (230, 130, 40), "yellow": (225, 205, 60), "green": (60, 130, 60), "blue": (45, 80, 170),
    "purple": (115, 55, 130), "pink": (230, 140, 165), "brown": (105, 70, 45),
}  # fmt: skip
COLOURED = 40.0  # within a mask, the standard deviation of grey above which it has no one colour


@dataclass(frozen=True)
class Thing:
    """One object of a photograph: its name, its mask, and whether it is a crowd that nobody counted."""

    key: int
    name: str
    mask: Rle
    crowd: bool


@dataclass(frozen=True)
class Wording:
    """What one or several objects are called: `said` is what tells them apart, `phrases` ways to put it."""

    said: Said
    keys: tuple[int, ...]
    phrases: tuple[str, ...]


def plural(name: str) -> str:
    """Return the plural of a name: its own, where it has one, or one made with an s."""
    return PLURALS.get(name, name if name.endswith("s") else f"{name}s")


def wordings(things: Sequence[Thing], picture: NDArray[np.uint8] | None) -> list[Wording]:
    """Word all that can be said of `things`; colours only where the picture, uint8 RGB [h, w, 3], is given."""
    by_name: dict[str, list[Thing]] = defaultdict(list)
    for thing in things:
        by_name[thing.name].append(thing)
    found = []
    for name, group in by_name.items():
        found.append(Wording("name", tuple(thing.key for thing in group), _of_name(name)))
        if len(group) <= MOST_ALIKE and not any(thing.crowd for thing in group):
            found += _told_apart(name, group, picture)
    return found


def _of_name(name: str) -> tuple[str, ...]:
    worded = [template.format(plural(name) if template == "all {}" else name) for template in NAME_TEMPLATES]
    return (*worded, *SYNONYMS.get(name, ()), *(f"the {other}" for other in SYNONYMS.get(name, ())), plural(name))


def _told_apart(name: str, group: Sequence[Thing], picture: NDArray[np.uint8] | None) -> Iterator[Wording]:
    height, width = group[0].mask.height, group[0].mask.width
    large = [thing for thing in group if thing.mask.area >= LEAST_AREA * height * width]
    masks = {thing.key: thing.mask.to_mask() for thing in large}
    if picture is not None:
        yield from _coloured(name, group, masks, picture)
    if len(group) < 2 or len(large) < len(group):
        return
    centres = {key: _centre(mask) for key, mask in masks.items()}
    yield from _placed(name, centres)
    by_area = sorted(group, key=lambda thing: -thing.mask.area)
    if by_area[0].mask.area > LARGER * by_area[1].mask.area:
        yield Wording("size", (by_area[0].key,), tuple(each.format(name) for each in LARGE_TEMPLATES))
    if by_area[-2].mask.area > LARGER * by_area[-1].mask.area:
        yield Wording("size", (by_area[-1].key,), tuple(each.format(name) for each in SMALL_TEMPLATES))


def _placed(name: str, centres: Mapping[int, tuple[float, float]]) -> Iterator[Wording]:
    """Places of objects by their centres (x, y), 0..1."""
    from_left = sorted(centres, key=lambda key: centres[key][0])
    gaps = [centres[b][0] - centres[a][0] for a, b in pairwise(from_left)]
    ends = SIDE_TEMPLATES if len(centres) == 2 else END_TEMPLATES
    for side, key, gap in (("left", from_left[0], gaps[0]), ("right", from_left[-1], gaps[-1])):
        if gap >= SIDE_GAP:
            yield Wording("place", (key,), tuple(each.format(side, name) for each in ends))
    if min(gaps) >= SIDE_GAP and len(centres) > 2:
        if len(centres) == 3:
            yield Wording("place", (from_left[1],), (f"the {name} in the middle", f"the middle {name}"))
        for place in range(1, min(len(centres) - 1, len(ORDINALS))):
            yield Wording("place", (from_left[place],), (f"the {ORDINALS[place]} {name} from the left",))
        for place in range(1, min(len(centres) - 1, len(ORDINALS))):
            yield Wording("place", (from_left[-1 - place],), (f"the {ORDINALS[place]} {name} from the right",))
    from_top = sorted(centres, key=lambda key: centres[key][1])
    if centres[from_top[1]][1] - centres[from_top[0]][1] >= HEIGHT_GAP:
        yield Wording("place", (from_top[0],), tuple(each.format(name) for each in ABOVE_TEMPLATES))
    if centres[from_top[-1]][1] - centres[from_top[-2]][1] >= HEIGHT_GAP:
        yield Wording("place", (from_top[-1],), tuple(each.format(name) for each in BELOW_TEMPLATES))


def _coloured(
    name: str, group: Sequence[Thing], masks: Mapping[int, NDArray[np.bool_]], picture: NDArray[np.uint8]
) -> Iterator[Wording]:
    colours = {key: colour_of(picture[mask]) for key, mask in masks.items()}
    for key, colour in colours.items():
        alone = sum(other == colour for other in colours.values()) == 1 and len(masks) == len(group)
        if colour is not None and alone:
            yield Wording("colour", (key,), (f"the {colour} {name}", f"{colour} {name}"))


def colour_of(pixels: NDArray[np.uint8]) -> str | None:
    """Name the mean colour of pixels uint8 RGB [N, 3]; None where they have no one colour."""
    if pixels.astype(float).mean(1).std() > COLOURED:
        return None
    mean = pixels.mean(0)
    return min(COLOURS, key=lambda name: float(np.square(mean - COLOURS[name]).sum()))


def _centre(mask: NDArray[np.bool_]) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(columns.mean()) / mask.shape[1], float(rows.mean()) / mask.shape[0]
