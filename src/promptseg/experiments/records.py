"""What DVC has recorded: its experiments as points, and what changed between two states of the project."""

import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptseg.experiments.points import Point
from promptseg.latencies import CPU, DEVICE, ESTIMATED, NAMES

# Points are comparable when all of these are equal: the same questions, asked of the same kind of machine.
SAME = ("data", "hub.split", "phrases", "hub.device")


@dataclass(frozen=True)
class Comparable:
    """Points that answer the same questions, by one kind of latency.

    `other_kinds` counts the rows that answer them too, and have the NPU's latency of another kind only; `left_out` rows
    answered other questions, or have no figures (yet).
    """

    points: list[Point]
    same: dict[str, Any]
    other_kinds: dict[str, int]
    left_out: int


def read_experiments(root: Path) -> list[dict[str, Any]]:
    """Return DVC's table of experiments, the workspace and the current commit first, a dictionary a row."""
    import dvc.api  # a quarter of a second, and only these functions need it

    rows: list[dict[str, Any]] = dvc.api.exp_show(repo=str(root))
    return rows


def comparable_points(rows: Sequence[Mapping[str, Any]], source: str | None = None) -> Comparable:
    """Return the points of the largest group of experiments that can be compared with each other.

    `source` is a kind of latency, or None: the NPU's that most of them have, a device's clock where as many have an
    estimate, the host's where none has either. An experiment that shows the same figures under several names (the
    workspace, a commit, an applied experiment) counts once, under its own name. Raises ValueError when there is none.
    """
    scored = [row for row in rows if _figure(row, "miou") is not None]
    if not scored:
        raise ValueError("got no experiment with metrics, wanted at least one; run `dvc repro`, or `dvc queue start`")
    keys = [tuple(_cell(row, name) for name in SAME) for row in scored]
    chosen = Counter(keys).most_common(1)[0][0]
    alike = [row for row, key in zip(scored, keys, strict=True) if key == chosen]
    points = {kind: _points(alike, kind) for kind in NAMES}
    source = source or (CPU if not points[DEVICE] + points[ESTIMATED] else _most(points, DEVICE, ESTIMATED))
    if not points[source]:
        raise ValueError(f"got no experiment with {NAMES[source]}, wanted at least one; try another --latency")
    timed = [row for row in alike if _figure(row, NAMES[source]) is not None]
    untimed = [row for row in alike if _figure(row, NAMES[source]) is None]
    others = {kind: sum(_figure(row, NAMES[kind]) is not None for row in untimed) for kind in (DEVICE, ESTIMATED)}
    others = {kind: count for kind, count in others.items() if count}
    left_out = len(rows) - len(timed) - sum(others.values())
    return Comparable(points[source], dict(zip(SAME, chosen, strict=True)), others, left_out)


def _most(points: Mapping[str, Sequence[Point]], *kinds: str) -> str:
    return max(kinds, key=lambda kind: len(points[kind]))


def _points(rows: Sequence[Mapping[str, Any]], source: str) -> list[Point]:
    """Return the points of the rows that have this latency, each once, the fastest first."""
    unique: dict[tuple[float, ...], Point] = {}
    timed = [row for row in rows if _figure(row, NAMES[source]) is not None]
    for row in sorted(timed, key=lambda row: row.get("Experiment") is None):
        point = _point(row, source)
        unique.setdefault((point.res, point.miou, point.latency_ms, point.latency_ms_cpu or 0.0), point)
    return sorted(unique.values(), key=lambda point: point.latency_ms)


def _point(row: Mapping[str, Any], source: str) -> Point:
    name = NAMES[source]
    names = ("miou", "miou_ci_low", "miou_ci_high", name)
    figures = {each: value for each in names if (value := _figure(row, each)) is not None}
    return Point(
        name=str(row.get("Experiment") or row.get("rev")),
        can_be_applied=row.get("Experiment") is not None,
        res=int(_figure(row, "params.yaml:res") or _figure(row, "res") or 0),
        miou=figures["miou"],
        miou_low=figures["miou_ci_low"],
        miou_high=figures["miou_ci_high"],
        latency_ms=figures[name],
        latency_ms_low=_figure(row, f"{name}_low"),
        latency_ms_high=_figure(row, f"{name}_high"),
        latency_source=source,
        latency_ms_cpu=_figure(row, NAMES[CPU]),
    )


def _cell(row: Mapping[str, Any], name: str) -> Any:
    """DVC puts the file before a name that several files have; an empty cell is None, NaN, or a mark such as "!"."""
    value = row.get(name)
    if value is None:
        value = next((row[key] for key in row if key.endswith(f":{name}")), None)
    return None if value in ("", "None", "-", "!") or value != value else value


def _figure(row: Mapping[str, Any], name: str) -> float | None:
    value = _cell(row, name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class State:
    """Params and metrics of a revision (None: the workspace) as flat names."""

    revision: str | None
    params: dict[str, Any]
    metrics: dict[str, Any]


def read_state(root: Path, revision: str | None) -> State:
    """Read a state through DVC's own API. Raises ValueError when the revision does not exist or has no metrics."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        params = dvc.api.params_show(repo=str(root), rev=revision)
        metrics = dvc.api.metrics_show(repo=str(root), rev=revision)
    except DvcException as error:
        raise ValueError(
            f"{revision or 'workspace'}: DVC knows no metrics of it ({error}); name another commit"
        ) from error
    return State(revision, _flat(params), _flat(metrics))


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def commit_of(root: Path, revision: str) -> str:
    """Return a commit's full id. Raises ValueError when git knows no such commit."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"got {revision!r}, which git knows no commit of; name a commit, a branch or a tag")
    return done.stdout.strip()
