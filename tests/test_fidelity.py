"""The masks that are scored, held to the binary's and to float32; what strays or is no number ends the run."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from promptseg.datasets.archives import write_archive
from promptseg.datasets.records import PHRASE_KINDS, Rle, Sample, read_predictions, write_records
from promptseg.export.deployed_graph import DeployedXDecoder
from promptseg.export.onnx_export import trace_graph
from promptseg.files import sha256_of
from promptseg.hubs import fidelity as fidelity_module
from promptseg.hubs.base import Binary, CompiledGraphs, HubInput, HubOutput, read_compiled
from promptseg.hubs.contract import read_graphs
from promptseg.hubs.fidelity import FLOAT32, Comparison, Fidelity, compare_masks, infer
from promptseg.hubs.host import GraphInputs, masks_on_host
from tests.aihub_helpers import hub_config
from tests.graphs import RECORD, write_bright_graph
from tests.networks import micro_network

PICTURES = 6
CONFIG = hub_config(backend="local", emulator_samples=3)
SIZE = 64
ALL, NOTHING = np.ones((1024, 1024), bool), np.zeros((1024, 1024), bool)


class Device:
    """A hub that runs the graph on the host, and then changes its masks."""

    runner = "a device"

    def __init__(self, emulates: bool, change: Any = lambda output: output) -> None:
        self.emulates = emulates
        self.change = change
        self.ran: list[str] = []

    def run(self, graph: Path, _compiled: Path, inputs: Iterable[HubInput]) -> Iterator[HubOutput]:
        for output in masks_on_host(graph, inputs, "fp16"):
            self.ran.append(output.sample_id)
            yield self.change(output)

    def explain(self, _graph: Path, sample: HubInput) -> str:
        return f"AveragePool of {sample.sample_id}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose lower half is bright, which is what each of their phrases means; a graph that finds it."""
    folder = tmp_path_factory.mktemp("world")
    pixels = np.full((SIZE, SIZE, 3), 30, np.uint8)
    pixels[SIZE // 2 :] = 120
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    write_archive(folder / "images" / "a.zip", ((f"{index}.png", stream.getvalue()) for index in range(PICTURES)))
    mask = np.zeros((SIZE, SIZE), bool)
    mask[SIZE // 2 :] = True
    samples = [
        Sample(f"{index}-{kind}", "val", f"a.zip/{index}.png", SIZE, SIZE, "a", kind, Rle.from_mask(mask))
        for index in range(PICTURES)
        for kind in PHRASE_KINDS
    ]
    write_records(folder / "samples.jsonl", samples)
    np.save(folder / "tokens.npy", np.full((len(samples), 2, 77), 5, np.int32))
    return folder


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx")


def inputs_of(world: Path) -> GraphInputs:
    return GraphInputs(world / "images", world / "samples.jsonl", world / "tokens.npy", "val", None)


def compile_for(graph: Path, folder: Path, on_npu: bool = True) -> Path:
    compiled = CompiledGraphs(
        backend="local",
        device=CONFIG.device,
        contract="lpcvc-2025-track-2",
        model="nano",
        res=64,
        runtime="test",
        precision="fp16" if on_npu else "fp32",
        placed_on_npu=on_npu,
        graph_sha256=sha256_of(graph),
        binaries=(Binary("model", sha256_of(graph)),),
        chip=None,
        service=None,
        account=None,
        tool_versions={},
        note="",
    )
    folder.mkdir()
    compiled.write(folder)
    return folder


def run(world: Path, graph: Path, folder: Path, device: Any, **changes: Any) -> Fidelity:
    compiled = compile_for(graph, folder / "compiled", changes.pop("on_npu", True))
    return infer(device, replace(CONFIG, **changes), graph, compiled, inputs_of(world), folder / "predictions.jsonl")


def test_a_quantized_graph_is_compared_with_its_float_one_on_all_phrases_and_without_a_floor(
    world: Path, graph: Path, tmp_path: Path
) -> None:
    other = tmp_path / "float" / "model.onnx"
    other.parent.mkdir()
    content = onnx.load(graph)
    for tensor in content.graph.initializer:
        if tensor.name == "thresholds":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tensor.dims, -1, np.float32), tensor.name))
    onnx.save(content, other)  # marks everything, where the other marks half
    compiled, inputs = compile_for(graph, tmp_path / "compiled"), inputs_of(world)
    fidelity = infer(
        Device(emulates=True), CONFIG, graph, compiled, inputs, tmp_path / "predictions.jsonl", other.parent
    )
    assert fidelity.float32 is not None
    assert fidelity.float32.samples == fidelity.phrases == len(inputs)
    assert fidelity.float32.iou_mean is not None
    assert fidelity.float32.iou_mean < CONFIG.min_fidelity_mean
    predictions = read_predictions(tmp_path / "predictions.jsonl")
    assert {float(mask.to_mask().mean()) for mask in predictions.values()} == {0.5}


def test_a_quantized_graph_whose_binary_is_as_near_to_float_passes_and_another_does_not(
    world: Path, graph: Path, tmp_path: Path
) -> None:
    """Masks that differ from the scored ones as those differ from float's are rounding; half as near is a fault."""

    def shrunk(rows: int) -> Any:
        def change(output: HubOutput) -> HubOutput:
            mask = output.pred_mask.copy()
            mask[-rows:] = False
            return replace(output, pred_mask=mask)

        return change

    compiled = compile_for(graph, tmp_path / "compiled")
    manifest = read_compiled(read_graphs(graph), compiled, CONFIG)
    replace(manifest, precision="w8a8").write(compiled)
    arguments = (CONFIG, graph, compiled, inputs_of(world), tmp_path / "predictions.jsonl", graph.parent)
    fidelity = infer(Device(emulates=True, change=shrunk(20)), *arguments)
    assert fidelity.binary is not None
    assert fidelity.binary_float32 == replace(fidelity.binary, reference="ONNX Runtime, CPU, fp32")
    with pytest.raises(ValueError, match=r"got masks with a mean IoU of 0\.8.*wanted at least 0\.9"):
        infer(Device(emulates=True, change=shrunk(100)), *arguments)


def test_beside_an_emulator_the_host_makes_the_masks_and_few_are_emulated(
    world: Path, graph: Path, tmp_path: Path
) -> None:
    device = Device(emulates=True)
    fidelity = run(world, graph, tmp_path, device)
    predictions = read_predictions(tmp_path / "predictions.jsonl")
    assert list(predictions) == [sample.sample_id for sample in inputs_of(world).samples]
    assert {float(mask.to_mask().mean()) for mask in predictions.values()} == {0.5}
    assert (fidelity.phrases, fidelity.non_finite) == (PICTURES * 3, 0)
    assert fidelity.scored_by == "ONNX Runtime, CPU, fp16"
    assert (fidelity.model, fidelity.res, fidelity.precision, fidelity.device) == ("nano", 64, "fp16", CONFIG.device)
    assert fidelity.graph_sha256 == sha256_of(graph)
    assert fidelity.predictions_sha256 == sha256_of(tmp_path / "predictions.jsonl")
    assert fidelity.binary is not None
    assert (fidelity.binary.runner, fidelity.binary.reference) == ("a device", "ONNX Runtime, CPU, fp16")
    assert (fidelity.binary.samples, fidelity.binary.iou_mean, fidelity.binary.iou_worst) == (3, 1.0, 1.0)
    assert fidelity.binary.miou_change == 0.0
    assert fidelity.float32 is not None
    assert (fidelity.float32.samples, fidelity.float32.iou_mean) == (PICTURES * 3, 1.0)
    assert fidelity.float32.reference == "ONNX Runtime, CPU, fp32"
    kinds = {name.partition("-")[2] for name in device.ran}
    assert kinds == set(PHRASE_KINDS), "of each kind of phrase"
    assert len({name.partition("-")[0] for name in device.ran}) == 3, "and each of another picture"


def test_a_device_makes_all_masks_itself(world: Path, graph: Path, tmp_path: Path) -> None:
    device = Device(emulates=False)
    fidelity = run(world, graph, tmp_path, device)
    assert fidelity.scored_by == "a device"
    assert len(device.ran) == 3 + PICTURES * 3


def test_where_nothing_is_compiled_the_host_alone_is_asked(world: Path, graph: Path, tmp_path: Path) -> None:
    device = Device(emulates=True)
    fidelity = run(world, graph, tmp_path, device, on_npu=False)
    assert (fidelity.binary, fidelity.float32, device.ran) == (None, None, [])
    assert (fidelity.precision, fidelity.scored_by) == ("fp32", "ONNX Runtime, CPU, fp32")


def test_no_emulated_sample_is_no_comparison(world: Path, graph: Path, tmp_path: Path) -> None:
    assert run(world, graph, tmp_path, Device(emulates=True), emulator_samples=0).binary is None


def only(sample_id: str, mask: np.ndarray[Any, Any]) -> Any:
    """A change of one sample's mask."""
    return lambda output: replace(output, pred_mask=mask) if output.sample_id == sample_id else output


def test_a_binary_that_strays_ends_the_run_with_its_samples_and_its_first_tensor(
    world: Path, graph: Path, tmp_path: Path
) -> None:
    device = Device(emulates=True, change=only("2-short", ALL))
    message = (
        r"a device, beside ONNX Runtime, CPU, fp16: got masks with a mean IoU of 0\.83333 and a worst of 0\.5, wanted "
        r"at least 0\.95 and 0\.8 .*the lowest: 2-short \(0\.500\), "
        r".*so nothing is; the first tensor that strays .*: AveragePool of 2-short"
    )
    with pytest.raises(ValueError, match=message):
        run(world, graph, tmp_path, device)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_floors_of_zero_let_everything_pass_and_it_is_recorded(world: Path, graph: Path, tmp_path: Path) -> None:
    device = Device(emulates=True, change=only("2-short", ALL))
    fidelity = run(world, graph, tmp_path, device, min_fidelity_mean=0.0, min_fidelity_worst=0.0)
    assert fidelity.binary is not None
    assert (fidelity.binary.iou_worst, fidelity.binary.worst_sample) == (0.5, "2-short")
    assert fidelity.binary.miou_change == pytest.approx(-0.5 / 3, abs=1e-5), "the truth is the lower half"
    assert fidelity.binary.miou_change_low <= fidelity.binary.miou_change <= fidelity.binary.miou_change_high


@pytest.mark.parametrize("emulates", [True, False])
def test_values_that_are_no_numbers_end_the_run_and_name_the_samples(
    world: Path, graph: Path, tmp_path: Path, emulates: bool
) -> None:
    broken = "2-short" if emulates else "5-sentence"
    device = Device(emulates, lambda one: replace(one, non_finite=7) if one.sample_id == broken else one)
    with pytest.raises(
        FloatingPointError,
        match=rf"a device: got NaN or infinite values in 1 of .*{broken} \(7 pixels\).*AveragePool of {broken}",
    ):
        run(world, graph, tmp_path, device)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_a_mask_beside_an_empty_one_shows_that_they_differ(world: Path, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"worst of 0\.0"):
        run(world, graph, tmp_path, Device(emulates=True, change=only("2-short", NOTHING)))


def pairs(*masks: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]) -> list[tuple[HubOutput, HubOutput]]:
    return [(HubOutput(f"{index}-keyword", a), HubOutput(f"{index}-keyword", b)) for index, (a, b) in enumerate(masks)]


def keywords(world: Path, count: int) -> list[Sample]:
    return [sample for sample in inputs_of(world).samples if sample.phrase_kind == "keyword"][:count]


def test_two_empty_masks_are_counted_apart(world: Path) -> None:
    comparison, ious = compare_masks(("a", "b"), pairs((NOTHING, NOTHING), (ALL, ALL)), keywords(world, 2))
    assert (comparison.samples, comparison.empty_pairs, comparison.iou_mean) == (2, 1, 1.0)
    assert ious == {"1-keyword": 1.0}
    nothing, _ = compare_masks(("a", "b"), pairs((NOTHING, NOTHING)), keywords(world, 1))
    assert (nothing.empty_pairs, nothing.iou_mean, nothing.iou_worst, nothing.worst_sample) == (1, None, None, None)


def test_nothing_but_empty_masks_does_not_pass_as_equal(world: Path, tmp_path: Path) -> None:
    graph = write_bright_graph(tmp_path / "model.onnx")
    dark = replace_tokens(world, tmp_path, first_id=30000)  # a threshold that nothing in the pictures reaches
    compiled = compile_for(graph, tmp_path / "compiled")
    device: Any = Device(emulates=True)
    with pytest.raises(ValueError, match="pairs of empty masks, whose IoU shows nothing"):
        infer(device, CONFIG, graph, compiled, dark, tmp_path / "predictions.jsonl")


def replace_tokens(world: Path, folder: Path, first_id: int) -> GraphInputs:
    np.save(folder / "tokens.npy", np.full((PICTURES * 3, 2, 77), first_id, np.int32))
    return GraphInputs(world / "images", world / "samples.jsonl", folder / "tokens.npy", "val", None)


def test_float32_is_held_to_the_mean_and_the_binary_to_the_worst_phrase_too(
    world: Path, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many phrases rounding may decide one otherwise; of the binary's few none may be another."""
    compare, worst_of = fidelity_module.compare_masks, {FLOAT32: 0.2}

    def one_strays(names: tuple[str, str], *rest: Any) -> tuple[Comparison, dict[str, float]]:
        comparison, ious = compare(names, *rest)
        return replace(comparison, iou_worst=worst_of.get(names[1].split(", ")[-1], comparison.iou_worst)), ious

    monkeypatch.setattr(fidelity_module, "compare_masks", one_strays)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    passed = run(world, graph, tmp_path / "one", Device(emulates=True))
    assert passed.float32 is not None
    assert passed.float32.iou_worst == 0.2
    worst_of["fp16"] = 0.2
    with pytest.raises(ValueError, match=r"a device, beside ONNX Runtime, CPU, fp16: .* a worst of 0\.2"):
        run(world, graph, tmp_path / "two", Device(emulates=True))


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        compare_masks(("a", "b"), [], [])


@pytest.mark.slow
def test_a_network_whose_mask_features_exceed_fp16_ends_in_an_error(world: Path, tmp_path: Path) -> None:
    """The same function in float32: features 2**17 times as large, and the query's mask embedding as much smaller."""
    network = micro_network()
    with torch.no_grad():
        features = network.pixel_decoder.mask_features
        for parameter in features.parameters():
            parameter.mul_(2.0**17)
        last = network.mask_decoder.mask_embedding[-1]
        for parameter in last.parameters():
            parameter.mul_(2.0**-17)
    graph = tmp_path / "model.onnx"
    trace_graph(DeployedXDecoder(network, 64).eval().requires_grad_(False), 18, graph, RECORD)
    exact = list(masks_on_host(graph, inputs_of(world).few(1)))
    assert not exact[0].non_finite
    with pytest.raises((FloatingPointError, ValueError), match=r"ONNX Runtime, CPU, fp16.*(NaN or infinite|mean IoU)"):
        run(world, graph, tmp_path, Device(emulates=True))
    assert not (tmp_path / "predictions.jsonl").exists()
