"""Experiments as points of latency against mIoU, the front of those that none beats, and which one to take."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One experiment. Latencies in ms, with the bounds that its source gives; None where there are none.

    `latency_source` is the kind of its latency, one of `latencies.NAMES`: "device" (a clock), "estimated" (never a
    measurement) or "cpu" (this machine's). Only points of one kind are compared.
    The workspace and commits are no experiments, and cannot be applied.
    """

    name: str
    can_be_applied: bool
    res: int
    miou: float
    miou_low: float
    miou_high: float
    latency_ms: float
    latency_ms_low: float | None
    latency_ms_high: float | None
    latency_source: str
    latency_ms_cpu: float | None


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats: none is as fast or faster with a higher mIoU, or as good and faster.

    From the fastest to the slowest. Of equal points the first is kept.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.latency_ms, -point.miou)):
        if not front or point.miou > front[-1].miou:
            front.append(point)
    return front


def fastest_above(points: Sequence[Point], miou: float) -> Point:
    """Return the fastest point whose mIoU is at least `miou`. Raises ValueError, with the best there is, if none is."""
    good = [point for point in points if point.miou >= miou]
    if not good:
        best = max(points, key=lambda point: point.miou)
        raise ValueError(f"got no experiment with mIoU {miou} or more, the best is {best.name} with {best.miou:.3f}")
    return min(good, key=lambda point: (point.latency_ms, -point.miou))


def best_under(points: Sequence[Point], ms: float) -> Point:
    """Return the point of highest mIoU of at most `ms` milliseconds. Raises ValueError, with the fastest, if none."""
    quick = [point for point in points if point.latency_ms <= ms]
    if not quick:
        first = min(points, key=lambda point: point.latency_ms)
        raise ValueError(
            f"got no experiment of {ms} ms or less, the fastest is {first.name} with {first.latency_ms:.2f}"
        )
    return max(quick, key=lambda point: (point.miou, -point.latency_ms))
