"""Referring phrases: for one object, one phrase of each kind that is true of it and of nothing else in the scene."""

import numpy as np

from promptseg.datasets.records import PhraseKind
from promptseg.datasets.shapes.facts import Frame, Seen, absolute_facts, is_clearly_larger, relative_facts, side_facts
from promptseg.datasets.shapes.vocabulary import (
    ABSOLUTE_TEMPLATES,
    RELATIVE_TEMPLATES,
    SHORT_SIDE_TEMPLATES,
    Noun,
    indefinite,
)

DECIDING_ODDS = 0.85  # how often a sentence's relation is what tells the target from others of its name
SIDE_IN_SHORT_ODDS = 0.2


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
    """A relation to another object or to the picture; the kind of fact is drawn first, then its words."""
    deciding: dict[str, list[tuple[Noun, Noun | None]]] = {}
    redundant: dict[str, list[tuple[Noun, Noun | None]]] = {}
    for head in (
        Noun(target.shape),
        Noun(None, target.colour),
        Noun(target.shape, target.colour),
        Noun(),
    ):
        rivals = _others(head, target, seen)
        facts = absolute_facts(target, rivals, frame) if rivals else side_facts(target, rivals, frame)
        for fact in facts:
            (deciding if rivals else redundant).setdefault(fact, []).append((head, None))
        for anchor in seen:
            if anchor is target:
                continue
            rivals_but_anchor = [o for o in rivals if o is not anchor]
            for fact in relative_facts(target, anchor, rivals_but_anchor):
                options = (deciding if rivals_but_anchor else redundant).setdefault(fact, [])
                options += [(head, name) for name in _unique_nouns(anchor, seen)]
    wanted = deciding if rng.random() < DECIDING_ODDS else redundant
    facts_with_options = {fact: options for fact, options in (wanted or deciding or redundant).items() if options}
    if not facts_with_options:
        return None
    fact = str(rng.choice(sorted(facts_with_options)))
    options = facts_with_options[fact]
    return _say(fact, *options[rng.integers(len(options))], rng)


def _say(fact: str, head: Noun, anchor: Noun | None, rng: np.random.Generator) -> str:
    if anchor is not None:
        return str(rng.choice(RELATIVE_TEMPLATES[fact])).format(head=head.say(rng), anchor=anchor.say(rng))
    return str(rng.choice(ABSOLUTE_TEMPLATES[fact])).format(head=head.say(rng), heads=head.say(rng, plural=True))
