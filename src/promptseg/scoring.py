"""Joins predictions, samples and pictures, and scores them: overall, by size, by phrase kind, beside baselines.

It also says which latency a run is known by: a device's clock, an estimate or this host's; no two are ever compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from promptseg.datasets.preprocess import mask_from_canvas, mask_to_canvas
from promptseg.datasets.records import PHRASE_KINDS, Picture, Rle, Sample
from promptseg.metrics import (
    PRECISION_THRESHOLDS,
    SIZE_CLASSES,
    BaselineIous,
    Overlap,
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
GROUPS = ("all", *SIZE_CLASSES, *PHRASE_KINDS)

# Artefact -> what its own record must say of it, for its figures to be filed under these params.
GRAPH = ("model", "res", "device", "precision", "graph_sha256")
RECORDED = {
    "checkpoint": ("model",),
    "export": ("res",),
    "compiled": GRAPH,
    "latency": GRAPH,
    "fidelity": (*GRAPH, "predictions_sha256"),
}

DEVICE, ESTIMATED, SIMULATED, CPU = "device", "estimated", "simulated", "cpu"
# kind of latency -> its name in a flat latency.json; the first that a run has is the one it is known by
NAMES = {
    DEVICE: "latency_ms_device",
    ESTIMATED: "latency_ms_estimated",
    SIMULATED: "latency_ms_simulated",  # of a precision that has no line to estimate by, such as mixed
    CPU: "host.latency_ms_cpu",
}
SPELLED = {
    DEVICE: "NPU, measured",
    ESTIMATED: "NPU, estimated",
    SIMULATED: "NPU, simulated",
    CPU: "this host's CPU",
}


@dataclass(frozen=True)
class Scores:
    """Everything that is known of the predictions of one run.

    `summary` is metrics/score.json: flat, headline first. `rows` has a line for each phrase: sample_id, image, phrase,
    phrase_kind, size, intersection, union, iou, iou_canvas and the IoU of each of BASELINES; all at the original
    picture's size but `iou_canvas`. `groups` has a line for each of GROUPS: phrases, miou and the mean of each
    baseline, NaN where the group has no phrase.
    """

    summary: dict[str, float | int | None]
    groups: pd.DataFrame
    rows: pd.DataFrame


def score(samples: Sequence[Sample], pictures: Sequence[Picture], predictions: Mapping[str, Rle], seed: int) -> Scores:
    """Score every prediction against its sample, on the padded canvas and on the original picture.

    `predictions` (sample_id -> mask on the canvas) define what is scored; `phrases_without_prediction` tells how many
    samples of the same splits were left out. `seed` draws the bootstrap of the 95 % interval (over pictures).
    Raises ValueError for no prediction, one of an unknown sample, an empty truth, or an unknown or empty picture.
    """
    chosen = _predicted(samples, predictions)
    objects_of = {picture.image: picture.objects for picture in pictures}
    scored = pd.DataFrame(_score_rows(chosen, objects_of, predictions)).set_index("sample_id", drop=False)
    rows = scored.loc[[sample.sample_id for sample in chosen]].reset_index(drop=True)
    splits = {sample.split for sample in chosen}
    left_out = sum(sample.split in splits and sample.means_something for sample in samples) - len(chosen)
    groups = _group(rows)
    return Scores(_summary(rows, groups, left_out, seed), groups, rows)


def latency_known_by(latency: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Return the kind and the milliseconds that a run is known by, from the contents of its latency.json.

    A device's clock counts before an estimate, that before a simulation, and that before the host's CPU; (None, None)
    where there is none.
    """
    host = latency.get("host") or {}
    for kind, name in NAMES.items():
        value = host.get("latency_ms_cpu") if kind == CPU else latency.get(name)
        if value is not None:
            return kind, value
    return None, None


def tradeoff_table(
    res: int, summary: Mapping[str, Any], latency: Mapping[str, Any], fidelity: Mapping[str, Any]
) -> pd.DataFrame:
    """Return one point of latency against mIoU, a table of one line, from the contents of the metrics files.

    `dvc plots diff` lays it over those of other experiments. `latency_source` says which latency `latency_ms` is, one
    of NAMES: points of different sources are not to be compared, and neither is a latency on the NPU where no masks of
    the binary were compared with the scored ones, which is a source of its own. What `latency` lacks is None, an empty
    cell.
    """
    source, latency_ms = latency_known_by(latency)
    if source in (DEVICE, ESTIMATED, SIMULATED) and (fidelity.get("binary") or {}).get("iou_mean") is None:
        source = f"{source}, masks not compared"
    point = {
        "res": res,
        "latency_ms": latency_ms,
        "latency_source": source,
        "latency_ms_cpu": (latency.get("host") or {}).get("latency_ms_cpu"),
        **{name: summary[name] for name in ("miou", "miou_small", "miou_medium", "miou_large")},
    }
    return pd.DataFrame([point])


def with_fidelity(summary: Mapping[str, Any], fidelity: Mapping[str, Any]) -> dict[str, Any]:
    """Return score.json: mIoU with its interval, what made the masks, how far the binary's are from them, and the rest.

    `fidelity` is the content of fidelity.json; where the binary was not run, its figures are None.
    """
    binary = fidelity.get("binary") or {}
    figures = ("samples", "iou_mean", "iou_worst", "miou_change", "miou_change_low", "miou_change_high")
    head = {name: summary[name] for name in ("miou", "miou_ci_low", "miou_ci_high")}
    beside = {"scored_by": fidelity.get("scored_by"), "precision": fidelity.get("precision")}
    return head | beside | {f"binary_{name}": binary.get(name) for name in figures} | dict(summary)


def check_records(filed_under: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Hold what artefacts say of themselves, see RECORDED, against what they are about to be filed under.

    `filed_under` has every name of RECORDED; `records`: what an artefact is called there -> its record. Raises
    ValueError that lists every record that differs or says nothing, with what it got and what it wants.
    """
    mistakes = [
        f"{artefact}: got {name} {records[artefact].get(name)!r}, wanted {filed_under[name]!r}"
        for artefact, names in RECORDED.items()
        for name in names
        if records[artefact].get(name) != filed_under[name]
    ]
    if mistakes:
        raise ValueError(f"{'; '.join(mistakes)}: made with other settings than it is filed under; run `dvc repro`")


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
) -> Iterator[dict[str, Any]]:
    """Yield a row for each sample, picture by picture: the objects of each are decoded once."""
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image, []).append(sample)
    for image, asked in by_image.items():
        if image not in objects_of:
            raise ValueError(f"got samples of {image!r}, which the objects file does not list; rerun `dvc repro fetch`")
        objects = [_decode(rle) for rle in objects_of[image]]
        for sample in asked:
            yield _score_row(sample, objects, predictions[sample.sample_id])


def _score_row(sample: Sample, objects: Sequence[NDArray[np.bool_]], predicted: Rle) -> dict[str, Any]:
    truth, canvas = _decode(sample.mask), _decode(predicted)
    if not truth.any():
        raise ValueError(f"{sample.sample_id}: got an empty mask as truth, wanted a target; rerun `dvc repro fetch`")
    on_picture = overlap(mask_from_canvas(canvas, sample.height, sample.width), truth)
    return {
        "sample_id": sample.sample_id,
        "image": sample.image,
        "phrase": sample.phrase,
        "phrase_kind": sample.phrase_kind,
        "size": size_class(sample.mask.area),
        "intersection": on_picture.intersection,
        "union": on_picture.union,
        "iou": on_picture.iou,
        "iou_canvas": overlap(canvas, mask_to_canvas(truth)).iou,
        **asdict(baseline_ious(truth, objects)),
    }


def _decode(rle: Rle) -> NDArray[np.bool_]:
    """Row-major, as the resized masks are: counting over mixed memory orders is several times slower."""
    return np.ascontiguousarray(rle.to_mask())


def _group(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each of GROUPS; a phrase counts in three: all, its size and its kind."""
    names = ("all", rows["size"], rows["phrase_kind"])
    grouped = pd.concat([rows.assign(group=name) for name in names]).groupby("group")
    means = grouped[["iou", *BASELINES]].mean().reindex(GROUPS).rename(columns={"iou": "miou"})
    means.insert(0, "phrases", grouped.size().reindex(GROUPS, fill_value=0))
    return means


def _summary(rows: pd.DataFrame, groups: pd.DataFrame, left_out: int, seed: int) -> dict[str, float | int | None]:
    ious = list(rows["iou"])
    miou = mean_iou(ious)
    low, high = bootstrap_interval(ious, list(rows["image"]), seed)
    baselines = {name: mean_iou(list(rows[name])) for name in BASELINES}
    best_baseline = max(baselines.values())  # above 0: no truth is empty, so `everything` meets each
    figures: dict[str, float] = {
        "miou": miou,
        "miou_ci_low": low,
        "miou_ci_high": high,
        "miou_canvas": mean_iou(list(rows["iou_canvas"])),
        "ciou": cumulative_iou([Overlap(*pair) for pair in zip(rows["intersection"], rows["union"], strict=True)]),
        **{f"p_at_{round(100 * limit)}": precision_at(ious, limit) for limit in PRECISION_THRESHOLDS},
        "miou_over_best_baseline": miou / best_baseline,
        "miou_best_baseline": best_baseline,
        **{f"baseline_{name}": value for name, value in baselines.items()},
    }
    parts = groups.drop(index="all")
    mious = {name: None if np.isnan(miou) else round(miou, DECIMALS) for name, miou in parts["miou"].items()}
    return {
        **{name: round(float(value), DECIMALS) for name, value in figures.items()},
        **{f"miou_{name}": miou for name, miou in mious.items()},
        "phrases": len(rows),
        **{f"phrases_{name}": int(count) for name, count in parts["phrases"].items()},
        "phrases_without_prediction": left_out,
        "pictures": rows["image"].nunique(),
    }
