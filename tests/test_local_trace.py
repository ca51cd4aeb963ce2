"""The simulator's timeline, read from files written in the tool's layout."""

import json
import struct
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.timeline import THE_COMPILERS, group_of
from promptseg.export.deployed_graph import DeployedXDecoder
from promptseg.export.onnx_export import trace_graph
from promptseg.hubs.local.trace import PARTS, NodeTime, add_up, part_of, part_times_ms, read_timeline
from tests.networks import micro_network

CONV, ADD, UNNAMED = 21, 22, 99
MATRIX, VECTOR, MEMORY = 0, 1, 5


def event(number: int, thread: int, start: int, cycles: int, name: str = "q::Op") -> dict[str, Any]:
    args = {"id": hex(0x7A1C << 32 | number)}
    return {"name": name, "ph": "X", "tid": thread, "pid": 0, "ts": start, "dur": cycles, "args": args}


def write(folder: Path, events: list[dict[str, Any]]) -> tuple[Path, Path]:
    trace = {"traceEvents": events, "Hextimate Configuration": {"sim_core_freq": 1.0}}  # 1000 cycles are 1 ms
    text = json.dumps(trace).replace('{"traceEvents"', '{ \n  "traceEvents"', 1)
    log, binary = folder / "profile_qnn.log", folder / "model_qnn.bin"
    log.write_bytes(b"\x80\xea\0\x04" + text.encode() + b"\0\x01QNN trailer}")
    names = b"".join(
        b"\xe4\xff\xff\xff" + struct.pack("<III", number, 4, len(name)) + name.encode() + b"\0\0"
        for number, name in ((ADD, "decoder/Add_7"), (CONV, "backbone.stages.0/Conv_1"))
    )
    binary.write_bytes(bytes(range(256)) + names + bytes(64))
    return log, binary


def test_each_moment_is_divided_among_what_computes_then(tmp_path: Path) -> None:
    events = [
        event(CONV, MATRIX, 0, 1000),
        event(ADD, VECTOR, 500, 1000),
        event(ADD, VECTOR + 1, 500, 500),
        event(CONV, MEMORY, 0, 2000, "default_dma (@Fill)"),
        {"name": "TCM usage", "ph": "C", "pid": 0, "ts": 3, "args": {"Bytes": 0}},
    ]
    times = read_timeline(*write(tmp_path, events))
    # 0 to 500 the convolution alone; 500 to 1000 three compute; to 1500 the addition; to 2000 only the memory moves.
    assert times["backbone.stages.0/Conv_1"].elapsed_ms == pytest.approx(0.5 + 0.5 / 3 + 0.5)
    assert times["decoder/Add_7"].elapsed_ms == pytest.approx(0.5 * 2 / 3 + 0.5)
    assert sum(time.elapsed_ms for time in times.values()) == pytest.approx(2.0)
    assert times["backbone.stages.0/Conv_1"].matrix_ms == pytest.approx(1.0)
    assert times["backbone.stages.0/Conv_1"].memory_ms == pytest.approx(2.0)
    assert times["decoder/Add_7"].vector_ms == pytest.approx(1.5)


def test_the_thread_that_waits_computes_nothing(tmp_path: Path) -> None:
    events = [event(ADD, MATRIX, 0, 1000, "default_hvx_spawn (q::Add)"), event(CONV, VECTOR, 0, 1000)]
    times = read_timeline(*write(tmp_path, events))
    assert times["decoder/Add_7"].elapsed_ms == 0
    assert times["backbone.stages.0/Conv_1"].elapsed_ms == pytest.approx(1.0)


def test_what_bears_no_nodes_name_is_the_compilers_or_the_borders(tmp_path: Path) -> None:
    times = read_timeline(*write(tmp_path, [event(UNNAMED, VECTOR, 0, 10), event(2, MEMORY, 10, 10)]))
    assert set(times) == {"<compiler>", "<input>"}


def test_a_log_without_a_timeline_is_refused(tmp_path: Path) -> None:
    log, binary = write(tmp_path, [])
    log.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"profile_qnn\.log: got no timeline, wanted one"):
        read_timeline(log, binary)


def test_times_are_added_up_by_part_of_the_network() -> None:
    nodes = {
        "graph/Resize_0": 1.0,
        "<input>": 0.25,
        "network.backbone.stages.0/Conv_1": 2.0,
        "network.backbone/Add_9": 0.5,
        "decoder.cross_attentions.2/MatMul_7": 0.125,
        "network.mask_decoder.layers.2/Add_8": 0.125,
        "decoders/Add": 4.0,
        "Transpose_token_3": 3.0,
    }
    parts = part_times_ms({name: NodeTime(elapsed_ms=ms) for name, ms in nodes.items()})
    assert parts == {
        "picture": 1.25, "backbone": 2.5, "pixel_decoder": 0, "text_encoder": 0, "decoder": 0.25, "mask": 0, "other": 7,
    }  # fmt: skip


def test_all_times_of_a_group_are_added_up() -> None:
    times = {"a/1": NodeTime(1.0, 2.0, 3.0, 4.0), "a/2": NodeTime(0.5, 0.5, 0.5, 0.5), "b/1": NodeTime(memory_ms=1.0)}
    groups = add_up(times, lambda node: node[0])
    assert groups == {"a": NodeTime(1.5, 2.5, 3.5, 4.5), "b": NodeTime(memory_ms=1.0)}
    assert times["a/1"] == NodeTime(1.0, 2.0, 3.0, 4.0)


@pytest.fixture(scope="module")
def node_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the deployed graph as the exporter names its nodes, after the network's modules."""
    graph = tmp_path_factory.mktemp("graph") / "model.onnx"
    trace_graph(DeployedXDecoder(micro_network(), 64).eval().requires_grad_(False), 18, graph)
    return [node.name for node in onnx.load(graph).graph.node]


@pytest.mark.slow
def test_every_node_of_the_deployed_graph_belongs_to_a_known_part(node_names: list[str]) -> None:
    """Where a module gets another name, its milliseconds would move to `other` without a word."""
    assert {part_of(name) for name in node_names} == set(PARTS)


@pytest.mark.slow
def test_every_node_of_the_deployed_graph_belongs_to_a_group_of_the_benchmarks(node_names: list[str]) -> None:
    groups = {group_of(name) for name in node_names}
    assert THE_COMPILERS not in groups
    layers = {f"decoder, layer {index + 1}" for index in range(4)}
    assert {"backbone, stage 1", "backbone, stage 4", "pyramid, lateral 0", "pyramid, output 1", *layers} <= groups
    assert {"text", "mask features", "the chosen mask", "encoder on the coarsest map"} <= groups
