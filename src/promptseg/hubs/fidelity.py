"""The masks that are scored, held to those of the binary that is timed, and to the exported graph in float32.

Scored are the masks of the device, or, where it is emulated, ONNX Runtime's in the arithmetic of the binary's
precision. A few samples, spread over the split and the kinds of phrase, are run by the emulator too. What differs more
than the params allow, or is no number, ends the run: a broken graph gets no score.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from promptseg.datasets.preprocess import mask_from_canvas
from promptseg.datasets.records import Prediction, Rle, Sample, write_predictions
from promptseg.files import sha256_of
from promptseg.hubs.base import CompiledGraphs, Hub, HubOutput, read_compiled
from promptseg.hubs.contract import read_graphs
from promptseg.hubs.host import GraphInputs, masks_on_host
from promptseg.metrics import binary_floors, bootstrap_interval, overlap
from promptseg.params import HubConfig

HOST = "ONNX Runtime, CPU"
FLOAT32 = "fp32"
FLOAT32_SAMPLES = 64  # on which the scored masks are compared with those of float32, at a tenth of a second each
SEED = 7  # of the bootstrap
SHOWN = 5  # samples that an error names
DECIMALS = 5


@dataclass(frozen=True)
class Comparison:
    """How far one runner's masks are from those that another made of the same samples.

    `iou_mean` is the mean IoU of the pairs of masks on the canvas, with its 95 % interval, and `iou_worst` that of
    `worst_sample`. Two empty masks have no IoU: such pairs are counted, in `empty_pairs`, and left out; without any
    other the figures are None. `miou_change` is the mean IoU with the truth of the first runner's masks minus that of
    the second's, on the original pictures, with the interval of the paired difference. Intervals draw whole pictures.
    """

    runner: str
    reference: str
    samples: int
    empty_pairs: int
    iou_mean: float | None
    iou_mean_low: float | None
    iou_mean_high: float | None
    iou_worst: float | None
    worst_sample: str | None
    miou_change: float
    miou_change_low: float
    miou_change_high: float


@dataclass(frozen=True)
class Fidelity:
    """Which graph, runner and precision the scored masks are from, and how far they are from the others.

    `binary` compares the binary that is timed with ONNX Runtime in the same precision, `float32` that with float32, and
    `binary_float32` the binary of a quantized graph with what it was made of: whether its masks, where they are others
    than the scored ones, are worse ones. Each is None where there is nothing to compare. `non_finite` is the number of
    masks with values that are NaN or infinite: 0, since others are refused.
    """

    binary: Comparison | None
    float32: Comparison | None
    binary_float32: Comparison | None
    scored_by: str
    phrases: int
    non_finite: int
    device: str
    model: str
    res: int
    precision: str
    graph_sha256: str
    predictions_sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dictionary for a metrics file."""
        return asdict(self)


def infer(
    hub: Hub,
    config: HubConfig,
    graphs: Path,
    compiled: Path,
    inputs: GraphInputs,
    predictions: Path,
    floats: Path | None = None,
) -> Fidelity:
    """Write the scored mask of every input to `predictions`, and compare few of them; see the module.

    floats: the folder of what quantized graphs were made of, empty or None where they are not. All masks are compared
    with its, where the host makes them, and only told how far they are: that is the precision's own doing.

    The comparisons come first. Raises ValueError, and leaves no predictions, when a comparison falls below
    `config.min_fidelity_mean` or `_worst` (of integers: see `binary_floors`), and FloatingPointError when
    an output holds a value that is no number; both name the samples.
    """
    manifest = read_compiled(read_graphs(graphs), compiled, config)
    deployed = _Deployed(hub, config, graphs, compiled, manifest)
    float32 = binary = binary_float32 = None
    floats = floats if floats is not None and any(floats.iterdir()) else None
    made: list[Prediction] = []  # of all inputs, where they are compared anyway
    if floats is not None and hub.emulates:
        float32 = deployed.compare_with_float32(inputs, floats, made)
    elif manifest.precision != FLOAT32:
        float32 = deployed.compare_with_float32(inputs.few(FLOAT32_SAMPLES), floats)
    if manifest.placed_on_npu and config.emulator_samples:
        few = inputs.few(config.emulator_samples)
        binary, binary_float32 = deployed.compare_binary(few, floats, None if float32 is None else float32.iou_mean)
    scored_by = deployed.host if hub.emulates else hub.runner
    if made:
        phrases = write_predictions(predictions, made)
    else:
        masks = masks_on_host(graphs, inputs, manifest.precision) if hub.emulates else hub.run(graphs, compiled, inputs)
        bar = tqdm(deployed.finite(masks, scored_by, inputs), desc="infer", total=len(inputs), unit="phrase")
        phrases = write_predictions(predictions, map(_prediction, bar))
    return Fidelity(
        binary=binary,
        float32=float32,
        binary_float32=binary_float32,
        scored_by=scored_by,
        phrases=phrases,
        non_finite=0,
        device=manifest.device,
        model=manifest.model,
        res=manifest.res,
        precision=manifest.precision,
        graph_sha256=manifest.graph_sha256,
        predictions_sha256=sha256_of(predictions),
    )


@dataclass(frozen=True)
class _Deployed:
    """Compiled graphs, and all that can run them."""

    hub: Hub
    config: HubConfig
    graphs: Path
    compiled: Path
    manifest: CompiledGraphs

    @property
    def host(self) -> str:
        """ONNX Runtime in the binary's precision, for people."""
        return f"{HOST}, {self.manifest.precision}"

    def compare_with_float32(
        self, few: GraphInputs, floats: Path | None = None, made: list[Prediction] | None = None
    ) -> Comparison:
        """Hold ONNX Runtime in the binary's precision to float32, on the mean alone; a quantized graph to nothing.

        Of 64 phrases one may have two queries that fit alike, of which rounding takes the other: that is the doing of
        the precision itself, it is scored, and the binary does the same. How far integers are from `floats` is what a
        user asks. The masks compared are added to `made`.
        """
        here, there = tee(few)
        rounded: Iterable[HubOutput] = masks_on_host(self.graphs, here, self.manifest.precision)
        if made is not None:
            rounded = _recorded(tqdm(rounded, desc="infer", total=len(few), unit="phrase"), made)
        names, wanted = (self.host, f"{HOST}, {FLOAT32}"), masks_on_host(floats or self.graphs, there)
        floors = (self.config.min_fidelity_mean if floats is None else 0.0, 0.0)
        return self._compared(names, rounded, wanted, few, floors)

    def compare_binary(
        self, few: GraphInputs, floats: Path | None, float32_iou: float | None
    ) -> tuple[Comparison, Comparison | None]:
        """Hold the binary to ONNX Runtime in the same precision, and compare that of a quantized graph with `floats`.

        float32_iou: the mean IoU of the scored masks with float's.
        """
        ran, again = tee(self.hub.run(self.graphs, self.compiled, few))
        config, precision = self.config, self.manifest.precision
        floors = binary_floors(precision, float32_iou, config.min_fidelity_mean, config.min_fidelity_worst)
        wanted = masks_on_host(self.graphs, few, precision)
        binary = self._compared((self.hub.runner, self.host), ran, wanted, few, floors)
        if floats is None:
            return binary, None
        names = (self.hub.runner, f"{HOST}, {FLOAT32}")
        return binary, self._compared(names, again, masks_on_host(floats, few), few, (0.0, 0.0))

    def _compared(
        self,
        names: tuple[str, str],
        first: Iterable[HubOutput],
        second: Iterable[HubOutput],
        few: GraphInputs,
        floors: tuple[float, float],
    ) -> Comparison:
        pairs = zip(self.finite(first, names[0], few), self.finite(second, names[1], few), strict=True)
        comparison, ious = compare_masks(names, pairs, few.samples)
        if _below(floors, comparison):
            raise ValueError(_too_far_apart(floors, comparison, ious) + self._strays(few, comparison.worst_sample))
        return comparison

    def finite(self, outputs: Iterable[HubOutput], runner: str, inputs: GraphInputs) -> Iterator[HubOutput]:
        """Hand on all outputs, and raise FloatingPointError at their end when some held values that are no numbers."""
        broken: list[tuple[str, int]] = []
        total = 0
        for output in outputs:
            total += 1
            if output.non_finite:
                broken.append((output.sample_id, output.non_finite))
            yield output
        if broken:
            named = _first([f"{sample_id} ({pixels} pixels)" for sample_id, pixels in broken])
            raise FloatingPointError(
                f"{runner}: got NaN or infinite values in {len(broken)} of {total} masks, wanted none: {named}; a "
                "value beyond fp16's 65504 becomes infinite: rescale what makes it, or train the network anew"
                + self._strays(inputs, broken[0][0])
            )

    def _strays(self, inputs: GraphInputs, sample_id: str | None) -> str:
        """Name the first tensor that the binary computes otherwise, on one of `inputs`, where the hub can tell."""
        sample = next((sample for sample in inputs if sample.sample_id == sample_id), None)
        cause = self.hub.explain(self.graphs, sample) if sample is not None and self.manifest.placed_on_npu else ""
        return f"; the first tensor that strays in the binary: {cause}" if cause else ""


def compare_masks(
    names: tuple[str, str], pairs: Iterable[tuple[HubOutput, HubOutput]], samples: list[Sample]
) -> tuple[Comparison, dict[str, float]]:
    """Compare pairs of masks as they come: of the runner `names[0]`, and of `names[1]`, each of one of `samples`.

    Returns the figures, and the IoU of each pair that is not empty by the sample's id. Raises ValueError when there is
    no pair.
    """
    ious: dict[str, float] = {}
    changes: list[float] = []
    for (got, wanted), sample in zip(pairs, samples, strict=True):
        assert got.sample_id == wanted.sample_id == sample.sample_id, "runners keep the samples' order"
        both = overlap(got.pred_mask, wanted.pred_mask)
        if both.union:
            ious[sample.sample_id] = both.intersection / both.union
        changes.append(_iou_with_truth(got.pred_mask, sample) - _iou_with_truth(wanted.pred_mask, sample))
    if not changes:
        raise ValueError("got no samples, wanted at least one to compare masks on")
    image_of = {sample.sample_id: sample.image for sample in samples}
    worst = min(ious, key=lambda name: ious[name], default=None)
    mean, low, high = _mean_with_interval(list(ious.values()), [image_of[name] for name in ious])
    change, change_low, change_high = _mean_with_interval(changes, [sample.image for sample in samples])
    comparison = Comparison(
        runner=names[0],
        reference=names[1],
        samples=len(samples),
        empty_pairs=len(samples) - len(ious),
        iou_mean=mean,
        iou_mean_low=low,
        iou_mean_high=high,
        iou_worst=None if worst is None else round(ious[worst], DECIMALS),
        worst_sample=worst,
        miou_change=change or 0.0,
        miou_change_low=change_low or 0.0,
        miou_change_high=change_high or 0.0,
    )
    return comparison, ious


def _prediction(output: HubOutput) -> Prediction:
    return Prediction(output.sample_id, Rle.from_mask(output.pred_mask))


def _recorded(outputs: Iterable[HubOutput], made: list[Prediction]) -> Iterator[HubOutput]:
    for output in outputs:
        made.append(_prediction(output))
        yield output


def _iou_with_truth(mask: NDArray[np.bool_], sample: Sample) -> float:
    return overlap(mask_from_canvas(mask, sample.height, sample.width), sample.mask.to_mask()).iou


def _mean_with_interval(values: list[float], images: list[str]) -> tuple[float | None, float | None, float | None]:
    if not values:
        return None, None, None
    low, high = bootstrap_interval(values, images, SEED)
    return round(float(np.mean(values)), DECIMALS), round(low, DECIMALS), round(high, DECIMALS)


def _below(floors: tuple[float, float], comparison: Comparison) -> bool:
    """Whether a comparison falls below the floors of its mean and of its worst sample."""
    if comparison.iou_mean is None or comparison.iou_worst is None:  # nothing but empty masks: that shows nothing
        return max(floors) > 0
    return comparison.iou_mean < floors[0] or comparison.iou_worst < floors[1]


def _too_far_apart(floors: tuple[float, float], comparison: Comparison, ious: dict[str, float]) -> str:
    wanted = (
        f"wanted at least {floors[0]} and {floors[1]} "
        "(hub.min_fidelity_mean, hub.min_fidelity_worst; 0 and 0 let everything pass)"
    )
    who = f"{comparison.runner}, beside {comparison.reference}"
    if not ious:
        return f"{who}: got {comparison.samples} pairs of empty masks, whose IoU shows nothing; {wanted}"
    low = [f"{name} ({iou:.3f})" for name, iou in sorted(ious.items(), key=lambda item: item[1])]
    return (
        f"{who}: got masks with a mean IoU of {comparison.iou_mean} and a worst of {comparison.iou_worst}, {wanted}; "
        f"the lowest: {_first(low)}; what is timed is not what would be scored, so nothing is"
    )


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
