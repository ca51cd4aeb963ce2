"""The NPU's emulator computes what ONNX Runtime computes, part by part; and where it does not, the node is named."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from promptseg.export.deployed_graph import INTEGER_REWRITES, DeployedXDecoder
from promptseg.export.onnx_export import trace_graph
from promptseg.export.quantize import (
    DECISION_MULTIPLIER,
    LARGEST_MULTIPLIER,
    bits_of,
    calibrate,
    prepared,
    quantized,
)
from promptseg.export.rewrites.backbone import FoldedBlock, FoldedStem
from promptseg.export.rewrites.convolutions import LEAST_INPUTS, MatrixConvNorm
from promptseg.export.rewrites.decoder import MatrixDecoder
from promptseg.export.rewrites.features import CanvasMask, LevelFeatures, ProductMask, ResizedFeatures, TapMask
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import IMAGE_INPUT, TEXT_INPUT
from promptseg.hubs.devices import devices
from promptseg.hubs.local import tensors
from promptseg.hubs.local.session import qnn_available
from promptseg.hubs.local.tensors import (
    INTEGER_TOLERANCE,
    TOLERANCE,
    compare_borders,
    first_straying_tensor,
    relative_error,
)
from promptseg.networks.xdecoder.backbone import Downsample, FocalBlock
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.pixel_decoder import ConvNorm
from tests.networks import drawn, micro, micro_network, random_phrases, random_pictures

DEVICE = devices()[0]
CELLS, SIZES = 24, [3, 6, 12]
PLAIN = MaskAttention("inside", "bilinear")
BICUBIC = MaskAttention("inside", "bicubic")
needs_emulator = pytest.mark.skipif(not qnn_available(), reason="no onnxruntime-qnn with an HTP library here")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_graph(path: Path, nodes: list[onnx.NodeProto], shape: tuple[int, ...], output: tuple[int, ...]) -> Path:
    """Write a graph from `x` to `y`, float32; its nodes are named after parts, as the exporter's are."""
    values = [helper.make_tensor_value_info(*value) for value in (("x", 1, shape), ("y", 1, output))]
    graph = helper.make_graph(nodes, "test", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def write_pooling_graph(path: Path, pads: list[int]) -> Path:
    """An average pool of 2x2 at every second place of 8 x 16 x 16, between a Relu and a Neg."""
    side = (16 + pads[0] + pads[2]) // 2
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": pads, "count_include_pad": 1}
    nodes = [
        helper.make_node("Relu", ["x"], ["rectified"], "before/Relu_0"),
        helper.make_node("AveragePool", ["rectified"], ["pooled"], "features/AveragePool_1", **pool),
        helper.make_node("Abs", ["pooled"], ["positive"], "features/Abs_2"),
        helper.make_node("Neg", ["positive"], ["y"], "after/Neg_3"),
    ]
    return write_graph(path, nodes, (1, 8, 16, 16), (1, 8, side, side))


def stem() -> nn.Module:
    mean, std = torch.tensor([120.0, 110.0, 100.0]).view(3, 1, 1), torch.tensor([58.0, 57.0, 56.0]).view(3, 1, 1)
    return FoldedStem(Downsample(3, 8, 7, 4, 3), mean, std, 38)


def conv_norm() -> nn.Module:
    plain = ConvNorm(LEAST_INPUTS, 32, 3, groups=4)
    nn.init.normal_(plain.norm.weight)
    nn.init.normal_(plain.norm.bias)
    return MatrixConvNorm(plain)


def block() -> nn.Module:
    plain = micro_network().backbone.stages[1].blocks[0]
    assert isinstance(plain, FocalBlock)
    return FoldedBlock(plain)


def level_features() -> nn.Module:
    return LevelFeatures(nn.Conv2d(16, 16, 3, padding=1), micro_network(PLAIN).mask_decoder, CELLS, SIZES)


def resized_features(rule: MaskAttention) -> nn.Module:
    return ResizedFeatures(micro_network(rule).mask_decoder, CELLS, SIZES)


class Decoder(nn.Module):
    """`MatrixDecoder` on tensors one by one, as the exporter wants them."""

    def __init__(self, rule: MaskAttention) -> None:
        super().__init__()
        decoder = micro_network(rule).mask_decoder
        self.decoder = MatrixDecoder(decoder, SIZES, ResizedFeatures(decoder, CELLS, SIZES))

    def forward(self, features: Tensor, coarse: Tensor, middle: Tensor, fine: Tensor, phrase: Tensor) -> Tensor:
        """See the class."""
        return self.decoder(self.decoder.picture_features(features, (coarse, middle, fine)), phrase)[0]


def two_sided_features() -> Tensor:
    """Features whose masks are far from zero everywhere: rounding decides no pixel otherwise."""
    sides = torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, 1.0, -1.0]])
    return draw(1, 16, 1, 1) * sides.repeat_interleave(CELLS // 3, 0).repeat_interleave(CELLS // 3, 1)


FEATURES = draw(1, 16, CELLS, CELLS)
MAPS = tuple(draw(1, 16, size, size, seed=size) for size in SIZES)
KERNEL = draw(1, 16, seed=1)
PARTS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "stem": (stem, (127 + 60 * draw(1, 38, 38, 3),)),
    "block": (block, (draw(1, 9, 11, 16),)),
    "group norm, split": (conv_norm, (draw(1, LEAST_INPUTS, 9, 9),)),
    "level features": (level_features, (FEATURES,)),
    "resized features, bilinear": (lambda: resized_features(PLAIN), (FEATURES,)),
    "resized features, bicubic": (lambda: resized_features(BICUBIC), (FEATURES,)),
    "decoder, inside": (lambda: Decoder(PLAIN), (two_sided_features(), *MAPS, KERNEL)),
    "decoder, outside": (lambda: Decoder(MaskAttention("outside", "bilinear")), (two_sided_features(), *MAPS, KERNEL)),
    "mask by products": (ProductMask, (KERNEL, FEATURES)),
    "mask by taps": (lambda: TapMask(nn.Conv2d(16, 16, 3, padding=1)), (KERNEL, FEATURES)),
    "canvas, cropped": (lambda: CanvasMask(94, "crop"), (draw(24, 24),)),
    "canvas, stretched": (lambda: CanvasMask(94, "stretch"), (draw(24, 24),)),
}


@needs_emulator
@pytest.mark.parametrize("name", PARTS)
def test_the_emulator_computes_each_rewrite(name: str, tmp_path: Path) -> None:
    make, inputs = PARTS[name]
    torch.manual_seed(0)
    module = make().eval().requires_grad_(False)
    program = torch.onnx.export(module, inputs, dynamo=True, opset_version=18, verbose=False)
    assert program is not None
    program.optimize()
    program.save(tmp_path / "part.onnx")
    names = [value.name for value in program.model_proto.graph.input]
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    compared = compare_borders(tmp_path / "part.onnx", feed, DEVICE)
    assert max(tensor.largest for tensor in compared) > 0.1, "zeros compare nothing"
    assert [str(tensor) for tensor in compared if not tensor.error <= 0.01] == []


@needs_emulator
def test_a_padded_average_pool_strays_and_is_named(tmp_path: Path) -> None:
    """The compiler gets it wrong; a whole graph was deployed with three of them."""
    graph, x = write_pooling_graph(tmp_path / "pool.onnx", [1, 1, 1, 1]), draw(1, 8, 16, 16).numpy()
    straying = first_straying_tensor(graph, {"x": x}, DEVICE)
    assert straying is not None
    assert (straying.op_type, straying.node, straying.shape) == ("AveragePool", "features/AveragePool_1", (1, 8, 9, 9))
    assert straying.error > 0.3
    assert str(straying).startswith("AveragePool features/AveragePool_1 [1, 8, 9, 9]: relative error 0.")


@needs_emulator
def test_without_padding_it_does_not(tmp_path: Path) -> None:
    graph, x = write_pooling_graph(tmp_path / "pool.onnx", [0, 0, 0, 0]), draw(1, 8, 16, 16).numpy()
    assert first_straying_tensor(graph, {"x": x}, DEVICE) is None
    names = [tensor.node for tensor in compare_borders(graph, {"x": x}, DEVICE)]
    assert names == ["before/Relu_0", "features/Abs_2", "after/Neg_3"]


def write_integer_product(path: Path, multiplier: float) -> Path:
    """Write x [16, 64] times a constant [64, 96] in 8 bits, cut to the ends of a range; see LARGEST_MULTIPLIER."""
    rows, columns, step = 64, 96, 0.02
    constants = {
        "b": (draw(rows, columns, seed=1).numpy() / 3 / step + 128).clip(0, 255).astype(np.uint8),
        "step": np.float32(step),
        "middle": np.uint8(128),
        "end_step": np.float32(step * step / multiplier),
        "zero": np.uint8(0),
    }
    chain = (
        ("QuantizeLinear", ["x", "step", "middle"], "x_q"),
        ("DequantizeLinear", ["x_q", "step", "middle"], "x_d"),
        ("DequantizeLinear", ["b", "step", "middle"], "b_d"),
        ("MatMul", ["x_d", "b_d"], "product"),
        ("QuantizeLinear", ["product", "end_step", "zero"], "y_q"),
        ("DequantizeLinear", ["y_q", "end_step", "zero"], "y"),
    )
    nodes = [helper.make_node(kind, inputs, [name], f"part/{name}") for kind, inputs, name in chain]
    content = onnx.load(write_graph(path, nodes, (16, rows), (16, columns)))
    content.opset_import[0].version = 21
    content.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    onnx.save(content, path)
    return path


@needs_emulator
def test_a_product_of_integers_that_is_too_steep_strays_and_is_named(tmp_path: Path) -> None:
    """The compiler makes 0 of it; w8a8 was timed with six of them."""
    x = {"x": draw(16, 64).numpy() / 3}
    straying = first_straying_tensor(write_integer_product(tmp_path / "steep.onnx", LARGEST_MULTIPLIER + 44), x, DEVICE)
    assert straying is not None
    assert straying.node.startswith("part/product/")
    assert straying.error == pytest.approx(1)
    fair = write_integer_product(tmp_path / "fair.onnx", DECISION_MULTIPLIER)
    assert first_straying_tensor(fair, x, DEVICE) is None


@needs_emulator
@pytest.mark.slow
def test_the_emulator_computes_a_whole_graph_of_integers(tmp_path: Path) -> None:
    network = drawn(micro(PLAIN), seed=0)
    path = tmp_path / "graph.onnx"
    trace_graph(DeployedXDecoder(network, 96, INTEGER_REWRITES).eval().requires_grad_(False), 18, path)
    picture = nn.functional.interpolate(random_pictures(1, 16), size=(1024, 1024), mode="bicubic").clamp(0, 255)
    ids = random_phrases(1)
    text = torch.stack((ids, torch.ones_like(ids))).numpy()
    calibrated = calibrate(prepared(path), [HubInput("0", picture.numpy(), text)], "minmax")
    onnx.save(quantized(calibrated, bits_of(calibrated.nodes, "w8a8")), path)
    inputs = {IMAGE_INPUT.name: picture.numpy(), TEXT_INPUT.name: text}
    compared = compare_borders(path, inputs, DEVICE)
    assert len(compared) > 50
    assert [str(tensor) for tensor in compared if not tensor.error <= INTEGER_TOLERANCE] == []


@needs_emulator
def test_an_overflow_strays(tmp_path: Path) -> None:
    """The largest number of the NPU's fp16 is 131,008; it has no infinity."""
    nodes = [
        helper.make_node("Relu", ["x"], ["rectified"], "first/Relu_0"),
        helper.make_node("Mul", ["rectified", "rectified"], ["squares"], "second/Mul_1"),
        helper.make_node("Sqrt", ["squares"], ["y"], "third/Sqrt_2"),
    ]
    graph = write_graph(tmp_path / "squares.onnx", nodes, (1, 16), (1, 16))
    straying = first_straying_tensor(graph, {"x": np.full((1, 16), 400, np.float32)}, DEVICE)
    assert straying is not None
    assert (straying.node, straying.largest) == ("second/Mul_1", 400**2)
    assert straying.error == pytest.approx(1 - 131_008 / 400**2, abs=1e-4)


@needs_emulator
def test_what_only_a_comparison_reads_may_overflow(tmp_path: Path) -> None:
    """As in the masks' comparison: times 30,000, between -1 and 1."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["large"], "mask/Mul_0"),
        helper.make_node("Sigmoid", ["large"], ["sign"], "mask/Sigmoid_1"),
        helper.make_node("Neg", ["sign"], ["y"], "mask/Neg_2"),
    ]
    graph = write_graph(tmp_path / "steep.onnx", nodes, (1, 16), (1, 16))
    x = np.linspace(300, 900, 16, dtype=np.float32)[None]
    assert [tensor.node for tensor in compare_borders(graph, {"x": x}, DEVICE)] == ["mask/Neg_2"]
    assert first_straying_tensor(graph, {"x": x}, DEVICE) is None


@needs_emulator
def test_a_graph_that_the_emulator_refuses_is_an_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"], "part/NonZero_0"),
        helper.make_node("Cast", ["places"], ["y"], "part/Cast_1", to=onnx.TensorProto.FLOAT),
    ]
    graph = write_graph(tmp_path / "refused.onnx", nodes, (4,), (1, 4))
    with pytest.raises(RuntimeError, match=r"got exit code 1 from the HTP emulator, comparing tensors: .+"):
        first_straying_tensor(graph, {"x": np.ones(4, np.float32)}, DEVICE)


def test_the_relative_error_is_of_lengths() -> None:
    assert relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.array([1.0, np.nan]), np.ones(2)) == np.inf
    assert relative_error(np.array([1.0, np.inf]), np.ones(2)) == np.inf


def test_of_many_parts_some_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spread over the graph, its output among them."""
    names = ["x", *[f"t{index}" for index in range(9)], "y"]
    nodes = [
        helper.make_node("Relu", [source], [target], f"part{index}/Relu_{index}")
        for index, (source, target) in enumerate(pairwise(names))
    ]
    graph = write_graph(tmp_path / "long.onnx", nodes, (1, 4), (1, 4))
    asked = []

    def record(_content: onnx.ModelProto, nodes: list[onnx.NodeProto], *_: Any) -> list[Any]:
        asked.extend(node.output[0] for node in nodes)
        return []

    monkeypatch.setattr(tensors, "MOST_TENSORS", 4)
    monkeypatch.setattr(tensors, "_compare", record)
    assert compare_borders(graph, {}, DEVICE) == []
    assert asked == ["t0", "t3", "t6", "y"]


@needs_emulator
@pytest.mark.slow
def test_the_emulator_computes_every_part_of_a_whole_graph(tmp_path: Path) -> None:
    network = drawn(micro(PLAIN), seed=0)
    trace_graph(DeployedXDecoder(network, 96).eval().requires_grad_(False), 18, tmp_path / "graph.onnx")
    picture = nn.functional.interpolate(random_pictures(1, 16), size=(1024, 1024), mode="bicubic").clamp(0, 255)
    ids = random_phrases(1)
    inputs = {IMAGE_INPUT.name: picture.numpy(), TEXT_INPUT.name: torch.stack((ids, torch.ones_like(ids))).numpy()}
    compared = compare_borders(tmp_path / "graph.onnx", inputs, DEVICE)
    assert len(compared) > 50
    assert [str(tensor) for tensor in compared if not tensor.error <= TOLERANCE] == []
