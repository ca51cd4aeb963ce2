"""What DVC has recorded: its experiments as points, and what changed between two states of the project."""

import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptseg.experiments.points import Point

# Points are comparable when all of these are equal: the same questions, asked of the same kind of machine.
SAME = ("data", "hub.split", "phrases", "hub.device")
SOURCES = ("latency_ms_device", "latency_ms_estimated", "host.latency_ms_cpu")


@dataclass(frozen=True)
class Comparable:
    """Points that answer the same questions; `left_out` experiments answered others, or have no figures (yet)."""

    points: list[Point]
    same: dict[str, Any]
    left_out: int


def read_experiments(root: Path) -> list[dict[str, Any]]:
    """Return DVC's table of experiments, the workspace and the current commit first, a dictionary a row."""
    import dvc.api  # a quarter of a second, and only these functions need it

    rows: list[dict[str, Any]] = dvc.api.exp_show(repo=str(root))
    return rows


def comparable_points(rows: Sequence[Mapping[str, Any]], source: str | None = None) -> Comparable:
    """Return the points of the largest group of experiments that can be compared with each other.

    `source` is one of SOURCES, or None: a device's clock where every point has one, else the estimate. An experiment
    that shows the same figures under several names (the workspace, a commit, an applied experiment) counts once, under
    its own name. Raises ValueError when there is none.
    """
    scored = [row for row in rows if _figure(row, "miou") is not None]
    if not scored:
        raise ValueError("got no experiment with metrics, wanted at least one; run `dvc repro`, or `dvc queue start`")
    keys = [tuple(_cell(row, name) for name in SAME) for row in scored]
    chosen = Counter(keys).most_common(1)[0][0]
    alike = [row for row, key in zip(scored, keys, strict=True) if key == chosen]
    source = source or next(
        (name for name in SOURCES if all(_figure(row, name) is not None for row in alike)), SOURCES[1]
    )
    timed = [row for row in alike if _figure(row, source) is not None]
    if not timed:
        raise ValueError(f"got no experiment with {source}, wanted at least one; try another --latency")
    unique: dict[tuple[float, ...], Point] = {}
    for row in sorted(timed, key=lambda row: row.get("Experiment") is None):
        point = _point(row, source)
        unique.setdefault((point.res, point.miou, point.latency_ms, point.latency_ms_cpu or 0.0), point)
    points = sorted(unique.values(), key=lambda point: point.latency_ms)
    return Comparable(points, dict(zip(SAME, chosen, strict=True)), len(rows) - len(timed))


def _point(row: Mapping[str, Any], source: str) -> Point:
    names = ("miou", "miou_ci_low", "miou_ci_high", source)
    figures = {name: value for name in names if (value := _figure(row, name)) is not None}
    return Point(
        name=str(row.get("Experiment") or row.get("rev")),
        can_be_applied=row.get("Experiment") is not None,
        res=int(_figure(row, "params.yaml:res") or _figure(row, "res") or 0),
        miou=figures["miou"],
        miou_low=figures["miou_ci_low"],
        miou_high=figures["miou_ci_high"],
        latency_ms=figures[source],
        latency_ms_low=_figure(row, f"{source}_low"),
        latency_ms_high=_figure(row, f"{source}_high"),
        latency_source=source.rpartition("_")[2],
        latency_ms_cpu=_figure(row, "host.latency_ms_cpu"),
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
