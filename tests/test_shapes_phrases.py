"""Every phrase is read back by a reader that knows English but not the generator: exactly one object may fit it."""

import math
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from shapes_oracle import covers

from promptseg.datasets.records import PHRASE_KINDS
from promptseg.params import ShapesConfig
from promptseg.sources.shapes import RenderedScene, render_scene

CONFIG = ShapesConfig(
    kind="shapes",
    seed=11,
    train_scenes=1,
    val_scenes=1,
    test_scenes=1,
    objects_min=2,
    objects_max=6,
    targets_per_scene=2,
)
SYNONYMS = {"disc": "circle", "donut": "ring", "plus sign": "cross", "moon": "crescent"}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent", "diamond", *SYNONYMS)
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "black")
SIZES = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"}
NOUN = rf"((?:{'|'.join(SIZES)}) )?((?:{'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|shape|thing|object)(?:s|es)?"
PART = "(?: (?:side|half|part) of the picture)?"
PATTERNS = {
    "extreme": rf"the (leftmost|rightmost|topmost|uppermost|bottommost|lowest) {NOUN}",
    "far": rf"the {NOUN} (?:furthest to the|on the far) (left|right)",
    "border": rf"the {NOUN} closest to the (top|bottom) of the picture",
    "half": rf"(?:the )?{NOUN} (?:on|in|at) the (left|right|top|bottom|upper|lower){PART}",
    "corner": rf"the {NOUN} (?:closest|nearest) to the (top|upper|bottom|lower) (left|right) corner",
    "middle": rf"the {NOUN} (?:closest|nearest) to the (?:middle|center) of the picture",
    "size": rf"the (?:{NOUN} that is the )?(largest|biggest|smallest)(?: of (?:all )?the {NOUN})?",
    "direction": rf"the {NOUN}(?: that is)? (to the left of|left of|to the right of|right of|above|below) the {NOUN}",
    "nearness": rf"the {NOUN}(?: that is)? (closest|nearest|furthest|furthest away) (?:to|from) the {NOUN}",
    "overlap": rf"the {NOUN} (behind|partly hidden by|in front of|that partly covers) the {NOUN}",
    "name": rf"(?:the |an? )?{NOUN}",
}


@cache
def scenes(count: int) -> list[RenderedScene]:
    return [render_scene("train", index, CONFIG) for index in range(count)]


class Reader:
    """Knows the masks, the order of painting and the looks; measures everything anew."""

    def __init__(self, scene: RenderedScene) -> None:
        self.items = scene.layout.objects
        self.all = set(range(len(self.items)))
        self.height, self.width = scene.masks.shape[1:]
        pixels = [np.nonzero(mask) for mask in scene.masks]
        self.centre = [(columns.mean() + 0.5, rows.mean() + 0.5) for rows, columns in pixels]
        self.area = [len(rows) for rows, _ in pixels]

    def fitting(self, size, colour, noun) -> set[int]:
        shape = None if noun in ("shape", "thing", "object") else SYNONYMS.get(noun, noun)
        named = {
            i
            for i in self.all
            if (shape is None or self.items[i].shape == shape)
            and (not colour or self.items[i].colour == colour.strip())
        }
        if not size:
            return named
        wanted = SIZES[size.strip()]
        sized = {i for i in named if self.items[i].size == wanted}
        areas = {True: [self.area[i] for i in sized], False: [self.area[i] for i in named - sized]}
        if areas[True] and areas[False]:  # the eye must agree with the label
            larger, smaller = (True, False) if wanted == "large" else (False, True)
            assert min(areas[larger]) > 1.2 * max(areas[smaller])
        return sized

    def best(self, among, key) -> set[int]:
        values = {i: key(i) for i in among}
        return {i for i, value in values.items() if value == min(values.values())}

    def distance(self, i, x, y) -> float:
        return math.hypot(self.centre[i][0] - x, self.centre[i][1] - y)

    def overlaps(self, i, j) -> bool:
        """Whether two outlines share a point of a grid of 2 pixels; who is on top is told by the order."""
        one, other = self.items[i], self.items[j]
        reach = int(1.2 * one.radius)
        steps = range(-reach, reach + 1, 2)
        points = ((one.x + right, one.y + down) for right in steps for down in steps)
        return any(covers(one, x, y) and covers(other, x, y) for x, y in points)

    def read(self, phrase: str) -> tuple[str, set[int]]:
        """The pattern that the phrase follows, and the objects that fit it."""
        matches = {name: match for name, pattern in PATTERNS.items() if (match := re.fullmatch(pattern, phrase))}
        assert len(matches) == 1, f"{phrase!r} follows {list(matches)}"
        name, match = matches.popitem()
        return name, getattr(self, f"_{name}")(*match.groups())

    def _name(self, size, colour, noun):
        return self.fitting(size, colour, noun)

    def _side(self, among, word):
        keys = {"l": lambda i: self.centre[i][0], "t": lambda i: self.centre[i][1]}
        keys |= {"r": lambda i: -self.centre[i][0], "b": lambda i: -self.centre[i][1], "u": keys["t"]}
        return self.best(among, keys["b" if word == "lowest" else word[0]])

    def _extreme(self, word, *noun):
        return self._side(self.fitting(*noun), word)

    def _far(self, *groups):
        return self._side(self.fitting(*groups[:3]), groups[3])

    _border = _far

    def _half(self, *groups):
        middle_x, middle_y = self.width / 2, self.height / 2
        tests = {
            "left": lambda x, _: x < middle_x,
            "right": lambda x, _: x > middle_x,
            "top": lambda _, y: y < middle_y,
            "upper": lambda _, y: y < middle_y,
            "bottom": lambda _, y: y > middle_y,
            "lower": lambda _, y: y > middle_y,
        }
        return {i for i in self.fitting(*groups[:3]) if tests[groups[3]](*self.centre[i])}

    def _corner(self, *groups):
        y = 0 if groups[3] in ("top", "upper") else self.height
        x = 0 if groups[4] == "left" else self.width
        return self.best(self.fitting(*groups[:3]), lambda i: self.distance(i, x, y))

    def _middle(self, *noun):
        return self.best(self.fitting(*noun), lambda i: self.distance(i, self.width / 2, self.height / 2))

    def _size(self, size, colour, noun, word, *plural):
        among = self.fitting(size, colour, noun) if noun else self.fitting(*plural)
        return self.best(among, lambda i: self.area[i] if word == "smallest" else -self.area[i])

    def _related(self, groups):
        anchors = self.fitting(*groups[4:])
        assert len(anchors) == 1, "the anchor is one object"
        return self.fitting(*groups[:3]) - anchors, groups[3], anchors.pop()

    def _direction(self, *groups):
        heads, relation, anchor = self._related(groups)
        x, y = self.centre[anchor]
        tests = {
            "left": lambda i: self.centre[i][0] < x,
            "right": lambda i: self.centre[i][0] > x,
            "above": lambda i: self.centre[i][1] < y,
            "below": lambda i: self.centre[i][1] > y,
        }
        word = next(word for word in tests if word in relation)
        return {i for i in heads if tests[word](i)}

    def _nearness(self, *groups):
        heads, relation, anchor = self._related(groups)
        sign = -1 if "furthest" in relation else 1
        return self.best(heads, lambda i: sign * self.distance(i, *self.centre[anchor]))

    def _overlap(self, *groups):
        heads, relation, anchor = self._related(groups)
        later = relation in ("in front of", "that partly covers")
        return {i for i in heads if (i > anchor) == later and self.overlaps(i, anchor)}


def check(count: int) -> Counter:
    """Read every phrase of the first scenes; return how often each pattern came."""
    patterns: Counter = Counter()
    for scene in scenes(count):
        reader = Reader(scene)
        for target in scene.targets:
            for phrase in target.phrases.values():
                pattern, fitting = reader.read(phrase)
                assert fitting == {target.index}, phrase
                patterns[pattern] += 1
    return patterns


def test_every_phrase_fits_its_target_and_nothing_else():
    assert set(check(60)) >= {"name", "half", "extreme", "far", "corner", "size", "direction", "nearness"}


@pytest.mark.slow
def test_every_phrase_of_many_scenes_fits_its_target_and_nothing_else():
    assert set(check(600)) == set(PATTERNS)


def test_every_target_has_a_distractor_of_its_colour_or_its_shape():
    for scene in scenes(60):
        for target in scene.targets:
            own = scene.layout.objects[target.index]
            others = [o for i, o in enumerate(scene.layout.objects) if i != target.index]
            assert any(o.shape == own.shape or o.colour == own.colour for o in others)


def test_kinds_are_balanced_and_keywords_are_bare():
    for scene in scenes(60):
        for target in scene.targets:
            assert tuple(target.phrases) == PHRASE_KINDS
            assert target.phrases["keyword"].split()[0] not in ("a", "an", "the")
            assert re.fullmatch(PATTERNS["name"], target.phrases["keyword"])


def test_sentences_are_relations_or_places():
    patterns = Counter(Reader(s).read(t.phrases["sentence"])[0] for s in scenes(60) for t in s.targets)
    assert "name" not in patterns
    assert patterns["direction"] + patterns["nearness"] >= 0.15 * patterns.total()


def test_phrases_are_plain_lower_case_without_a_full_stop():
    phrases = [phrase for scene in scenes(60) for target in scene.targets for phrase in target.phrases.values()]
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)*", phrase) for phrase in phrases)
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]", phrase) for phrase in phrases)
    assert len(set(phrases)) > 200  # of 360: words vary
