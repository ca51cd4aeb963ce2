import json
from dataclasses import asdict

import numpy as np
import pytest

from promptseg.hubs.base import MANIFEST, CompiledGraph, HostLatency, HubInput, LatencyProfile
from promptseg.hubs.contract import IMAGE_INPUT, TEXT_INPUT

COMPILED = CompiledGraph(
    backend="local",
    device="Snapdragon X Elite CRD",
    runtime="QNN context binary",
    precision="float16",
    placed_on_npu=True,
    graph_sha256="00",
    binary_file="model_qnn.bin",
    binary_bytes=3,
    binary_sha256="01",
    wrapper_file="model.onnx",
    job_id=None,
    job_address=None,
    service=None,
    account=None,
    tool_versions={"onnxruntime": "1.32.0"},
    note="",
)


def test_manifest_survives_a_round_trip(tmp_path):
    COMPILED.write(tmp_path)
    assert CompiledGraph.read(tmp_path) == COMPILED


def test_a_missing_manifest_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"hub-compile"):
        CompiledGraph.read(tmp_path)


@pytest.mark.parametrize("change", [{"colour": "red"}, {"device": None}])
def test_a_manifest_of_another_version_names_the_field(tmp_path, change):
    content = asdict(COMPILED) | change
    content = {name: value for name, value in content.items() if name != "device" or value is not None}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=next(iter(change))):
        CompiledGraph.read(tmp_path)


def test_profile_nests_the_hosts_figures_and_keeps_unknowns_empty():
    host = HostLatency(latency_ms_cpu=2.0, latency_ms_cpu_low=1.0, latency_ms_cpu_high=3.0, runs=3, threads=2, cpu="x")
    content = LatencyProfile(device="d", placed_on_npu=False, note="n").to_json(host)
    assert content["host"]["latency_ms_cpu"] == 2.0
    assert content["latency_ms_estimated"] is None
    assert "latency_ms_cpu" not in content


def test_an_input_of_the_wrong_type_names_its_sample():
    image_input = np.zeros(IMAGE_INPUT.shape, np.float32)
    with pytest.raises(ValueError, match=r"cat-3: got text_input as int64"):
        HubInput("cat-3", image_input, np.zeros(TEXT_INPUT.shape, np.int64))
