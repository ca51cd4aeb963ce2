"""What DVC has recorded: its experiments as points of latency against mIoU, and which of them to take.

A table of points has a line for each experiment and the columns of POINT. Latencies are in ms, with the bounds that
their source gives, NaN where there are none; `latency_source` is the kind of latency, one of `scoring.NAMES`.
`can_be_applied` is False for the workspace and for commits, which are no experiments.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from promptseg.metrics import FLOATS, binary_floors
from promptseg.scoring import CPU, DEVICE, ESTIMATED, NAMES, SIMULATED

POINT = (
    *("name", "can_be_applied", "res", "precision", "miou", "miou_low", "miou_high"),
    *("latency_ms", "latency_ms_low", "latency_ms_high", "latency_source", "latency_ms_cpu"),
)
# Points are comparable when all of these are equal: the same questions, asked of the same kind of machine.
SAME = ("data", "hub.split", "phrases", "hub.device")
SAMPLES = "samples.jsonl"  # a dependency whose digest DVC shows: a data set may have other phrases, and as many
ENDS = ("", "_low", "_high")
QUALITY = ("miou", "miou_ci_low", "miou_ci_high")
FIDELITY = ("non_finite", *(f"{part}.{iou}" for part in ("binary", "float32") for iou in ("iou_mean", "iou_worst")))
NOT_RUN = ("Queued", "Running")  # DVC shows such rows with the figures of the commit that they start from
EMPTY = ("", "None", "-", "!")  # how DVC writes a cell without a value


@dataclass(frozen=True)
class Floors:
    """Params `hub.min_fidelity_*`: IoU between a binary's masks and the scored ones below which a run is broken.

    With 0 and 0 no comparison of masks is asked for.
    """

    mean: float
    worst: float


@dataclass(frozen=True)
class Comparable:
    """Points that answer the same questions, by one kind of latency, the fastest first.

    `same` holds what is equal in all of them. `other_kinds` counts the rows that answer them too, and have the NPU's
    latency of another kind only. `broken` says of each row that is left out as not to be trusted why. `left_out` rows
    answered other questions, or have no figures (yet).
    """

    points: pd.DataFrame
    same: dict[str, Any]
    other_kinds: dict[str, int]
    broken: dict[str, str]
    left_out: int


def read_experiments(root: Path) -> pd.DataFrame:
    """Return DVC's table of experiments, the workspace and the current commit first.

    Raises ValueError, in one line, where DVC cannot list them: no DVC project, no git repository, a lock that is held.
    """
    import dvc.api  # a quarter of a second, and only this function needs it
    from dvc.exceptions import DvcException

    try:
        return pd.DataFrame(dvc.api.exp_show(repo=str(root)))
    except DvcException as error:
        raise ValueError(f"{root}: DVC cannot list experiments: {' '.join(str(error).split())}") from error


def read_revision(root: Path, revision: str, names: Iterable[str], folder: Path) -> None:
    """Write files or folders of a git revision, or of the experiment of that name, to the same places below `folder`.

    What DVC tracks comes from its cache, or else its remote. Raises LookupError where there is no such revision, and
    ValueError where a file is in neither, or DVC cannot read the project.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    try:
        files = DVCFileSystem(str(root), rev=revision)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if files.isdir(name):
                files.get(name, str(folder / name), recursive=True)
            else:
                files.get_file(name, str(folder / name))
    except RevError as error:
        raise LookupError(revision) from error
    except FileNotFoundError as error:
        remedy = "`dvc pull`, or `dvc exp pull`, brings it; `dvc exp apply` and `dvc repro` make it again"
        raise ValueError(f"{revision}: got no {name} in DVC's cache, nor in a remote; {remedy}") from error
    except DvcException as error:
        raise ValueError(f"{root}: DVC cannot read {revision}: {' '.join(str(error).split())}") from error


def comparable_points(rows: pd.DataFrame, floors: Floors, source: str | None = None) -> Comparable:
    """Return the points of the largest group of experiments that can be compared with each other.

    `source` is a kind of latency, or None: the NPU's that most of them have, a device's clock where as many have an
    estimate, a simulation where more have one than an estimate, the host's where none has any. An experiment that shows
    the same figures under several names (the workspace, a commit, an applied experiment) counts once, under its own
    name. Runs whose figures cannot be trusted (see `_why_broken`) are left out. Raises ValueError when no run is left.
    """
    figures = _figures(rows)
    scored = figures[figures["miou"].notna() & ~figures["state"].isin(NOT_RUN)]
    if scored.empty:
        raise ValueError("got no experiment with metrics, wanted at least one; run `dvc repro`, or `dvc queue start`")
    reasons = scored.apply(_why_broken, axis=1, args=(floors, source != CPU))
    sound = scored[reasons == ""]
    broken = {name: reason for name, reason in zip(scored["name"], reasons, strict=True) if reason}
    if sound.empty:
        name, reason = next(iter(broken.items()))
        raise ValueError(f"got {len(broken)} experiments, all of them broken, wanted a sound one; {name}: {reason}")
    group = sound.groupby([*SAME, SAMPLES], dropna=False, sort=False).ngroup()
    alike = sound[group == group.value_counts(sort=False).idxmax()]
    points = {kind: _points(alike, kind) for kind in NAMES}
    if source is None:
        npu = max((DEVICE, ESTIMATED, SIMULATED), key=lambda kind: len(points[kind]))
        source = npu if len(points[npu]) else CPU
    if points[source].empty:
        raise ValueError(f"got no experiment with {NAMES[source]}, wanted at least one; try another --latency")
    timed = alike[NAMES[source]].notna()
    others = {kind: int((alike[NAMES[kind]].notna() & ~timed).sum()) for kind in (DEVICE, ESTIMATED, SIMULATED)}
    others = {kind: count for kind, count in others.items() if count}
    left_out = len(rows) - (len(scored) - len(sound)) - int(timed.sum()) - sum(others.values())
    return Comparable(points[source], alike.iloc[0][list(SAME)].to_dict(), others, broken, left_out)


def pareto_front(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points that no other beats: none is as fast or faster with a higher mIoU, or as good and faster.

    From the fastest to the slowest. Of equal points the first is kept.
    """
    ranked = points.sort_values(["latency_ms", "miou"], ascending=[True, False], kind="stable")
    best_so_far = ranked["miou"].cummax().shift(fill_value=-np.inf)
    return ranked[ranked["miou"] > best_so_far]


def fastest_above(points: pd.DataFrame, miou: float) -> Any:
    """Return the fastest point whose mIoU is at least `miou`, as a named tuple.

    Raises ValueError, with the best there is, if none is.
    """
    good = points[points["miou"] >= miou]
    if good.empty:
        best = points.loc[points["miou"].idxmax()]
        raise ValueError(
            f"got no experiment with mIoU {miou} or more, the best is {best['name']} with {best['miou']:.3f}"
        )
    return _first(good.sort_values(["latency_ms", "miou"], ascending=[True, False]))


def best_under(points: pd.DataFrame, ms: float) -> Any:
    """Return the point of highest mIoU of at most `ms` milliseconds, as a named tuple.

    Raises ValueError, with the fastest, if there is none.
    """
    quick = points[points["latency_ms"] <= ms]
    if quick.empty:
        first = points.loc[points["latency_ms"].idxmin()]
        raise ValueError(
            f"got no experiment of {ms} ms or less, the fastest is {first['name']} with {first['latency_ms']:.2f}"
        )
    return _first(quick.sort_values(["miou", "latency_ms"], ascending=[False, True]))


def _first(points: pd.DataFrame) -> Any:
    return next(points.itertuples(index=False))


def _figures(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what is compared of each row; a latency is NaN where the row has none of that name."""
    experiment = _column(rows, "Experiment")
    recorded = [
        _numbers(rows, name) for name in rows if str(name).startswith("metrics/") and str(name).endswith(":res")
    ]
    names = (*QUALITY, *FIDELITY, *(name + end for name in NAMES.values() for end in ENDS))
    return pd.DataFrame(
        {
            "name": experiment.fillna(_column(rows, "rev")).astype(str),
            "can_be_applied": experiment.notna(),
            "res": _numbers(rows, "params.yaml:res").fillna(_numbers(rows, "res")).fillna(0).astype(int),
            "precision": _column(rows, "precision").fillna(_column(rows, "export.precision")).fillna(FLOATS[0]),
            "state": _column(rows, "State"),
            "recorded_res": recorded[0] if recorded else np.nan,
            **{name: _column(rows, name) for name in SAME},
            SAMPLES: _column(rows, next((name for name in rows if name.endswith(f"/{SAMPLES}")), SAMPLES)),
            **{name: _numbers(rows, name) for name in names},
        }
    )


def _why_broken(row: Any, floors: Floors, by_npu: bool) -> str:
    """Say why a scored run cannot be trusted; nothing where it can.

    The binary counts where latencies on the NPU are to be compared (`by_npu`) and the run has one: without, the host
    ran the scored graph itself.
    """
    if row["state"] == "Failed":
        return "it failed, and what DVC shows of it are the figures of the commit that it started from"
    if pd.notna(row["recorded_res"]) and row["recorded_res"] != row["res"]:
        return f"its figures were made at {row['recorded_res']:.0f} px, and it is filed under {row['res']}"
    if not np.isfinite(row[list(QUALITY)].astype(float)).all():
        return "its mIoU or the interval of it is missing or not finite"
    if row["non_finite"] > 0:
        return f"{row['non_finite']:.0f} of its masks hold values that are no numbers"
    # Of integers it is what is asked; of its worst phrase nothing is asked: see hubs.fidelity.
    if row["precision"] in FLOATS and row["float32.iou_mean"] < floors.mean:
        return f"rounding changes masks: {_ious(row, 'float32')}"
    on_npu = row[[NAMES[DEVICE], NAMES[ESTIMATED], NAMES[SIMULATED]]].astype(float)
    if not by_npu or on_npu.isna().all():
        return ""
    if np.isinf(on_npu).any():
        return "its latency is not finite"
    if max(floors.mean, floors.worst) > 0 and pd.isna(row["binary.iou_mean"]):
        return "nothing says that the binary gives the scored masks (no IoU between them was recorded)"
    mean, worst = binary_floors(row["precision"], row["float32.iou_mean"], floors.mean, floors.worst)
    if row["binary.iou_mean"] < mean or row["binary.iou_worst"] < worst:
        return f"the binary's masks are not the scored ones: {_ious(row, 'binary')}"
    return ""


def _ious(row: Any, part: str) -> str:
    return f"IoU {row[f'{part}.iou_mean']:.3f} on average, {row[f'{part}.iou_worst']:.3f} at worst"


def _points(figures: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return the points of the rows that have this latency, each once, the fastest first."""
    name = NAMES[source]
    timed = figures[figures[name].notna()].sort_values("can_be_applied", ascending=False, kind="stable")
    once = timed.drop_duplicates(["res", "precision", "miou", name, NAMES[CPU]]).sort_values(name, kind="stable")
    points = pd.DataFrame(
        {
            **{column: once[column] for column in ("name", "can_be_applied", "res", "precision", "miou")},
            "miou_low": once["miou_ci_low"],
            "miou_high": once["miou_ci_high"],
            **{f"latency_ms{end}": once[name + end] for end in ENDS},
            "latency_source": source,
            "latency_ms_cpu": once[NAMES[CPU]],
        },
        columns=POINT,
    )
    return points.reset_index(drop=True)


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    """Return a column of DVC's, which puts the file before a name that several files have; empty cells are None."""
    named = [column for column in rows if column == name or column.endswith(f":{name}")]
    cells = rows[named].astype(object)
    return cells.where(~cells.isin(EMPTY) & cells.notna()).bfill(axis=1).reindex(columns=named[:1] or [name]).iloc[:, 0]


def _numbers(rows: pd.DataFrame, name: str) -> pd.Series:
    return pd.to_numeric(_column(rows, name), errors="coerce").astype(float)
