import pytest
from graphs import write_bright_graph, write_textless_graph

from promptseg.hubs.graph_border import check_border


def test_a_graph_of_the_contract_passes(tmp_path):
    check_border(write_bright_graph(tmp_path / "model.onnx"))


def test_a_graph_without_text_is_refused_with_both_sides(tmp_path):
    graph = write_textless_graph(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"got inputs image_input .* wanted .*text_input int32 \[2, 1, 77\]"):
        check_border(graph)


def test_a_missing_file_names_the_stage(tmp_path):
    with pytest.raises(ValueError, match="dvc repro export"):
        check_border(tmp_path / "model.onnx")


def test_a_truncated_file_is_refused(tmp_path):
    graph = write_bright_graph(tmp_path / "model.onnx")
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no ONNX"):
        check_border(graph)
