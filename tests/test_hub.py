import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from graphs import RECORD, write_bright_graph

from promptseg.files import sha256_of
from promptseg.hubs.base import (
    MANIFEST,
    Binary,
    CompiledGraphs,
    HostLatency,
    HubInput,
    HubOutput,
    LatencyProfile,
    Layer,
    read_compiled,
    write_layers,
)
from promptseg.hubs.contract import IMAGE_INPUT, TEXT_INPUT, ChallengeGraphs, read_graphs
from tests.aihub_helpers import hub_config

COMPILED = CompiledGraphs(
    backend="local",
    device="Snapdragon X Elite CRD",
    contract="lpcvc-2025-track-2",
    model="nano",
    res=320,
    runtime="QNN context binary",
    precision="fp16",
    placed_on_npu=True,
    graph_sha256="00",
    binaries=(Binary("model", "00", "model_qnn.bin", 3, "01", "model.onnx"),),
    chip="SC8380XP, v73",
    service=None,
    account=None,
    tool_versions={"onnxruntime": "1.32.0"},
    note="",
)


def test_manifest_survives_a_round_trip(tmp_path):
    COMPILED.write(tmp_path)
    assert CompiledGraphs.read(tmp_path) == COMPILED


def test_a_missing_manifest_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"hub-compile"):
        CompiledGraphs.read(tmp_path)


@pytest.mark.parametrize("change", [{"colour": "red"}, {"device": None}])
def test_a_manifest_of_another_version_names_the_field(tmp_path, change):
    content = asdict(COMPILED) | change
    content = {name: value for name, value in content.items() if name != "device" or value is not None}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=next(iter(change))):
        CompiledGraphs.read(tmp_path)


def test_profile_nests_the_hosts_figures_and_keeps_unknowns_empty():
    host = HostLatency(latency_ms_cpu=2.0, latency_ms_cpu_low=1.0, latency_ms_cpu_high=3.0, runs=3, threads=2, cpu="x")
    content = LatencyProfile(device="d", placed_on_npu=False, note="n").to_json(COMPILED, host)
    assert content["host"]["latency_ms_cpu"] == 2.0
    assert content["latency_ms_estimated"] is None
    assert "latency_ms_cpu" not in content
    assert (content["model"], content["res"], content["precision"], content["graph_sha256"]) == (
        "nano",
        320,
        "fp16",
        "00",
    )
    assert content["tool_versions"] == COMPILED.tool_versions


@pytest.mark.parametrize(
    ("figure", "runner"),
    [
        ({"latency_ms_device": 5.0, "latency_ms_simulated": 4.0}, "d"),
        ({"latency_ms_simulated": 4.0}, "Qualcomm's performance simulator"),
        ({}, ""),
    ],
)
def test_a_profile_says_what_its_figures_are_from(figure, runner):
    assert LatencyProfile(device="d", placed_on_npu=True, note="", **figure).runner == runner


def test_an_input_of_the_wrong_type_names_its_sample():
    image_input = np.zeros(IMAGE_INPUT.shape, np.float32)
    with pytest.raises(ValueError, match=r"cat-3: got text_input as int64"):
        HubInput("cat-3", image_input, np.zeros(TEXT_INPUT.shape, np.int64))


@pytest.fixture
def compiled(tmp_path):
    """A graph and the folder of its compilation, as far as `read_compiled` looks."""
    graph, folder = write_bright_graph(tmp_path / "model.onnx"), tmp_path / "compiled"
    folder.mkdir()
    (folder / "model_qnn.bin").write_bytes(b"bin")
    binary = replace(
        COMPILED.binaries[0], graph_sha256=sha256_of(graph), binary_sha256=sha256_of(folder / "model_qnn.bin")
    )
    manifest = replace(COMPILED, graph_sha256=sha256_of(graph), binaries=(binary,))
    manifest.write(folder)
    return graph, folder, manifest


CONFIG = hub_config(backend="local")


def test_a_compilation_is_read_where_all_agrees(compiled):
    graph, folder, manifest = compiled
    assert read_compiled(read_graphs(graph), folder, CONFIG) == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph_sha256": "0" * 64}, "got a compilation of another graph"),
        ({"backend": "aihub"}, "compiled for the backend 'aihub', wanted 'local'"),
        ({"device": "Abacus"}, "compiled for the device 'Abacus', wanted 'Snapdragon X Elite CRD'"),
        ({"binary_sha256": "0" * 64}, r"model_qnn\.bin: got another file than the one that was compiled"),
        ({"binary_file": "gone.bin"}, r"gone\.bin: got another file than the one that was compiled, or none"),
    ],
)
def test_a_compilation_of_something_else_is_refused_with_the_remedy(compiled, change, message):
    graph, folder, manifest = compiled
    whole = {name: value for name, value in change.items() if name in ("backend", "device")}
    part = {name: value for name, value in change.items() if name not in whole}
    replace(manifest, **whole, binaries=(replace(manifest.binaries[0], **part),)).write(folder)
    with pytest.raises(ValueError, match=rf"{message}.*; run `dvc repro --force --single-item hub-compile`"):
        read_compiled(read_graphs(graph), folder, CONFIG)


def test_what_is_no_number_is_counted():
    pred_mask = np.zeros((1024, 1024), np.float32)
    pred_mask[0, :3] = np.nan, np.inf, 1.0
    output = HubOutput.decide(ChallengeGraphs(RECORD, ()), "a", {"pred_mask": pred_mask})
    assert (output.non_finite, int(output.pred_mask.sum())) == (2, 2)


def test_layers_are_a_table_of_their_own(tmp_path):
    host = HostLatency(latency_ms_cpu=2.0, latency_ms_cpu_low=1.0, latency_ms_cpu_high=3.0, runs=3, threads=2, cpu="x")
    layers = [Layer("conv, first", "NPU", ms=1.5), Layer("softmax", "CPU", cycles=12)]
    profile = LatencyProfile(device="d", placed_on_npu=True, note="", layers=layers)
    assert "layers" not in profile.to_json(COMPILED, host)
    write_layers(tmp_path / "layers.csv", profile.layers)
    assert (tmp_path / "layers.csv").read_text() == 'name,unit,ms,cycles\n"conv, first",NPU,1.5,\nsoftmax,CPU,,12\n'
