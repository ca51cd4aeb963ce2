"""What is refused before an upload: graphs here, then device, precision and version there."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from onnx import TensorProto, helper, numpy_helper

from promptseg.hubs.aihub import jobs, service
from promptseg.hubs.aihub.preflight import SIGN_IN_WAITS_S, check_graph, check_service
from promptseg.hubs.aihub.service import RefusedError, UnreachableError
from promptseg.hubs.contract import IMAGE_INPUT, PRED_MASK, TEXT_INPUT
from tests.aihub_bench import Bench, Fault
from tests.aihub_bench.state import DEVICES
from tests.aihub_helpers import forget_sleep, give_up_early, hub_config, open_bench_hub
from tests.graphs import RECORD, write_bright_graph, write_refused_graph, write_textless_graph
from tests.imports import ROOT

pytest_plugins = ("tests.aihub_fixtures",)
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
    RECORD.write_into(model)
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


def test_a_graph_that_the_cloud_would_refuse_is_refused_before_it_is_asked(
    bench: Bench, opened: Any, tmp_path: Path
) -> None:
    graph = write_refused_graph(tmp_path / "refused.onnx")
    with pytest.raises(ValueError, match=r"int64 places .of NonZero find_inside"):
        opened().compile(graph, tmp_path / "compiled")
    assert bench.requests.total() == 0


def refusal_of(**changes: Any) -> str:
    with pytest.raises(RefusedError) as refusal:
        check_service(hub_config(**changes))
    return str(refusal.value)


def test_a_check_asks_for_token_device_and_version_and_uploads_nothing(bench: Bench, opened: Any) -> None:
    opened()
    check_service(hub_config())
    assert dict(bench.requests) == {"user": 1, "devices": 1, "frameworks": 1}
    near = "got 'Snapdragon X Elite', wanted a device that AI Hub has; did you mean 'Snapdragon X Elite CRD'"
    assert near in refusal_of(device="Snapdragon X Elite")
    version = "hub.aihub.qairt_version: got '1.0', wanted one of 2.45, 2.46, default, latest"
    assert refusal_of(qairt_version="1.0") == version
    assert not {"new model", "submit"} & bench.requests.keys()


@pytest.mark.parametrize(
    ("device", "lacks"),
    [
        ("RB3 Gen 2 (Proxy)", "whose NPU has no float16"),
        ("Google Pixel 4", "which runs no QNN binaries"),
        ("QCS8550 (Proxy)", ""),
        ("Tomorrow's Device", ""),  # of which the service says nothing
    ],
)
def test_a_device_that_lacks_what_the_precision_needs_is_refused_before_the_upload(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, device: str, lacks: str
) -> None:
    if not lacks:
        assert opened(device=device).compile(graph, tmp_path / "compiled")
        return
    with pytest.raises(RefusedError, match=lacks):
        opened(device=device).compile(graph, tmp_path / "compiled")
    assert lacks in refusal_of(device=device)
    assert not {"new model", "submit"} & bench.requests.keys()


def test_an_adopted_compilation_asks_for_no_device(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    opened().compile(graph, tmp_path / "compiled")
    asked = bench.requests["devices"], bench.requests["frameworks"]
    opened().compile(graph, tmp_path / "again")
    assert (bench.requests["devices"], bench.requests["frameworks"]) == asked


@pytest.mark.parametrize("down", ["refused", "silent"])
def test_a_server_that_is_down_is_noticed_in_less_than_a_minute(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, down: str
) -> None:
    """By the sum of what it would wait: the clock of a busy machine is no measure."""
    longest_s = sum(SIGN_IN_WAITS_S) + 3 * sum(service.SIGN_IN_TIMEOUT_S)
    assert longest_s < 60
    forget_sleep(monkeypatch.setattr)
    give_up_early(monkeypatch.setattr, 0.3)
    with Bench(tmp_path / "bench") as bench:
        if down == "silent":
            hub = open_bench_hub(bench, tmp_path / "mine", monkeypatch)
            bench.faults.append(Fault("user", "late", late_s=0.6))
            with pytest.raises(UnreachableError, match=r"try again.*Nothing was uploaded or submitted"):
                hub.compile(graph, tmp_path / "compiled")
            assert bench.requests["user"] == len(SIGN_IN_WAITS_S) + 1
    if down == "refused":
        hub = open_bench_hub(bench, tmp_path / "mine", monkeypatch)  # the bench takes its environment along
        with pytest.raises(UnreachableError, match=r"service is down.*Nothing was uploaded or submitted"):
            hub.compile(graph, tmp_path / "compiled")
    assert jobs.time.slept_s == sum(SIGN_IN_WAITS_S)


def test_the_docs_quote_a_device_s_name_as_dvc_reads_it(tmp_path: Path) -> None:
    docs = (ROOT / "docs" / "aihub.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`(dvc exp run -S 'hub\.device=.*?')`", docs)
    *_, override = shlex.split(command)
    (tmp_path / "params.yaml").write_text("hub:\n  device: another\n")
    apply_overrides(str(tmp_path / "params.yaml"), [override])
    assert yaml.safe_load((tmp_path / "params.yaml").read_text())["hub"]["device"] in DEVICES
