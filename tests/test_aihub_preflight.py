from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from promptseg.hubs.aihub.preflight import check_graph
from promptseg.hubs.contract import IMAGE_INPUT, PRED_MASK, TEXT_INPUT
from tests.graphs import write_bright_graph, write_refused_graph, write_textless_graph

Node = onnx.NodeProto


def write(path: Path, nodes: list[Node], **constants: np.ndarray) -> Path:
    """Write a graph of the contract whose output is the picture's first channel plus `extra`, float [1]."""
    head = [
        helper.make_node("Gather", ["image_input", "zero"], ["picture"], axis=0),
        helper.make_node("Gather", ["picture", "zero"], ["channel"], axis=0),
    ]
    tail = [helper.make_node("Add", ["channel", "extra"], ["pred_mask"])]
    values = {"zero": np.array(0, np.int32), **constants}
    border = [
        helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape)
        for spec in (IMAGE_INPUT, TEXT_INPUT, PRED_MASK)
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph([*head, *nodes, *tail], "test", border[:2], border[2:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def cast(source: str, target: str, to: int) -> Node:
    return helper.make_node("Cast", [source], [target], name=f"to_{target}", to=to)


def argmax(target: str) -> Node:
    return helper.make_node("ArgMax", ["channel"], [target], name="best", axis=1, keepdims=0)


FIRST = np.array([0], np.int64)


def test_a_plain_graph_passes(tmp_path: Path) -> None:
    check_graph(write_bright_graph(tmp_path / "m.onnx"))


def test_the_contract_is_held_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got inputs"):
        check_graph(write_textless_graph(tmp_path / "m.onnx"))


def test_shapes_that_depend_on_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"int64 places .of NonZero find_inside.*a shape that depends on data"):
        check_graph(write_refused_graph(tmp_path / "m.onnx"))


def test_int64_numbers_are_refused(tmp_path: Path) -> None:
    nodes = [
        cast("channel", "whole", TensorProto.INT64),
        helper.make_node("Mul", ["whole", "whole"], ["square"], name="square"),
        cast("square", "extra", TensorProto.FLOAT),
    ]
    with pytest.raises(
        ValueError, match=r"got 2 tensors .*int64 whole .of Cast to_whole.; int64 square .of Mul square"
    ):
        check_graph(write(tmp_path / "m.onnx", nodes))


def test_doubles_are_refused(tmp_path: Path) -> None:
    nodes = [cast("channel", "fine", TensorProto.DOUBLE), cast("fine", "extra", TensorProto.FLOAT)]
    with pytest.raises(ValueError, match="double fine"):
        check_graph(write(tmp_path / "m.onnx", nodes))


def test_logic_is_refused_and_a_comparison_that_becomes_numbers_is_not(tmp_path: Path) -> None:
    above = helper.make_node("Greater", ["channel", "limit"], ["above"], name="above")
    limit = np.array(3, np.float32)
    check_graph(write(tmp_path / "m.onnx", [above, cast("above", "extra", TensorProto.FLOAT)], limit=limit))
    nodes = [
        above,
        helper.make_node("Not", ["above"], ["below"], name="below"),
        cast("below", "extra", TensorProto.FLOAT),
    ]
    with pytest.raises(ValueError, match=r"bool above .of Greater above.; bool below .of Not below"):
        check_graph(write(tmp_path / "n.onnx", nodes, limit=limit))


def test_an_index_is_let_through_and_computing_with_it_is_not(tmp_path: Path) -> None:
    row = [
        argmax("best"),
        helper.make_node("Gather", ["best", "zero"], ["one"], axis=0),
        helper.make_node("Gather", ["channel", "one"], ["extra"], axis=0),
    ]
    moved = [
        argmax("best"),
        helper.make_node("Reshape", ["best", "flat"], ["all"]),
        helper.make_node("Gather", ["channel", "all"], ["extra"], axis=0),
    ]
    check_graph(write(tmp_path / "m.onnx", moved, flat=np.array([-1], np.int64)))
    with pytest.raises(ValueError, match=r"int64 one .of Gather"):
        check_graph(write(tmp_path / "n.onnx", row))


def test_weights_beside_the_graph_are_refused(tmp_path: Path) -> None:
    model = onnx.load(write_bright_graph(tmp_path / "plain.onnx"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(ValueError, match="weights in a file of their own"):
        check_graph(tmp_path / "m.onnx")
