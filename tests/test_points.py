"""The front of experiments that none beats, and the points to take, against a slow definition."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptseg.experiments.points import Point, best_under, fastest_above, pareto_front


def point(name: str, ms: float, miou: float, **changes: Any) -> Point:
    fields = {"res": 320, "miou_low": miou - 0.05, "miou_high": miou + 0.05, "latency_source": "estimated"}
    fields |= {"latency_ms_low": None, "latency_ms_high": None, "latency_ms_cpu": None, "can_be_applied": True}
    return Point(name=name, latency_ms=ms, miou=miou, **{**fields, **changes})


POINTS = [point("a", 4.5, 0.46), point("b", 6.8, 0.50), point("c", 12.8, 0.47), point("d", 15.4, 0.55)]


def beats(one: Point, other: Point) -> bool:
    no_worse = one.latency_ms <= other.latency_ms and one.miou >= other.miou
    return no_worse and (one.latency_ms < other.latency_ms or one.miou > other.miou)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_none_beats(pairs: list[tuple[int, int]]) -> None:
    points = [point(str(number), ms, miou / 10) for number, (ms, miou) in enumerate(pairs)]
    front = pareto_front(points)
    wanted = {(each.latency_ms, each.miou) for each in points if not any(beats(other, each) for other in points)}
    assert {(each.latency_ms, each.miou) for each in front} == wanted
    assert len(front) == len(wanted)
    assert front == sorted(front, key=lambda each: each.latency_ms)


def test_operating_points_are_the_fastest_good_one_and_the_best_quick_one() -> None:
    assert [each.name for each in pareto_front(POINTS)] == ["a", "b", "d"]
    assert fastest_above(POINTS, 0.47).name == "b"
    assert fastest_above(POINTS, 0.46).name == "a"
    assert best_under(POINTS, 13).name == "b"
    assert best_under(POINTS, 4.5).name == "a"


def test_what_no_experiment_reaches_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no experiment with mIoU 0.9 or more, the best is d with 0.550"):
        fastest_above(POINTS, 0.9)
    with pytest.raises(ValueError, match=r"no experiment of 1 ms or less, the fastest is a with 4.50"):
        best_under(POINTS, 1)
