"""Integers: forms equal to the plain ones, graphs that say what they are, and mistakes that are named."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from promptseg.datasets.preprocess import CANVAS
from promptseg.export import quantize
from promptseg.export.deployed_graph import INTEGER_REWRITES, DeployedXDecoder, plain_mask
from promptseg.export.onnx_export import export_graphs, trace_graph
from promptseg.export.quantize import (
    DECISION_MULTIPLIER,
    KEPT,
    Calibrated,
    _check_masks,
    _cut_of,
    _multipliers,
    _tempered,
    _warn,
    bits_of,
    calibrate,
    calibration_inputs,
    is_named,
    kept,
    least_squares,
    prepared,
    quantized,
)
from promptseg.export.rewrites.backbone import FoldedStem
from promptseg.export.rewrites.features import CanvasMask
from promptseg.export.rewrites.integers import BlockStem, MatrixResize, MildMask
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import IMAGE_INPUT, TEXT_INPUT, read_graphs
from promptseg.hubs.host import HostSession
from promptseg.networks.xdecoder.backbone import Downsample
from promptseg.networks.xdecoder.model import resize_canvas
from tests.graphs import Inputs, export_config, write_bright_graph
from tests.networks import micro_network


def sample(seed: int) -> HubInput:
    """Random cells of 64x64 pixels, and ids of which the first is small."""
    cells = np.random.default_rng(seed).integers(0, 256, (1, 3, 16, 16))
    text = np.full(TEXT_INPUT.shape, 7, np.int32)
    return HubInput(f"{seed}", cells.repeat(64, 2).repeat(64, 3).astype(np.float32), text)


SAMPLES = [sample(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bright_graph(tmp_path_factory.mktemp("graph") / "bright.onnx")


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network's float graph in the forms that integers want."""
    path = tmp_path_factory.mktemp("traced") / "graph.onnx"
    trace_graph(DeployedXDecoder(micro_network(), 64, INTEGER_REWRITES).eval().requires_grad_(False), 18, path)
    return path


@pytest.mark.parametrize("res", [64, 131])
def test_the_resize_by_matrices_is_the_bilinear_one(res: int) -> None:
    canvas = torch.rand(1, 3, CANVAS, CANVAS) * 255
    assert torch.allclose(MatrixResize(res)(canvas), resize_canvas(canvas, res), atol=1e-3)


@pytest.mark.parametrize("res", [64, 70])
def test_the_stem_on_blocks_is_the_stem(res: int) -> None:
    torch.manual_seed(0)
    stem = FoldedStem(Downsample(3, 8, 7, 4, 3), torch.full((3, 1, 1), 120.0), torch.full((3, 1, 1), 57.0), res)
    picture = torch.rand(1, res, res, 3) * 255
    assert torch.allclose(BlockStem(stem)(picture), stem(picture), atol=1e-4)


def test_the_mild_decision_is_the_steep_one() -> None:
    torch.manual_seed(0)
    steep, logits = CanvasMask(64, "crop"), torch.randn(16, 16) * 5
    assert ((steep(logits) > 0.5) != (MildMask(steep)(logits) > 0.5)).float().mean() < 1e-5


@pytest.mark.parametrize("left_out", ["", "picture", "blocking", "decision"])
def test_the_graph_for_integers_decides_in_float_as_the_network(left_out: str) -> None:
    network = micro_network()
    names = [name for name in INTEGER_REWRITES if name != left_out]
    image = torch.from_numpy(SAMPLES[0].image_input)
    text = torch.full(TEXT_INPUT.shape, 3, dtype=torch.int32)
    text[0, 0, 5:] = network.text_encoder.end_of_text
    made = DeployedXDecoder(network, 96, names).eval()(image, text) > 0.5
    assert (made != plain_mask(network, image, text, 96)).float().mean() < 1e-3


@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
def test_a_quantized_graph_decides_nearly_as_the_float_one(bright: Path, tmp_path: Path, precision: str) -> None:
    calibrated = calibrate(prepared(bright), SAMPLES, "minmax")
    content = quantized(calibrated, bits_of(calibrated.nodes, precision))
    onnx.save(content, tmp_path / "model.onnx")
    assert {node.op_type for node in content.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    masks = [HostSession(path).run(SAMPLES[1]) for path in (bright, tmp_path / "model.onnx")]
    assert (masks[0] == masks[1]).mean() > 0.97


@pytest.mark.parametrize(
    ("ranges", "precision", "scales"),
    [((1e-3, 1.0, 30.0), "w8a8", (3,)), ((1.0, 1.1, 1.2), "w8a8", ()), ((1.0, 1.1, 1.2), "w8a16", (3,))],
)
def test_outputs_of_very_different_ranges_have_scales_of_their_own_and_each_bias_32_bits(
    tmp_path: Path, ranges: tuple[float, ...], precision: str, scales: tuple[int, ...]
) -> None:
    generator = np.random.default_rng(0)
    weight = (generator.normal(size=(3, 1, 3, 3)) * np.array(ranges)[:, None, None, None]).astype(np.float32)
    bias = generator.normal(size=3).astype(np.float32)
    numbers = {"weight": weight, "bias": bias}
    nodes = [
        onnx.helper.make_node(
            "Conv",
            [IMAGE_INPUT.name, "weight", "bias"],
            ["convolved"],
            "backbone/Conv",
            group=3,
            strides=[400, 400],
            pads=[1, 1, 1, 1],
        ),
        onnx.helper.make_node("Add", ["convolved", "bias"], ["pred_mask"], "backbone/Add"),  # reads the bias, too
    ]
    value = onnx.helper.make_tensor_value_info
    inputs = [value(IMAGE_INPUT.name, 1, list(IMAGE_INPUT.shape)), value(TEXT_INPUT.name, 6, list(TEXT_INPUT.shape))]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in numbers.items()]
    graph = onnx.helper.make_graph(nodes, "channels", inputs, [value("pred_mask", 1, [1, 3, 3, 3])], constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]), tmp_path / "graph.onnx")
    plain = prepared(tmp_path / "graph.onnx")
    calibrated = calibrate(plain, SAMPLES, "minmax")
    content = quantized(calibrated, bits_of(plain.graph.node, precision))
    held = {each.name: onnx.numpy_helper.to_array(each) for each in content.graph.initializer}
    made = {node.output[0]: node for node in content.graph.node}
    conv = next(node for node in content.graph.node if node.op_type == "Conv")
    whole, scale, zero = (held[name] for name in made[conv.input[1]].input)
    assert scale.shape == scales
    kept_weight = (whole.astype(np.float32) - zero.reshape(-1, 1, 1, 1)) * scale.reshape(-1, 1, 1, 1)
    assert (np.abs(kept_weight - weight).max((1, 2, 3)) < np.abs(weight).max((1, 2, 3)) / 100).all()
    assert held[made[conv.input[2]].input[0]].dtype == np.int32


def test_a_decision_is_as_steep_as_its_steps_and_no_steeper(traced: Path) -> None:
    calibrated = calibrate(prepared(traced), SAMPLES, "minmax")
    bits = bits_of(calibrated.nodes, "w8a8")
    before = dict(_decisions(calibrated, bits))
    after = dict(_decisions(_tempered(calibrated, bits), bits))
    assert len(before) == len(after) > 1
    assert min(before.values()) > 100 * DECISION_MULTIPLIER, "nothing to mend shows nothing"
    assert list(after.values()) == pytest.approx([DECISION_MULTIPLIER] * len(after), rel=1e-5)


def _decisions(calibrated: Calibrated, bits: Any) -> list[tuple[str, float]]:
    graph = calibrated.content.graph
    products = [(node, _cut_of(graph, node), steps) for node, steps in _multipliers(calibrated, bits)]
    return [(node.name, steps) for node, cut, steps in products if cut is not None and cut.op_type == "Clip"]


def test_products_that_the_npu_would_make_zero_of_are_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, traced: Path
) -> None:
    monkeypatch.setattr(quantize, "LARGEST_MULTIPLIER", 100.0)  # this network's decisions are at 139 and more
    calibrated = calibrate(prepared(traced), SAMPLES, "minmax")
    bits = bits_of(calibrated.nodes, "w8a8")
    _warn(_tempered(calibrated, bits), bits)
    assert "the NPU makes 0" not in caplog.text
    _warn(calibrated, bits)
    assert "products have steps beyond 100 of their result's, of which the NPU makes 0: decoder/MatMul" in caplog.text


def test_each_product_has_a_bias_of_its_own_and_what_nothing_reads_is_gone(traced: Path) -> None:
    graph = prepared(traced).graph
    read = Counter(name for node in graph.node for name in node.input)
    biases = [node.input[2] for node in graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) > 2]
    assert {read[bias] for bias in biases} == {1}
    assert {each.name for each in graph.initializer} <= read.keys()


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_every_method_gives_each_tensor_a_range(bright: Path, method: str) -> None:
    ranges = calibrate(prepared(bright), SAMPLES, method).ranges
    assert all(low <= high for low, high in (data.range_value for data in ranges.values()))


def test_least_squares_cuts_off_what_is_rare_and_far() -> None:
    values = np.append(np.random.default_rng(0).normal(size=2_000_000), [60.0])
    low, high = least_squares(*np.histogram(values, 2048))
    assert low < -2 < 2 < high < 40


def test_keep_names_parts_modules_and_operations(bright: Path) -> None:
    nodes = list(prepared(bright).graph.node)
    bits = bits_of(nodes, "mixed", ["Conv", "Gather:float"])
    assert {bits[node.name] for node in nodes if node.op_type == "Conv"} == {"16"}
    assert {bits[node.name] for node in nodes if node.op_type == "Gather"} == {"float"}
    node = onnx.helper.make_node("Add", ["a", "b"], ["c"], "network.decoder.layers.2/Add_3")
    assert all(is_named(node, name) for name in ("decoder", "decoder.layers", "decoder.layers.2", "Add"))
    assert is_named(node, "decoder.layers.2/")
    assert not any(
        is_named(node, name) for name in ("decoder/", "decoder.layers/", "backbone", "decoder.layers.22", "decoder.lay")
    )


def test_what_a_choice_is_made_of_has_16_bits() -> None:
    nodes = [
        onnx.helper.make_node("LayerNormalization", ["x", "s"], ["state"], "a/norm"),
        onnx.helper.make_node("MatMul", ["state", "w"], ["product"], "a/product"),
        onnx.helper.make_node("LpNormalization", ["product"], ["unit"], "a/unit"),
        onnx.helper.make_node("MatMul", ["unit", "phrase"], ["likeness"], "a/likeness"),
        onnx.helper.make_node("ArgMax", ["likeness"], ["best"], "a/best"),
        onnx.helper.make_node("Gather", ["state", "best"], ["kernel"], "a/kernel"),
    ]
    bits = bits_of(nodes, "w8a8")
    assert [name for name, each in bits.items() if each == "16"] == ["a/product", "a/unit", "a/likeness"]
    assert set(bits_of(nodes, "w8a16").values()) == {"16"}


def test_an_unknown_name_to_keep_is_refused(bright: Path) -> None:
    with pytest.raises(ValueError, match=r"export.keep: got 'decodr', wanted a part \(picture, .*kind of operation"):
        bits_of(list(prepared(bright).graph.node), "mixed", ["decodr"])


def test_mixed_keeps_what_was_measured_or_says_that_nothing_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KEPT, "nano", ("decoder",))
    assert kept(export_config(precision="mixed"), "nano") == ("decoder",)
    assert kept(export_config(precision="mixed", keep=("Softmax",)), "nano") == ("Softmax",)
    assert kept(export_config(precision="w8a8"), "nano") == ()
    with pytest.raises(ValueError, match=r"export.keep: got null, and nothing was measured for 'other'"):
        kept(export_config(precision="mixed"), "other")


def test_empty_masks_are_found_before_compiling(bright: Path, tmp_path: Path) -> None:
    content = onnx.load(bright)
    for tensor in content.graph.initializer:
        if tensor.name == "thresholds":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tensor.dims, 1e4, np.float32), tensor.name))
    onnx.save(content, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="got empty masks on 2 calibration samples"):
        _check_masks(bright, tmp_path / "model.onnx", SAMPLES)


def test_values_that_are_no_numbers_give_no_range(bright: Path) -> None:
    broken = HubInput("x", np.full(IMAGE_INPUT.shape, np.nan, np.float32), SAMPLES[0].text_input)
    with pytest.raises(ValueError, match="got values that are no numbers in"):
        calibrate(prepared(bright), [broken], "minmax")


def test_more_calibration_samples_than_there_are_and_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "GraphInputs", lambda *_: Inputs(SAMPLES + SAMPLES[:1]))
    assert len(calibration_inputs(Path(), Path(), Path(), 3)) == 3
    with pytest.raises(ValueError, match=r"export.calibration.samples: got 4, wanted at most 3"):
        calibration_inputs(Path(), Path(), Path(), 4)

    def none(*_: object) -> None:
        raise ValueError("has no sample of the split 'train'")

    monkeypatch.setattr(quantize, "GraphInputs", none)
    with pytest.raises(ValueError, match="nothing to take them from"):
        calibration_inputs(Path(), Path(), Path(), 1)


def test_biased_products_are_cut_and_blocks_are_one_operation(tmp_path: Path) -> None:
    class Graph(torch.nn.Module):
        def forward(self, image_input: torch.Tensor, text_input: torch.Tensor) -> torch.Tensor:
            rows = F.avg_pool2d(image_input[0], 8)  # (3, 128, 128)
            blocks = image_input.view(1, 3, 256, 4, 256, 4).permute(0, 3, 5, 1, 2, 4).reshape(1, 48, 256, 256)
            total = rows[0] @ rows[1].T + rows[2].relu() * text_input.sum()
            return F.interpolate((total[None, None] + blocks.mean()), (CANVAS, CANVAS))[0, 0]

    trace_graph(Graph().eval(), 18, tmp_path / "graph.onnx")
    made = prepared(tmp_path / "graph.onnx")
    kinds = [node.op_type for node in made.graph.node]
    assert "SpaceToDepth" in kinds
    assert "Gemm" not in kinds
    known = {value.name for value in (*made.graph.value_info, *made.graph.output)}
    assert {name for node in made.graph.node for name in node.output} <= known
    onnx.save(made, tmp_path / "prepared.onnx")
    feed = {IMAGE_INPUT.name: SAMPLES[0].image_input, TEXT_INPUT.name: SAMPLES[0].text_input}
    both = [onnx_run(path, feed) for path in (tmp_path / "graph.onnx", tmp_path / "prepared.onnx")]
    assert np.allclose(*both, rtol=1e-4)


def onnx_run(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = quantize.ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize("precision", ["w8a8", "mixed"])
def test_a_network_becomes_integers_that_say_so(tmp_path: Path, precision: str) -> None:
    config = export_config(1, precision, keep=("decoder", "Softmax:float"))  # type: ignore[arg-type]
    text = np.full(TEXT_INPUT.shape, 3, np.int32)
    text[0, 0, 5:] = micro_network().text_encoder.end_of_text
    samples = Inputs(HubInput(each.sample_id, each.image_input, text) for each in SAMPLES)
    floats, graphs = tmp_path / "float", tmp_path / "graphs"
    export_graphs(micro_network(), 64, config, samples, floats, model="micro", checkpoint_sha256="ab" * 32)
    report = quantize.quantize_graphs(floats, config, samples, graphs)  # type: ignore[arg-type]
    assert read_graphs(floats).record.precision == "fp32"
    assert read_graphs(graphs).record.precision == report.precision == precision
    assert report.operations_8_bit > report.operations_16_bit > 0
    assert (report.operations_float > 0) == (precision == "mixed")
    masks = [HostSession(folder).run(samples[0]) for folder in (floats, graphs)]
    assert (masks[0] == masks[1]).mean() > 0.8
