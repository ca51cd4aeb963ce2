"""How good a mask is, from counts of pixels: IoU, mIoU, cIoU, P@k, trivial baselines. NumPy only, no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-6  # the challenge's guard against an empty union
PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)

SizeClass = Literal["small", "medium", "large"]
SIZE_CLASSES: tuple[SizeClass, ...] = get_args(SizeClass)
SMALL_BELOW_PIXELS = 32**2  # COCO's limits, in pixels of the original picture (cocodataset.org/#detection-eval)
LARGE_FROM_PIXELS = 96**2

FLOATS = ("fp16", "fp32")  # precisions that rounding alone tells from float32

BOOTSTRAP_RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Overlap:
    """Pixels in the intersection and in the union of a prediction and the truth."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """I / (U + 1e-6), the challenge's formula, in [0, 1).

        Two empty masks have an IoU of 0, not 1: the formula says so, and a sample with an empty truth asks for nothing.
        """
        return self.intersection / (self.union + EPSILON)


@dataclass(frozen=True)
class BaselineIous:
    """What answers that never read the phrase reach on one sample, in [0, 1)."""

    everything: float
    largest_object: float
    random_object: float


def overlap(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Overlap:
    """Count pixels of two bool masks [height, width]. Raises ValueError on other types or unequal shapes."""
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise ValueError(
                f"got a {name} of {mask.dtype} {mask.shape}, wanted bool [h, w]; threshold it first (> 0.5)"
            )
    if prediction.shape != truth.shape:
        raise ValueError(f"got a prediction of {prediction.shape} for a truth of {truth.shape}, wanted equal shapes")
    intersection = int(np.count_nonzero(prediction & truth))
    return Overlap(intersection, int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth)) - intersection)


def mean_iou(ious: Sequence[float]) -> float:
    """Plain mean over phrases. Raises ValueError when there are none."""
    if not len(ious):
        raise ValueError("got no IoU to average, wanted at least one; a mean of nothing is not 0")
    return float(np.mean(ious))


def cumulative_iou(overlaps: Sequence[Overlap]) -> float:
    """Sum of intersections / (sum of unions + 1e-6): cIoU (also oIoU), in which large masks weigh more."""
    return Overlap(sum(each.intersection for each in overlaps), sum(each.union for each in overlaps)).iou


def precision_at(ious: Sequence[float], threshold: float) -> float:
    """Share of phrases whose IoU is `threshold` or more: P@threshold. Raises ValueError when there are none."""
    return mean_iou([float(iou >= threshold) for iou in ious])


def size_class(area_pixels: int) -> SizeClass:
    """COCO's classes of a target's area at the original picture's size: below 32x32, below 96x96, the rest."""
    if area_pixels < SMALL_BELOW_PIXELS:
        return "small"
    return "medium" if area_pixels < LARGE_FROM_PIXELS else "large"


def baseline_ious(truth: NDArray[np.bool_], objects: Sequence[NDArray[np.bool_]]) -> BaselineIous:
    """Score three answers that ignore the phrase, for one bool truth [h, w] and all the picture's objects alike.

    Everything: each pixel is inside. Largest object: the one with most pixels (the first, among equals). Random object:
    the exact expectation over a uniform choice, which is the mean over the objects; no dice are thrown.
    Raises ValueError when there are no objects.
    """
    if not objects:
        raise ValueError(
            "got a picture without objects, wanted at least the target among them; rerun `dvc repro fetch`"
        )
    ious = [overlap(each, truth).iou for each in objects]
    largest = int(np.argmax([np.count_nonzero(each) for each in objects]))
    return BaselineIous(
        everything=overlap(np.ones_like(truth), truth).iou,
        largest_object=ious[largest],
        random_object=mean_iou(ious),
    )


def binary_floors(precision: str, float32_iou: float | None, mean: float, worst: float) -> tuple[float, float]:
    """Return the least IoU between the binary's masks and the scored ones, on average and of the worst sample.

    mean, worst: `hub.min_fidelity_mean` and `_worst`, which are those of a float precision. Integers are rounded at
    every tensor, by the NPU otherwise than by the host, and the masks of both are about as far from float's as from
    each other. So their mean may be `1 - mean` below `float32_iou`, the mean IoU of the scored masks with float's, and
    of the worst sample nothing is asked: a wrong operation shows in the mean (0.28 below, in one that was).
    """
    if precision in FLOATS or float32_iou is None or np.isnan(float32_iou):
        return mean, worst
    return (max(0.0, float32_iou - (1 - mean)) if mean > 0 else 0.0), 0.0


def bootstrap_interval(values: Sequence[float], groups: Sequence[str], seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values`, drawing whole `groups` with replacement.

    Phrases about one picture rise and fall together, so pictures are drawn, not phrases: otherwise the interval is too
    narrow. With a single group both ends equal the mean. Sources: Efron & Tibshirani 1993, chapter 13 (percentiles);
    Field & Welsh 2007 (clusters). Raises ValueError when the lengths differ or there are no values.
    """
    if len(values) != len(groups) or not len(values):
        raise ValueError(
            f"got {len(values)} values in {len(groups)} groups, wanted one group for each of 1 or more values"
        )
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group_of, weights=np.asarray(values, float))
    counts = np.bincount(group_of)
    drawn = np.random.default_rng(seed).integers(0, len(names), size=(BOOTSTRAP_RESAMPLES, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
