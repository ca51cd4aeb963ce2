"""Small ONNX graphs for the tests of the hub; none is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from promptseg.datasets.preprocess import CANVAS
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import IMAGE_INPUT, PRED_MASK, TEXT_INPUT, GraphRecord
from promptseg.params import CalibrationConfig, ExportConfig
from promptseg.params.sections import Precision

GRID = 32
RECORD = GraphRecord("nano", 64, "fp16", "ab" * 32, "inside", "bilinear", "crop")  # what each file says of itself
VOCABULARY = 49408
VALUES = {"image_input": IMAGE_INPUT, "text_input": TEXT_INPUT, "pred_mask": PRED_MASK}


class Inputs(list[HubInput]):
    """Samples in the place of GraphInputs."""

    def few(self, count: int) -> "Inputs":
        return Inputs(self[:count])


def export_config(parity_samples: int = 1, precision: Precision = "fp16", **changes: Any) -> ExportConfig:
    """A section `export` of opset 18."""
    calibration = CalibrationConfig(samples=2, method="minmax")
    values = {
        "contract": "challenge",
        "opset": 18,
        "parity_samples": parity_samples,
        "calibration": calibration,
        "keep": None,
    }
    return ExportConfig(precision=precision, **values | changes)


def write_bright_graph(path: Path) -> Path:
    """Write a graph of the contract: inside where the picture is brighter than a threshold that the first id moves.

    Pixels in 32x32 cells: mean over channels > 64 (ids below 20000) or > 192 (the rest).
    """
    thresholds = np.where(np.arange(VOCABULARY) < 20000, 64, 192).astype(np.float32)
    spread = np.repeat(np.eye(GRID, dtype=np.float32), CANVAS // GRID, axis=0)  # (CANVAS, GRID)
    constants = {
        "zero": np.array(0, np.int32),
        "thresholds": thresholds,
        "steepness": np.array(1.0, np.float32),
        "rows": spread,
        "columns": spread.T.copy(),
        "mean_weight": np.full((1, 3, CANVAS // GRID, CANVAS // GRID), GRID**2 / CANVAS**2 / 3, np.float32),
        "cell_shape": np.array([GRID, GRID], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["image_input", "mean_weight"], ["grey"], strides=[CANVAS // GRID, CANVAS // GRID]),
        helper.make_node("Reshape", ["grey", "cell_shape"], ["grid"]),
        helper.make_node("Gather", ["text_input", "zero"], ["ids"], axis=0),  # (1, 77)
        helper.make_node("Gather", ["ids", "zero"], ["phrase"], axis=0),  # (77,)
        helper.make_node("Gather", ["phrase", "zero"], ["first_id"], axis=0),  # ()
        helper.make_node("Gather", ["thresholds", "first_id"], ["threshold"], axis=0),
        helper.make_node("Sub", ["grid", "threshold"], ["above"]),
        helper.make_node("Mul", ["above", "steepness"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["soft"]),
        helper.make_node("MatMul", ["rows", "soft"], ["tall"]),
        helper.make_node("MatMul", ["tall", "columns"], ["pred_mask"]),
    ]
    return _write(path, nodes, constants, ["image_input", "text_input"], ["pred_mask"])


def write_refused_graph(path: Path) -> Path:
    """Write a graph of the contract in which one node, `find_inside`, is a NonZero: the NPU refuses it."""
    constants = {"axes": np.array([0, 1], np.int64), "zero": np.array([0.0], np.float32)}
    nodes = [
        helper.make_node("ReduceMean", ["image_input", "axes"], ["grey"], keepdims=0),
        helper.make_node("NonZero", ["text_input"], ["places"], name="find_inside"),
        helper.make_node("Cast", ["places"], ["numbers"], name="to_float", to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "zero"], ["nothing"]),
        helper.make_node("Add", ["grey", "nothing"], ["pred_mask"]),
    ]
    return _write(path, nodes, constants, ["image_input", "text_input"], ["pred_mask"])


def write_textless_graph(path: Path) -> Path:
    """Write a graph that lacks the contract's text input."""
    constants = {"axes": np.array([0, 1], np.int64)}
    nodes = [helper.make_node("ReduceMean", ["image_input", "axes"], ["pred_mask"], keepdims=0)]
    return _write(path, nodes, constants, ["image_input"], ["pred_mask"])


def split_picture(sample_id: str, dark: float, bright: float, first_id: int) -> HubInput:
    """Make a sample whose upper half has the grey value `dark` and whose lower half has `bright`."""
    image_input = np.full(IMAGE_INPUT.shape, dark, np.float32)
    image_input[:, :, CANVAS // 2 :] = bright
    text_input = np.ones(TEXT_INPUT.shape, np.int32)
    text_input[0, 0, 0] = first_id
    return HubInput(sample_id, image_input, text_input)


def _write(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], inputs: list[str], outputs: list[str]
) -> Path:
    graph = helper.make_graph(
        nodes,
        "test",
        [_value(name) for name in inputs],
        [_value(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    RECORD.write_into(model)
    onnx.save(model, path)
    return path


def _value(name: str) -> onnx.ValueInfoProto:
    spec = VALUES[name]
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(name, dtype, spec.shape)
