"""The masks that are scored, and how far those of the compiled graph are from ONNX Runtime's."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from promptseg.datasets.records import Prediction, Rle
from promptseg.hubs.base import CompiledGraph, Hub, HubInput, HubOutput
from promptseg.hubs.host import GraphInputs, masks_on_host

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Fidelity:
    """How far the compiled graph's masks are from the source graph's (ONNX Runtime, float32) on `samples` samples.

    All shares are 0..1; `miou_against_source` takes two empty masks for equal.
    """

    runner: str  # what ran the compiled graph: an emulator or a device
    samples: int
    mask_agreement: float  # share of canvas pixels with the same decision, mean over samples
    mask_agreement_min: float  # of the worst sample
    miou_against_source: float

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dictionary for a metrics file."""
        return asdict(self)


def infer(hub: Hub, graph: Path, compiled: Path, inputs: GraphInputs) -> Iterator[Prediction]:
    """Yield the mask of every input, in order, with a progress bar: the device's, or ONNX Runtime's on the host."""
    outputs = masks_on_host(graph, inputs) if hub.emulates else hub.run(graph, compiled, inputs)
    for output in tqdm(outputs, desc="infer", total=len(inputs), unit="phrase"):
        yield Prediction(output.sample_id, Rle.from_mask(output.pred_mask))


def measure_fidelity(hub: Hub, graph: Path, compiled: Path, inputs: GraphInputs) -> Fidelity | None:
    """Compare the compiled graph's masks of `inputs` with ONNX Runtime's; None for no inputs, or where none runs."""
    if not len(inputs) or not CompiledGraph.read(compiled).placed_on_npu:
        return None
    return compare_masks(hub.runner, _pairs(hub, graph, compiled, inputs))


def _pairs(hub: Hub, graph: Path, compiled: Path, inputs: Iterable[HubInput]) -> Iterator[tuple[Mask, Mask]]:
    here, there = tee(inputs)
    outputs: Iterator[HubOutput] = hub.run(graph, compiled, there)
    for got, wanted in zip(outputs, masks_on_host(graph, here), strict=True):
        yield got.pred_mask, wanted.pred_mask


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
