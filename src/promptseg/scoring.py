"""Joins predictions, samples and pictures, and scores them: overall, by size, by phrase kind, beside baselines."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptseg.datasets.preprocess import mask_from_canvas, mask_to_canvas
from promptseg.datasets.records import PHRASE_KINDS, PhraseKind, Picture, Rle, Sample
from promptseg.files import atomic_path
from promptseg.latencies import latency_known_by
from promptseg.metrics import (
    PRECISION_THRESHOLDS,
    SIZE_CLASSES,
    BaselineIous,
    Overlap,
    SizeClass,
    baseline_ious,
    bootstrap_interval,
    cumulative_iou,
    mean_iou,
    overlap,
    precision_at,
    size_class,
)

DECIMALS = 5
BASELINES = tuple(field.name for field in fields(BaselineIous))


@dataclass(frozen=True)
class SampleScore:
    """One phrase, scored; everything at the original picture's size but `iou_canvas`."""

    sample_id: str
    image: str
    phrase: str
    phrase_kind: PhraseKind
    size: SizeClass
    intersection: int
    union: int
    iou: float
    iou_canvas: float
    everything: float
    largest_object: float
    random_object: float


@dataclass(frozen=True)
class GroupScore:
    """mIoU and baselines of some phrases; None where the group has no phrase."""

    name: str
    phrases: int
    miou: float | None
    everything: float | None
    largest_object: float | None
    random_object: float | None


@dataclass(frozen=True)
class Scores:
    """`summary` is metrics/score.json: flat, headline first. `groups`: "all", then size classes, then phrase kinds."""

    summary: dict[str, float | int | None]
    groups: tuple[GroupScore, ...]
    rows: tuple[SampleScore, ...]


def score(samples: Sequence[Sample], pictures: Sequence[Picture], predictions: Mapping[str, Rle], seed: int) -> Scores:
    """Score every prediction against its sample, on the padded canvas and on the original picture.

    `predictions` (sample_id -> mask on the canvas) define what is scored; `phrases_without_prediction` tells how many
    samples of the same splits were left out. `seed` draws the bootstrap of the 95 % interval (over pictures).
    Raises ValueError for no prediction, one of an unknown sample, an empty truth, or an unknown or empty picture.
    """
    chosen = _predicted(samples, predictions)
    objects_of = {picture.image: picture.objects for picture in pictures}
    rows = _score_rows(chosen, objects_of, predictions)
    splits = {sample.split for sample in chosen}
    left_out = sum(sample.split in splits for sample in samples) - len(chosen)
    groups = _group(rows)
    return Scores(_summary(rows, groups, left_out, seed), groups, rows)


def write_rows(path: Path, rows: Iterable[SampleScore]) -> None:
    """Write the table of scored phrases as CSV, one line each, in order."""
    records = [asdict(row) for row in rows]
    _write_csv(path, [field.name for field in fields(SampleScore)], records)


def tradeoff_row(res: int, summary: Mapping[str, Any], latency: Mapping[str, Any]) -> dict[str, Any]:
    """Return one point of latency against mIoU, from the contents of score.json and latency.json.

    `latency_source` says which latency `latency_ms` is, one of `latencies.NAMES`: points of different sources are not
    to be compared. What `latency` lacks is None, an empty cell.
    """
    source, latency_ms = latency_known_by(latency)
    return {
        "res": res,
        "latency_ms": latency_ms,
        "latency_source": source,
        "latency_ms_cpu": (latency.get("host") or {}).get("latency_ms_cpu"),
        **{name: summary[name] for name in ("miou", "miou_small", "miou_medium", "miou_large")},
    }


def write_tradeoff(path: Path, row: Mapping[str, Any]) -> None:
    """Write the point as a CSV of one line, which `dvc plots diff` lays over those of other experiments."""
    _write_csv(path, list(row), [row])


def _predicted(samples: Sequence[Sample], predictions: Mapping[str, Rle]) -> list[Sample]:
    if not predictions:
        raise ValueError("got no predictions, wanted at least one; rerun `dvc repro hub-infer`")
    known = {sample.sample_id for sample in samples}
    if len(known) != len(samples):
        raise ValueError(
            f"got {len(samples)} samples with {len(known)} ids, wanted distinct ids; rerun `dvc repro fetch`"
        )
    unknown = sorted(set(predictions) - known)
    if unknown:
        raise ValueError(
            f"got {len(unknown)} predictions of samples that do not exist, {unknown[0]!r} first; "
            "wanted ids from the samples file; rerun `dvc repro hub-infer`"
        )
    return [sample for sample in samples if sample.sample_id in predictions]


def _score_rows(
    samples: Sequence[Sample], objects_of: Mapping[str, Sequence[Rle]], predictions: Mapping[str, Rle]
) -> tuple[SampleScore, ...]:
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image, []).append(sample)
    scored: dict[str, SampleScore] = {}
    for image, asked in by_image.items():
        if image not in objects_of:
            raise ValueError(
                f"got samples of {image!r}, which the pictures file does not list; rerun `dvc repro fetch`"
            )
        objects = [_decode(rle) for rle in objects_of[image]]  # once per picture, whatever the number of phrases
        for sample in asked:
            scored[sample.sample_id] = _score_row(sample, objects, predictions[sample.sample_id])
    return tuple(scored[sample.sample_id] for sample in samples)


def _score_row(sample: Sample, objects: Sequence[NDArray[np.bool_]], predicted: Rle) -> SampleScore:
    truth, canvas = _decode(sample.mask), _decode(predicted)
    if not truth.any():
        raise ValueError(f"{sample.sample_id}: got an empty mask as truth, wanted a target; rerun `dvc repro fetch`")
    on_picture = overlap(mask_from_canvas(canvas, sample.height, sample.width), truth)
    return SampleScore(
        sample_id=sample.sample_id,
        image=sample.image,
        phrase=sample.phrase,
        phrase_kind=sample.phrase_kind,
        size=size_class(sample.mask.area),
        intersection=on_picture.intersection,
        union=on_picture.union,
        iou=on_picture.iou,
        iou_canvas=overlap(canvas, mask_to_canvas(truth)).iou,
        **asdict(baseline_ious(truth, objects)),
    )


def _decode(rle: Rle) -> NDArray[np.bool_]:
    """Row-major, as the resized masks are: counting over mixed memory orders is several times slower."""
    return np.ascontiguousarray(rle.to_mask())


def _group(rows: Sequence[SampleScore]) -> tuple[GroupScore, ...]:
    members: dict[str, list[SampleScore]] = {"all": list(rows)}
    members |= {size: [row for row in rows if row.size == size] for size in SIZE_CLASSES}
    members |= {kind: [row for row in rows if row.phrase_kind == kind] for kind in PHRASE_KINDS}
    return tuple(
        GroupScore(name, len(group), _mean(group, "iou"), **{each: _mean(group, each) for each in BASELINES})
        for name, group in members.items()
    )


def _mean(rows: Sequence[SampleScore], column: str) -> float | None:
    return round(mean_iou([getattr(row, column) for row in rows]), DECIMALS) if rows else None


def _summary(
    rows: Sequence[SampleScore], groups: Sequence[GroupScore], left_out: int, seed: int
) -> dict[str, float | int | None]:
    ious = [row.iou for row in rows]
    everything, *parts = groups
    miou = mean_iou(ious)
    low, high = bootstrap_interval(ious, [row.image for row in rows], seed)
    baselines = {name: mean_iou([getattr(row, name) for row in rows]) for name in BASELINES}
    best_baseline = max(baselines.values())  # above 0: no truth is empty, so `everything` meets each
    figures: dict[str, float] = {
        "miou": miou,
        "miou_ci_low": low,
        "miou_ci_high": high,
        "miou_canvas": mean_iou([row.iou_canvas for row in rows]),
        "ciou": cumulative_iou([Overlap(row.intersection, row.union) for row in rows]),
        **{f"p_at_{round(100 * limit)}": precision_at(ious, limit) for limit in PRECISION_THRESHOLDS},
        "miou_over_best_baseline": miou / best_baseline,
        "miou_best_baseline": best_baseline,
        **{f"baseline_{name}": value for name, value in baselines.items()},
    }
    return {
        **{name: round(value, DECIMALS) for name, value in figures.items()},
        **{f"miou_{part.name}": part.miou for part in parts},
        "phrases": everything.phrases,
        **{f"phrases_{part.name}": part.phrases for part in parts},
        "phrases_without_prediction": left_out,
        "pictures": len({row.image for row in rows}),
    }


def _write_csv(path: Path, columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow(
                {key: round(value, DECIMALS) if isinstance(value, float) else value for key, value in record.items()}
            )
