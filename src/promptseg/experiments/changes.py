"""What changed between two states, and whether for the better."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptseg.experiments.records import State

# Of these more is better, or less; of all others (counts, seeds, baselines) neither.
MORE = re.compile(r"miou(?!_(best_baseline|ci_)).*|ciou|p_at_\d+|mask_agreement.*")
LESS = re.compile(
    r"(host\.)?latency_ms_.*|simulated_parts_ms\..*|(first|warm)_load_ms|(spill|fill|ddr_read|ddr_write|binary|model|peak_memory)_mb"
    r"|gflops|ops_without_cost"
)


@dataclass(frozen=True)
class Change:
    """One value before and after, None where there was none; `better` is None where neither way is."""

    name: str
    before: Any
    after: Any
    better: bool | None


@dataclass(frozen=True)
class Changes:
    """All that differs; `note` says whether the mIoU moved by more than its interval."""

    params: tuple[Change, ...]
    metrics: tuple[Change, ...]
    note: str


def changes_between(before: State, after: State) -> Changes:
    """Compare two states, name by name, in the order of the later one."""
    return Changes(
        _differences(before.params, after.params),
        _differences(before.metrics, after.metrics),
        _interval_note(before.metrics, after.metrics),
    )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    names = [*after, *(name for name in before if name not in after)]
    changed = [name for name in names if before.get(name) != after.get(name)]
    return tuple(Change(name, before.get(name), after.get(name), _better(name, before, after)) for name in changed)


def _better(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool | None:
    old, new = before.get(name), after.get(name)
    if not isinstance(old, int | float) or not isinstance(new, int | float) or isinstance(old, bool):
        return None
    if MORE.fullmatch(name):
        return new > old
    return new < old if LESS.fullmatch(name) else None


def _interval_note(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    low, high = before.get("miou_ci_low"), before.get("miou_ci_high")
    new = after.get("miou")
    if low is None or high is None or new is None or before.get("miou") == new:
        return ""
    if low <= new <= high:
        return f"The new mIoU lies within the earlier one's 95 % interval ({low:.3f} to {high:.3f})."
    return f"The new mIoU lies outside the earlier one's 95 % interval ({low:.3f} to {high:.3f})."
