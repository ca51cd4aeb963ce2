from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from graphs import write_bright_graph, write_textless_graph
from hypothesis import given
from hypothesis import strategies as st

from promptseg.hubs.contract import (
    CHALLENGE,
    IMAGE_INPUT,
    TEXT_INPUT,
    GraphRecord,
    TensorSpec,
    mask_of,
    read_graphs,
    read_record,
)

RECORD = GraphRecord("nano", 320, "fp16", "ab" * 32, "inside", "bilinear", "crop")


def test_borders_are_the_challenges():
    assert TensorSpec("image_input", "float32", (1, 3, 1024, 1024)) == IMAGE_INPUT
    assert TensorSpec("text_input", "int32", (2, 1, 77)) == TEXT_INPUT


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((2, 1, 77), np.int64), "int64 [2, 1, 77]"),
        (np.zeros((1, 2, 77), np.int32), "int32 [1, 2, 77]"),
    ],
)
def test_check_names_owner_got_and_wanted(array, got):
    with pytest.raises(ValueError, match="sample 7") as caught:
        TEXT_INPUT.check(array, "sample 7")
    assert got in str(caught.value)
    assert "int32 [2, 1, 77]" in str(caught.value)


@given(st.lists(st.integers(1, 4), max_size=4), st.sampled_from(["float32", "int32", "bool"]))
def test_check_takes_exactly_its_own_arrays(shape, dtype):
    spec = TensorSpec("tensor", dtype, tuple(shape))
    spec.check(np.zeros(shape, dtype), "owner")
    with pytest.raises(ValueError, match="owner"):
        spec.check(np.zeros([*shape, 1], dtype), "owner")


def test_a_half_and_a_nan_are_outside():
    decided = mask_of(np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), np.nan, 1.0], np.float32))
    assert decided.tolist() == [False, True, False, True]


def write_recorded(path, record):
    content = onnx.load(write_bright_graph(path))
    record.write_into(content)
    onnx.save(content, path)
    return path


def test_a_record_is_read_back(tmp_path):
    assert read_record(write_recorded(tmp_path / "model.onnx", RECORD)) == RECORD


def test_a_record_takes_an_earlier_ones_place_and_leaves_other_metadata(tmp_path):
    content = onnx.load(write_recorded(tmp_path / "model.onnx", RECORD))
    content.metadata_props.add(key="author", value="somebody")
    replace(RECORD, res=590).write_into(content)
    assert len(content.metadata_props) == 1 + len(asdict(RECORD))
    onnx.save(content, tmp_path / "model.onnx")
    assert read_record(tmp_path / "model.onnx") == replace(RECORD, res=590)


def test_a_graph_without_a_record_names_the_stage(tmp_path):
    content = onnx.load(write_bright_graph(tmp_path / "model.onnx"))
    content.ClearField("metadata_props")
    graph = tmp_path / "unrecorded.onnx"
    onnx.save(content, graph)
    with pytest.raises(ValueError, match=r"got a record of the fields none, wanted attends, .*run `dvc repro export`"):
        read_record(graph)


def test_a_record_of_another_contract_is_refused(tmp_path):
    graph = write_recorded(tmp_path / "model.onnx", replace(RECORD, contract="another"))
    with pytest.raises(ValueError, match=f"got a graph of the contract 'another', wanted '{CHALLENGE}'"):
        read_record(graph)


def test_a_record_whose_size_is_no_number_is_refused(tmp_path):
    graph = write_recorded(tmp_path / "model.onnx", replace(RECORD, res="wide"))
    with pytest.raises(ValueError, match="got the record's res 'wide'"):
        read_record(graph)


def test_a_record_is_looked_for_in_an_onnx_file_only(tmp_path):
    with pytest.raises(ValueError, match="got no such file"):
        read_record(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match="no ONNX"):
        read_record(tmp_path / "model.onnx")


def test_a_graph_of_the_contract_passes(tmp_path):
    read_graphs(write_bright_graph(tmp_path / "model.onnx"))


def test_a_graph_without_text_is_refused_with_both_sides(tmp_path):
    graph = write_textless_graph(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"got inputs image_input .* wanted .*text_input int32 \[2, 1, 77\]"):
        read_graphs(graph)


def test_a_missing_file_names_the_stage(tmp_path):
    with pytest.raises(ValueError, match="dvc repro export"):
        read_graphs(tmp_path / "model.onnx")


def test_a_truncated_file_is_refused(tmp_path):
    graph = write_bright_graph(tmp_path / "model.onnx")
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no ONNX"):
        read_graphs(graph)
