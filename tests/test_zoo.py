"""The published networks as integers: the chain's own quantizer, with integers at the border."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from benchmarks.zoo import ZOO, _published, _quantize
from promptseg.export.quantize import prepared

SIDE = 16


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A few convolutions, as zoo exports networks, and what it is calibrated on."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 12**2, 5))
    picture, path = torch.rand(1, 3, SIDE, SIDE), tmp_path_factory.mktemp("zoo") / "model.onnx"
    with pytest.warns(DeprecationWarning, match="legacy TorchScript"):
        torch.onnx.export(layers.eval(), (picture,), path, dynamo=False, opset_version=18)
    return path, picture


@pytest.mark.parametrize(("precision", "dtype"), [("w8a8", np.uint8), ("w8a16", np.uint16)])
def test_a_border_of_integers_gives_the_numbers_that_the_float_one_turns_into_floats(
    network: tuple[Path, torch.Tensor], precision: str, dtype: type[np.unsignedinteger]
) -> None:
    path, picture = network
    floats, integers = (_quantize(path, (picture,), precision, float_border) for float_border in (True, False))
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in floats.graph.initializer}
    (first,) = (node for node in floats.graph.node if floats.graph.input[0].name in node.input)
    (last,) = (node for node in floats.graph.node if floats.graph.output[0].name in node.output)
    assert (first.op_type, last.op_type) == ("QuantizeLinear", "DequantizeLinear")
    scale, zero = (constants[name] for name in first.input[1:])
    steps = np.clip(np.rint(picture.numpy() / scale) + zero, 0, np.iinfo(dtype).max).astype(dtype)
    (wanted,) = run(floats, picture.numpy())
    (got,) = run(integers, steps)
    assert got.dtype == dtype
    scale, zero = (constants[name] for name in last.input[1:])
    assert np.ptp(got) > 100, "an output that is always the same shows nothing"
    np.testing.assert_allclose((got.astype(np.float32) - zero) * scale, wanted, rtol=1e-5)
    assert {node.op_type for node in integers.graph.node} == {node.op_type for node in floats.graph.node}
    assert len(integers.graph.node) == len(floats.graph.node) - 2


def test_a_gelu_is_one_operation_where_nothing_else_is_to_be_fused(network: tuple[Path, torch.Tensor]) -> None:
    """The NPU has no Erf."""
    assert "Erf" in {node.op_type for node in onnx.load(network[0]).graph.node}
    kinds = [node.op_type for node in prepared(network[0]).graph.node]
    assert "Erf" not in kinds
    assert kinds.count("Gelu") == 1


def test_only_what_is_published_in_a_precision_is_simulated_in_it() -> None:
    names = {precision: [name for name, _ in _published([precision], ZOO)] for precision in ("fp16", "w8a8", "w8a16")}
    assert names["fp16"] == list(ZOO)
    assert "resnet50" in names["w8a8"]
    assert "resnet50" not in names["w8a16"]
    assert "bert_base_uncased_hf" in names["w8a16"]


def run(content: onnx.ModelProto, picture: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: picture})
