"""What each step sees and how fast it learns: functions of the seed and the step alone, so that resuming is exact.

A step draws pictures, phrases, a size, and views: a view mirrors a picture, swapping left and right in its phrases, and
zooms in or out.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from promptseg.datasets.preprocess import CANVAS
from promptseg.params import FinetuneConfig

CANDIDATES = 8  # windows drawn for a picture: the first that shows enough of every mask is taken
LEAST_SHOWN = 0.5  # share of a mask that a window must show
_SIDE = re.compile(r"\b(left|right)(?=(?:most|hand|side)?\b)", re.IGNORECASE)


@dataclass(frozen=True)
class View:
    """A square window of `side` pixels on the canvas, its top left at (`left`, `top`); larger than the canvas: padded.

    `mirrored`: the picture's left and right are swapped before it is laid on the canvas.
    """

    mirrored: bool
    left: int
    top: int
    side: int

    def window(self, canvas: Tensor) -> Tensor:
        """Float [..., CANVAS, CANVAS] -> [..., side, side]; zeros beyond the canvas."""
        beyond = max(0, self.side - CANVAS)
        padded = F.pad(canvas, (0, beyond, 0, beyond))
        return padded[..., self.top : self.top + self.side, self.left : self.left + self.side]


WHOLE = View(mirrored=False, left=0, top=0, side=CANVAS)


@dataclass(frozen=True)
class Draw:
    """The pictures of a step, for each the samples (indices into the data's lists) and views to try, and the size."""

    pictures: list[int]
    samples: list[list[int]]
    views: list[tuple[View, ...]]
    res: int


def draw(config: FinetuneConfig, step: int, samples_of: Sequence[Sequence[int]]) -> Draw:
    """Choose what a step trains on: every picture once an epoch, in an order of its own; phrases and size at random.

    `samples_of` holds each picture's samples. Pictures with fewer than `phrases_per_picture` repeat some.
    """
    count = len(samples_of)
    pictures = []
    for place in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, offset = divmod(place, count)
        pictures.append(int(_order(config.seed, epoch, count)[offset]))
    rng = np.random.default_rng([config.seed, 1, step])
    chosen = []
    for picture in pictures:
        available = samples_of[picture]
        repeat = len(available) < config.phrases_per_picture
        chosen.append([int(i) for i in rng.choice(available, config.phrases_per_picture, replace=repeat)])
    res = int(rng.choice(config.res))
    return Draw(pictures, chosen, [draw_views(rng, config.flip, config.zoom) for _ in pictures], res)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def draw_views(rng: np.random.Generator, flip: bool, zoom: Sequence[float]) -> tuple[View, ...]:
    """Draw a picture's views in the order in which they are tried; the last one always shows all."""
    mirrored = flip and bool(rng.random() < 0.5)
    views = []
    if tuple(zoom) != (1.0, 1.0):
        for _ in range(CANDIDATES):
            side = round(CANVAS / rng.uniform(zoom[0], zoom[1]))
            slack = max(0, CANVAS - side)
            views.append(View(mirrored, int(rng.integers(slack + 1)), int(rng.integers(slack + 1)), side))
    return (*views, View(mirrored, 0, 0, CANVAS))


def swap_sides(phrase: str) -> str:
    """Return what the phrase must say of the mirrored picture: "the leftmost cup" -> "the rightmost cup"."""
    return _SIDE.sub(lambda side: "right" if side[0].lower() == "left" else "left", phrase)


def lr_factor(config: FinetuneConfig, step: int) -> float:
    """Share of the rates: linear warm-up; then a tenth at each of `lr_milestones`, or else half a cosine down to zero.

    The step after the last would have the zero. The published recipe (Zou et al., 2023) drops at 0.889 and 0.963.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_milestones:
        return 0.1 ** sum(step >= drop * config.steps for drop in config.lr_milestones)
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return (1 + math.cos(math.pi * progress)) / 2
