"""How far a compiled graph's masks are from the source graph's."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from promptseg.hubs.base import Fidelity

Mask = NDArray[np.bool_]


def compare_masks(runner: str, pairs: Iterable[tuple[Mask, Mask]]) -> Fidelity:
    """Compare pairs of (compiled graph's, source graph's) masks, bool [CANVAS, CANVAS], as they come.

    `runner` says what ran the compiled graph. Raises ValueError when there is no pair.
    """
    agreements, ious = [], []
    for got, wanted in pairs:
        agreements.append(float(np.mean(got == wanted)))
        ious.append(_iou(got, wanted))
    if not agreements:
        raise ValueError("got no samples, wanted at least one to compare compiled and source graph on")
    return Fidelity(
        runner=runner,
        samples=len(agreements),
        mask_agreement=float(np.mean(agreements)),
        mask_agreement_min=min(agreements),
        miou_against_source=float(np.mean(ious)),
    )


def _iou(first: Mask, second: Mask) -> float:
    union = int(np.logical_or(first, second).sum())
    return float(np.logical_and(first, second).sum() / union) if union else 1.0
