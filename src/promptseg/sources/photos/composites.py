"""Photographs with objects of others pasted in: more places, sizes and neighbours than a thousand pictures have.

Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (2021). Rare
names are pasted as often as common ones.
"""

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from promptseg.datasets.preprocess import read_picture
from promptseg.datasets.records import Rle
from promptseg.sources.photos.phrases import Thing

MOST_PASTED = 3  # objects, into one photograph
SIDES = (0.2, 0.75)  # of a pasted object's longest side, as a share of the photograph's
LEAST_SIDE = 40  # px of an object that is pasted, along its shorter side
LEAST_AREA = 0.01  # of its photograph
LEAST_LEFT = 0.3  # of an object that others are pasted over, below which it is forgotten
QUALITY = 92  # of the JPEG


@dataclass(frozen=True)
class Photo:
    """A photograph's file name, size, and objects; `complete` where an absent name is known to be absent."""

    file_name: str
    height: int
    width: int
    things: tuple[Thing, ...]
    complete: bool


@dataclass(frozen=True)
class Pasting:
    """Where an object of a photograph goes: the box [left, top, width, height] of its mask, mirrored or not."""

    source: str
    thing: Thing
    left: int
    top: int
    width: int
    height: int
    mirrored: bool

    def cut(self, of: NDArray[np.uint8] | NDArray[np.bool_], smooth: bool) -> Image.Image:
        """The object's box of its picture, or mask, at its new size."""
        rows, columns = (np.flatnonzero(self.thing.mask.to_mask().any(axis)) for axis in (1, 0))
        box = of[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        image = Image.fromarray(box[:, ::-1] if self.mirrored else box)
        return image.resize(
            (self.width, self.height), Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        )

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Bool [height, width] of the photograph that it is pasted into; what reaches beyond is cut off."""
        full = Image.new("1", (width, height))
        full.paste(self.cut(self.thing.mask.to_mask(), smooth=False), (self.left, self.top))
        return np.asarray(full)


@dataclass(frozen=True)
class Composite:
    """A photograph with objects pasted in, in this order, and what is then to be seen in it."""

    photo: Photo
    pastings: tuple[Pasting, ...]
    result: Photo


def draw_composites(photos: Sequence[Photo], grounds: Sequence[Photo], count: int, seed: int) -> list[Composite]:
    """Draw `count` composites of objects in `photos`, each on one of `grounds`; the seed decides."""
    rng = np.random.default_rng([seed, 2])
    by_name: dict[str, list[tuple[Photo, Thing]]] = defaultdict(list)
    for photo in photos:
        for thing in photo.things:
            if _worth(photo, thing):
                by_name[thing.name].append((photo, thing))
    names = sorted(by_name)
    weights = np.array([len(by_name[name]) ** 0.25 for name in names])
    composites = []
    for number in range(count):
        ground = grounds[int(rng.integers(len(grounds)))]
        chosen = rng.choice(len(names), int(rng.integers(1, MOST_PASTED + 1)), p=weights / weights.sum())
        if rng.random() < 0.35:  # two of a name, so that places and sizes tell them apart
            chosen = np.append(chosen, chosen[0])
        pastings = []
        for index in chosen:
            source, thing = by_name[names[index]][int(rng.integers(len(by_name[names[index]])))]
            pastings.append(_placed(rng, ground, source, thing))
        composites.append(_composite(f"composite-{number:05d}.jpg", ground, pastings))
    return composites


def _worth(photo: Photo, thing: Thing) -> bool:
    if thing.crowd or thing.mask.area < LEAST_AREA * photo.height * photo.width:
        return False
    mask = thing.mask.to_mask()
    return bool(min(mask.any(0).sum(), mask.any(1).sum()) >= LEAST_SIDE)


def _placed(rng: np.random.Generator, ground: Photo, source: Photo, thing: Thing) -> Pasting:
    mask = thing.mask.to_mask()
    height, width = int(np.ptp(np.flatnonzero(mask.any(1)))) + 1, int(np.ptp(np.flatnonzero(mask.any(0)))) + 1
    scale = rng.uniform(*SIDES) * max(ground.height, ground.width) / max(height, width)
    scale = min(scale, 1.6)  # larger, it would be blurred
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    left = int(rng.integers(-width // 4, max(1, ground.width - 3 * width // 4)))
    top = int(rng.integers(-height // 4, max(1, ground.height - 3 * height // 4)))
    return Pasting(source.file_name, thing, left, top, width, height, bool(rng.random() < 0.5))


def _composite(file_name: str, ground: Photo, pastings: Sequence[Pasting]) -> Composite:
    size = (ground.height, ground.width)
    masks = [(thing, thing.mask.to_mask()) for thing in ground.things]
    for pasting in pastings:
        pasted = pasting.mask(*size)
        masks = [(thing, mask & ~pasted) for thing, mask in masks]
        masks.append((pasting.thing, pasted))
    things = []
    for key, (thing, mask) in enumerate(masks):
        was = thing.mask.area if key < len(ground.things) else 1
        if mask.sum() >= max(16, LEAST_LEFT * was if key < len(ground.things) else 16):
            things.append(Thing(key, thing.name, Rle.from_mask(mask), thing.crowd))
    return Composite(ground, tuple(pastings), Photo(file_name, *size, tuple(things), ground.complete))


def compose(composite: Composite, read: Callable[[str], bytes]) -> bytes:
    """Paste, with edges that are a pixel soft -> JPEG; `read` gives a photograph's bytes by its name."""
    picture = Image.fromarray(read_picture(read(composite.photo.file_name), composite.photo.file_name))
    for pasting in composite.pastings:
        source = read_picture(read(pasting.source), pasting.source)
        soft = (
            pasting.cut(pasting.thing.mask.to_mask(), smooth=False).convert("L").filter(ImageFilter.GaussianBlur(0.8))
        )
        picture.paste(pasting.cut(source, smooth=True), (pasting.left, pasting.top), soft)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()
