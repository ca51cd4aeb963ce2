"""Other views of a picture to train on: mirrored, with the sides in its phrases swapped, and zoomed in or out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from promptseg.datasets.preprocess import CANVAS

CANDIDATES = 8  # windows drawn for a picture: the first that shows enough of every mask is taken
LEAST_SHOWN = 0.5  # share of a mask
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


def draw_views(rng: np.random.Generator, flip: bool, zoom: Sequence[float]) -> tuple[View, ...]:
    """Candidates in the order in which they are tried; the last one always shows all."""
    mirrored = flip and bool(rng.random() < 0.5)
    views = []
    if tuple(zoom) != (1.0, 1.0):
        for _ in range(CANDIDATES):
            side = round(CANVAS / rng.uniform(zoom[0], zoom[1]))
            slack = max(0, CANVAS - side)
            views.append(View(mirrored, int(rng.integers(slack + 1)), int(rng.integers(slack + 1)), side))
    return (*views, View(mirrored, 0, 0, CANVAS))


def swap_sides(phrase: str) -> str:
    """What the phrase has to say of the mirrored picture: "the leftmost cup" -> "the rightmost cup"."""
    return _SIDE.sub(lambda side: "right" if side[0].lower() == "left" else "left", phrase)
