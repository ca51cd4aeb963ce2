from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptseg.sources.shapes.facts import Frame, Seen, absolute_facts, relative_facts, see
from promptseg.sources.shapes.scene import Layout, SceneObject, make_masks

FRAME = Frame(1.0, 0.75)
SWAPPED = {"left": "right", "right": "left"}


def seen(index: int, x: float, y: float, radius: float = 0.05, covered: tuple[int, ...] = (0,) * 6) -> Seen:
    area = int(1e6 * radius * radius)
    edges = (x - radius, x + radius, y - radius, y + radius)
    return Seen(index, "star", "red", "medium", radius, area, x, y, *edges, covered)


@st.composite
def scenes(draw):
    count = draw(st.integers(2, 6))
    # Multiples of 1/64 mirror without rounding, and none lies on a limit that does not.
    places = st.tuples(st.integers(4, 60), st.integers(4, 44), st.integers(2, 12)).map(lambda at: [n / 64 for n in at])
    return [seen(i, *draw(places)) for i in range(count)]


def mirrored(item: Seen) -> Seen:
    return replace(item, x=1 - item.x, left=1 - item.right, right=1 - item.left)


def mirrored_name(fact: str) -> str:
    return "_".join(SWAPPED.get(word, word) for word in fact.split("_"))


@given(scenes())
def test_no_fact_is_stated_of_two_objects(items):
    stated = [set(absolute_facts(item, [o for o in items if o is not item], FRAME)) for item in items]
    assert sum(map(len, stated)) == len(set().union(*stated))


@given(scenes())
def test_no_relation_to_an_anchor_is_stated_of_two_objects(items):
    anchor, *rest = items
    if len(rest) < 2:
        return
    stated = [set(relative_facts(item, anchor, [o for o in rest if o is not item])) for item in rest]
    assert sum(map(len, stated)) == len(set().union(*stated))


@given(scenes())
def test_facts_of_the_mirrored_scene_swap_left_and_right(items):
    target, *rivals = items
    plain = absolute_facts(target, rivals, FRAME)
    swapped = absolute_facts(mirrored(target), [mirrored(o) for o in rivals], FRAME)
    assert sorted(map(mirrored_name, plain)) == sorted(swapped)


@given(scenes())
def test_relations_of_the_mirrored_scene_swap_left_and_right(items):
    target, anchor, *rivals = items
    plain = relative_facts(target, anchor, rivals)
    swapped = relative_facts(mirrored(target), mirrored(anchor), [mirrored(o) for o in rivals])
    assert sorted(map(mirrored_name, plain)) == sorted(swapped)


@pytest.mark.parametrize(
    ("fact", "target", "rival"),
    [
        ("left", seen(0, 0.3, 0.4), seen(1, 0.5, 0.4)),
        ("right", seen(0, 0.7, 0.4), seen(1, 0.5, 0.4)),
        ("top", seen(0, 0.3, 0.2), seen(1, 0.3, 0.5)),
        ("bottom", seen(0, 0.3, 0.6), seen(1, 0.3, 0.3)),
        ("left_side", seen(0, 0.2, 0.4), seen(1, 0.8, 0.4)),
        ("bottom_side", seen(0, 0.5, 0.6), seen(1, 0.5, 0.2)),
        ("top_right", seen(0, 0.8, 0.2), seen(1, 0.5, 0.4)),
        ("bottom_left", seen(0, 0.2, 0.6), seen(1, 0.5, 0.4)),
        ("middle", seen(0, 0.5, 0.4), seen(1, 0.8, 0.6)),
        ("largest", seen(0, 0.3, 0.4, 0.1), seen(1, 0.7, 0.4, 0.05)),
        ("smallest", seen(0, 0.3, 0.4, 0.05), seen(1, 0.7, 0.4, 0.1)),
    ],
)
def test_what_is_clear_is_stated_of_the_right_one(fact, target, rival):
    assert fact in absolute_facts(target, [rival], FRAME)
    assert fact not in absolute_facts(rival, [target], FRAME)


@pytest.mark.parametrize(
    ("target", "rival"),
    [
        (seen(0, 0.45, 0.4), seen(1, 0.48, 0.42)),  # a hair further left and up
        (seen(0, 0.3, 0.375, 0.1), seen(1, 0.32, 0.37, 0.09)),  # a hair larger
        (
            seen(0, 0.50, 0.38, 0.20),
            replace(seen(1, 0.42, 0.38, 0.21), right=0.695),
        ),  # by its centre, hardly by its edge
    ],
)
def test_what_is_narrowly_true_is_not_stated(target, rival):
    assert absolute_facts(target, [rival], FRAME) == []


def test_relations_need_a_clear_direction_and_rivals_on_the_other_side():
    anchor = seen(0, 0.5, 0.4)
    target, other_side = seen(1, 0.2, 0.42), seen(2, 0.8, 0.2)
    assert "left_of" in relative_facts(target, anchor, [other_side])
    assert "left_of" not in relative_facts(target, anchor, [seen(2, 0.47, 0.1)])  # a rival is a little to the left
    assert relative_facts(seen(1, 0.3, 0.2), anchor, []) == []  # a diagonal is neither left of nor above


def test_nearness_is_compared_with_a_margin():
    anchor, target = seen(0, 0.2, 0.4), seen(1, 0.4, 0.4)
    assert "closest_to" in relative_facts(target, anchor, [seen(2, 0.7, 0.4)])
    assert "closest_to" not in relative_facts(target, anchor, [seen(2, 0.2, 0.63)])
    assert "furthest_from" in relative_facts(seen(2, 0.7, 0.4), anchor, [target])


def test_behind_and_in_front_follow_what_covers_what():
    below, above = seen(0, 0.3, 0.3, covered=(0, 600, 0)), seen(1, 0.36, 0.3, covered=(0, 0, 0))
    rival = seen(2, 0.8, 0.3, covered=(0, 0, 0))
    assert "behind" in relative_facts(below, above, [rival])
    assert "in_front_of" in relative_facts(above, below, [rival])
    touching = replace(rival, covered_px=(0, 1, 0))
    assert "behind" not in relative_facts(below, above, [touching])


def test_measures_come_from_the_visible_pixels():
    item = SceneObject("square", "red", "small", 30.0, 20.0, 10 / 0.82, 0.0)  # columns 20..39, rows 10..29
    layout = Layout(50, 100, (item, replace(item, x=70.0, colour="blue")))
    masks = make_masks(layout)
    assert masks is not None
    frame, (first, second) = see(layout, masks)
    assert frame == Frame(1.0, 0.5)
    assert (first.area_px, first.left, first.right, first.top, first.bottom) == (400, 0.2, 0.4, 0.1, 0.3)
    assert (first.x, first.y, second.x) == pytest.approx((0.3, 0.2, 0.7))
    rows, columns = np.nonzero(masks.visible[0])
    assert first.x == pytest.approx((columns.mean() + 0.5) / 100)
    assert first.y == pytest.approx((rows.mean() + 0.5) / 100)
