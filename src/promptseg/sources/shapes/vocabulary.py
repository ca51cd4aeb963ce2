"""The words: nouns for objects, and sentence templates for what can be true of them."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

# The first word is taken more often than each synonym.
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "donut"),
    "cross": ("cross", "plus sign"),
    "heart": ("heart",),
    "crescent": ("crescent", "moon"),
    "diamond": ("diamond",),
}
THING_WORDS = ("shape", "thing", "object")
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}  # a medium size is never named
FIRST_WORD_ODDS = 0.7

ABSOLUTE_TEMPLATES = {
    "left": ("the leftmost {head}", "the {head} furthest to the left", "the {head} on the far left"),
    "right": ("the rightmost {head}", "the {head} furthest to the right", "the {head} on the far right"),
    "top": ("the topmost {head}", "the uppermost {head}", "the {head} closest to the top of the picture"),
    "bottom": ("the bottommost {head}", "the lowest {head}", "the {head} closest to the bottom of the picture"),
    "left_side": ("the {head} on the left side of the picture", "the {head} in the left half of the picture"),
    "right_side": ("the {head} on the right side of the picture", "the {head} in the right half of the picture"),
    "top_side": ("the {head} in the upper half of the picture", "the {head} in the upper part of the picture"),
    "bottom_side": ("the {head} in the lower half of the picture", "the {head} in the lower part of the picture"),
    "top_left": ("the {head} closest to the top left corner", "the {head} nearest to the upper left corner"),
    "top_right": ("the {head} closest to the top right corner", "the {head} nearest to the upper right corner"),
    "bottom_left": ("the {head} closest to the bottom left corner", "the {head} nearest to the lower left corner"),
    "bottom_right": ("the {head} closest to the bottom right corner", "the {head} nearest to the lower right corner"),
    "middle": ("the {head} closest to the middle of the picture", "the {head} nearest to the center of the picture"),
    "largest": ("the largest of the {heads}", "the {head} that is the biggest", "the biggest of all the {heads}"),
    "smallest": ("the smallest of the {heads}", "the {head} that is the smallest", "the smallest of all the {heads}"),
}
RELATIVE_TEMPLATES = {
    "left_of": ("the {head} to the left of the {anchor}", "the {head} that is left of the {anchor}"),
    "right_of": ("the {head} to the right of the {anchor}", "the {head} that is right of the {anchor}"),
    "above": ("the {head} above the {anchor}", "the {head} that is above the {anchor}"),
    "below": ("the {head} below the {anchor}", "the {head} that is below the {anchor}"),
    "closest_to": ("the {head} closest to the {anchor}", "the {head} that is nearest to the {anchor}"),
    "furthest_from": ("the {head} furthest from the {anchor}", "the {head} that is furthest away from the {anchor}"),
    "behind": ("the {head} behind the {anchor}", "the {head} partly hidden by the {anchor}"),
    "in_front_of": ("the {head} in front of the {anchor}", "the {head} that partly covers the {anchor}"),
}
FAMILIES = (  # facts of one sort; a sentence's sort is drawn first, so that rare sorts are heard too
    ("left", "right", "top", "bottom"),
    ("left_side", "right_side", "top_side", "bottom_side"),
    ("top_left", "top_right", "bottom_left", "bottom_right", "middle"),
    ("largest", "smallest"),
    ("left_of", "right_of", "above", "below"),
    ("closest_to", "furthest_from"),
    ("behind", "in_front_of"),
)
SHORT_SIDE_TEMPLATES = {
    "left_side": ("the {head} on the left", "{head} on the left"),
    "right_side": ("the {head} on the right", "{head} on the right"),
    "top_side": ("the {head} at the top", "{head} at the top"),
    "bottom_side": ("the {head} at the bottom", "{head} at the bottom"),
}


class HasLooks(Protocol):
    """What a noun looks at."""

    @property
    def shape(self) -> str:
        """A name from geometry.SHAPES."""

    @property
    def colour(self) -> str:
        """A name from scene.COLOURS."""

    @property
    def size(self) -> str:
        """A name from scene.RADII."""


@dataclass(frozen=True)
class Noun:
    """What an object is called; an attribute that is None is not mentioned."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None

    def fits(self, item: HasLooks) -> bool:
        """Whether the object has every attribute mentioned."""
        wanted = ((self.shape, item.shape), (self.colour, item.colour), (self.size, item.size))
        return all(mentioned is None or mentioned == actual for mentioned, actual in wanted)

    def say(self, rng: np.random.Generator, *, plural: bool = False) -> str:
        """Words in English order, synonyms drawn: "tiny red star", "blue things"."""
        noun = pick_word(rng, SHAPE_WORDS[self.shape]) if self.shape else pick_word(rng, THING_WORDS)
        if plural:
            noun += "es" if noun.endswith("s") else "s"
        size = pick_word(rng, SIZE_WORDS[self.size]) if self.size else None
        return " ".join(word for word in (size, self.colour, noun) if word)


def pick_word(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """The first word with FIRST_WORD_ODDS, else one of the others."""
    if len(words) == 1 or rng.random() < FIRST_WORD_ODDS:
        return words[0]
    return words[rng.integers(1, len(words))]


def indefinite(noun_phrase: str) -> str:
    """Prefix "a" or "an"."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"
