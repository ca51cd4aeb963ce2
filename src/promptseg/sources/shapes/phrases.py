"""Referring phrases: for one object, one phrase of each kind that is true of it and of nothing else in the scene."""

from dataclasses import dataclass

import numpy as np

from promptseg.datasets.records import PhraseKind
from promptseg.sources.shapes.facts import Frame, Seen, absolute_facts, is_clearly_larger, relative_facts, side_facts
from promptseg.sources.shapes.vocabulary import (
    ABSOLUTE_TEMPLATES,
    FAMILIES,
    RELATIVE_TEMPLATES,
    SHORT_SIDE_TEMPLATES,
    Noun,
    indefinite,
)

DECIDING_ODDS = 0.85  # how often a sentence's relation is what tells the target from others of its name
SIDE_IN_SHORT_ODDS = 0.2


@dataclass(frozen=True)
class _Statement:
    """A fact that holds for one object among those that `head` fits, with the name of what it is related to."""

    fact: str
    head: Noun
    anchor: Noun | None = None

    def say(self, rng: np.random.Generator) -> str:
        if self.anchor is None:
            template = str(rng.choice(ABSOLUTE_TEMPLATES[self.fact]))
            return template.format(head=self.head.say(rng), heads=self.head.say(rng, plural=True))
        template = str(rng.choice(RELATIVE_TEMPLATES[self.fact]))
        return template.format(head=self.head.say(rng), anchor=self.anchor.say(rng))


def has_distractor(target: Seen, seen: list[Seen]) -> bool:
    """Whether another object shares the target's colour or its shape."""
    return any(o.shape == target.shape or o.colour == target.colour for o in seen if o is not target)


def make_phrases(
    target: Seen, seen: list[Seen], frame: Frame, rng: np.random.Generator
) -> dict[PhraseKind, str] | None:
    """One phrase a kind, each unambiguous; None when a kind cannot be made for this object."""
    keyword = _keyword(target, seen, rng)
    short = _short(target, seen, frame, rng)
    sentence = _sentence(target, seen, frame, rng)
    if keyword is None or short is None or sentence is None:
        return None
    return {"keyword": keyword, "short": short, "sentence": sentence}


def _others(noun: Noun, target: Seen, seen: list[Seen]) -> list[Seen]:
    return [o for o in seen if o is not target and noun.fits(o)]


def _sized_nouns(target: Seen, seen: list[Seen]) -> list[Noun]:
    """Nouns with a size that single the target out, every other object of the name being clearly of another size."""
    if target.size == "medium":
        return []
    nouns = []
    for shape, colour in ((target.shape, None), (target.shape, target.colour), (None, target.colour)):
        rivals = _others(Noun(shape, colour), target, seen)
        if target.size == "large":
            clear = all(is_clearly_larger(target, rival) for rival in rivals)
        else:
            clear = all(is_clearly_larger(rival, target) for rival in rivals)
        if clear and all(rival.size != target.size for rival in rivals):
            nouns.append(Noun(shape, colour, target.size))
    return nouns


def _unique_nouns(target: Seen, seen: list[Seen]) -> list[Noun]:
    nouns = (Noun(target.shape), Noun(target.shape, target.colour))
    return [noun for noun in nouns if not _others(noun, target, seen)]


def _keyword(target: Seen, seen: list[Seen], rng: np.random.Generator) -> str | None:
    """Like "star" or "red star"; with a size only where twins leave no other way."""
    nouns = _unique_nouns(target, seen) or [noun for noun in _sized_nouns(target, seen) if noun.shape]
    return nouns[rng.integers(len(nouns))].say(rng) if nouns else None


def _short(target: Seen, seen: list[Seen], frame: Frame, rng: np.random.Generator) -> str | None:
    """Like "the small red star", "a blue thing", "the star on the left"."""
    if rng.random() < SIDE_IN_SHORT_ODDS:
        options = []
        for noun in (Noun(target.shape), Noun(target.shape, target.colour), Noun(None, target.colour)):
            rivals = _others(noun, target, seen)
            options += [(noun, fact) for fact in side_facts(target, rivals, frame) if rivals]
        if options:
            noun, fact = options[rng.integers(len(options))]
            return str(rng.choice(SHORT_SIDE_TEMPLATES[fact])).format(head=noun.say(rng))
    plain = [Noun(target.shape, target.colour), Noun(None, target.colour)]
    nouns = _sized_nouns(target, seen) + [noun for noun in plain if not _others(noun, target, seen)]
    if not nouns:
        return None
    words = nouns[rng.integers(len(nouns))].say(rng)
    return f"the {words}" if rng.random() < 0.6 else indefinite(words)


def _sentence(target: Seen, seen: list[Seen], frame: Frame, rng: np.random.Generator) -> str | None:
    """A relation to another object or to the picture, which mostly is what tells the target from its like."""
    deciding, redundant = _statements(target, seen, frame)
    preferred, fallback = (deciding, redundant) if rng.random() < DECIDING_ODDS else (redundant, deciding)
    statements = preferred or fallback
    families = [family for family in FAMILIES if any(s.fact in family for s in statements)]
    if not families:
        return None
    family = families[rng.integers(len(families))]
    fact = str(rng.choice([fact for fact in family if any(s.fact == fact for s in statements)]))
    options = [s for s in statements if s.fact == fact]
    return options[rng.integers(len(options))].say(rng)


def _statements(target: Seen, seen: list[Seen], frame: Frame) -> tuple[list[_Statement], list[_Statement]]:
    """All that can be said of the target: where the name alone leaves rivals, and where it already singles out."""
    deciding: list[_Statement] = []
    redundant: list[_Statement] = []
    for head in (Noun(target.shape), Noun(None, target.colour), Noun(target.shape, target.colour), Noun()):
        rivals = _others(head, target, seen)
        if rivals:
            deciding += [_Statement(fact, head) for fact in absolute_facts(target, rivals, frame)]
        else:
            redundant += [_Statement(fact, head) for fact in side_facts(target, rivals, frame)]
        for anchor in (o for o in seen if o is not target):
            compared = [o for o in rivals if o is not anchor]
            facts = relative_facts(target, anchor, compared)
            names = _unique_nouns(anchor, seen)
            statements = [_Statement(fact, head, name) for fact in facts for name in names]
            (deciding if compared else redundant).extend(statements)
    return deciding, redundant
