import os
from dataclasses import replace

import numpy as np
import pytest
from graphs import RECORD, split_picture, write_bright_graph, write_refused_graph, write_textless_graph

from promptseg.files import sha256_of
from promptseg.hubs.base import MANIFEST, SLOWEST, CompiledGraphs
from promptseg.hubs.devices import devices, find_device
from promptseg.hubs.host import masks_on_host
from promptseg.hubs.local import hub, process, session, tensors
from promptseg.hubs.local import profile as local_profile
from promptseg.hubs.local.hub import NOTHING_COMPILED, LocalHub
from promptseg.hubs.local.profile import BINARY, WRAPPER
from promptseg.hubs.local.session import qnn_available
from tests.aihub_helpers import hub_config

CONFIG = hub_config(backend="local", emulator_samples=2, cpu_latency_runs=2)
needs_compiler = pytest.mark.skipif(not qnn_available(), reason="no onnxruntime-qnn with an HTP library here")
SAMPLES = [split_picture("a", 30, 120, first_id=5), split_picture("b", 30, 250, first_id=30000)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.fixture
def no_wheel(monkeypatch):
    monkeypatch.setattr(session, "onnxruntime_qnn", None)


def test_an_unknown_device_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="Snapdragon X Elite CRD"):
        LocalHub(replace(CONFIG, device="Pixel 9"), tmp_path)


@pytest.mark.usefixtures("no_wheel")
def test_without_the_wheel_nothing_is_compiled_and_all_records_say_so(graph, tmp_path, caplog):
    opened = LocalHub(CONFIG, tmp_path / "cache")
    compiled = opened.compile(graph, tmp_path / "compiled")
    profile = opened.profile(graph, tmp_path / "compiled")
    assert not compiled.placed_on_npu
    assert compiled.note == profile.note == NOTHING_COMPILED
    assert NOTHING_COMPILED in caplog.text
    assert [path.name for path in (tmp_path / "compiled").iterdir()] == [MANIFEST]
    assert profile.latency_ms_estimated is None
    assert profile.binary_mb is None


@pytest.mark.usefixtures("no_wheel")
def test_without_the_wheel_nothing_is_emulated(graph, tmp_path):
    opened = LocalHub(CONFIG, tmp_path / "cache")
    opened.compile(graph, tmp_path / "compiled")
    with pytest.raises(ValueError, match="nothing that was compiled for the NPU"):
        opened.run(graph, tmp_path / "compiled", SAMPLES)


@pytest.mark.usefixtures("no_wheel")
def test_a_compilation_of_another_graph_is_refused(graph, tmp_path):
    opened = LocalHub(CONFIG, tmp_path / "cache")
    compiled = opened.compile(graph, tmp_path / "compiled")
    replace(compiled, graph_sha256="0" * 64).write(tmp_path / "compiled")
    with pytest.raises(ValueError, match="another graph"):
        opened.run(graph, tmp_path / "compiled", SAMPLES)


@pytest.mark.usefixtures("no_wheel")
def test_a_binary_without_the_tools_to_run_it_is_refused(graph, tmp_path):
    opened = LocalHub(CONFIG, tmp_path / "cache")
    compiled = opened.compile(graph, tmp_path / "compiled")
    replace(compiled, placed_on_npu=True).write(tmp_path / "compiled")
    with pytest.raises(ValueError, match="no onnxruntime-qnn here"):
        opened.profile(graph, tmp_path / "compiled")


def test_a_graph_with_other_inputs_leaves_nothing_behind(tmp_path):
    graph = write_textless_graph(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="text_input"):
        LocalHub(CONFIG, tmp_path / "cache").compile(graph, tmp_path / "compiled")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@needs_compiler
@pytest.mark.slow
def test_a_refused_graph_leaves_an_earlier_compilation_alone(graph, tmp_path):
    opened = LocalHub(CONFIG, tmp_path / "cache")
    earlier = opened.compile(graph, tmp_path / "compiled")
    with pytest.raises(ValueError, match="NonZero 'find_inside'"):
        opened.compile(write_refused_graph(tmp_path / "refused.onnx"), tmp_path / "compiled")
    assert CompiledGraphs.read(tmp_path / "compiled") == earlier
    assert {path.name for path in tmp_path.iterdir()} == {"compiled", "refused.onnx"}


@needs_compiler
@pytest.mark.slow
def test_the_same_graph_compiles_to_the_same_bytes_and_the_same_figures_anywhere(graph, tmp_path):
    copy = tmp_path / "elsewhere" / "model.onnx"
    copy.parent.mkdir()
    copy.write_bytes(graph.read_bytes())
    opened = LocalHub(CONFIG, tmp_path / "cache")
    first, second = opened.compile(graph, tmp_path / "first"), opened.compile(copy, tmp_path / "second")
    assert first == second
    assert (tmp_path / "first" / WRAPPER).read_bytes() == (tmp_path / "second" / WRAPPER).read_bytes()
    profiles = [opened.profile(graph, tmp_path / "first"), opened.profile(copy, tmp_path / "second")]
    assert profiles[0] == profiles[1]


@needs_compiler
@pytest.mark.slow
def test_a_real_compilation_is_profiled_and_emulated(graph, tmp_path, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    opened = LocalHub(CONFIG, cache)
    compiled = opened.compile(graph, tmp_path / "compiled")
    assert compiled.placed_on_npu
    assert compiled.binary_bytes == (tmp_path / "compiled" / BINARY).stat().st_size
    files = sorted(tmp_path.rglob("*"))
    profile = opened.profile(graph, tmp_path / "compiled")
    assert sorted(tmp_path.rglob("*")) == files  # whatever the compiler writes besides stays in its own folder
    names = {f"{sha256_of(graph)[:16]}-{device.simulated_chip.soc_model}.json" for device in devices()}
    assert {path.name for path in (cache / "simulations").iterdir()} == names
    with monkeypatch.context() as patched:  # another device of the same chips: nothing is simulated again
        patched.setattr(local_profile, "run_compiler", None)
        assert opened.profile(graph, tmp_path / "compiled") == profile
    assert 0 < profile.latency_ms_simulated_low <= profile.latency_ms_simulated <= profile.latency_ms_simulated_high
    line = find_device(CONFIG.device).lines["fp16"]
    assert profile.latency_ms_estimated == pytest.approx(line(profile.latency_ms_simulated), abs=1e-3)
    assert {row["device"] for row in profile.estimates} == {device.name for device in devices()}
    assert sum(profile.simulated_parts_ms.values()) == pytest.approx(profile.latency_ms_simulated, rel=0.02)
    assert 0 < len(profile.layers) <= SLOWEST
    assert sum(layer.ms for layer in profile.layers) <= profile.latency_ms_simulated * 1.02
    assert profile.ddr_read_mb > 1024 * 1024 * 3 * 4 / 1e6  # at least the float32 picture
    emulated = list(opened.run(graph, tmp_path / "compiled", SAMPLES))
    assert [output.sample_id for output in emulated] == ["a", "b"]
    for got, wanted in zip(emulated, masks_on_host(graph, SAMPLES), strict=True):
        assert np.mean(got.pred_mask != wanted.pred_mask) < 0.001


@pytest.mark.usefixtures("no_wheel")
def test_a_manifest_says_which_network_at_which_size_and_precision(graph, tmp_path):
    compiled = LocalHub(CONFIG, tmp_path / "cache").compile(graph, tmp_path / "compiled")
    assert (compiled.model, compiled.res, compiled.precision) == (RECORD.model, RECORD.res, "fp32")


def test_another_version_of_the_compiler_means_compile_again(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "qnn_available", lambda: False)
    compiled = LocalHub(CONFIG, tmp_path / "cache").compile(graph, tmp_path / "compiled")
    monkeypatch.setattr(hub, "qnn_available", lambda: True)
    monkeypatch.setattr(hub, "tool_versions", lambda: {"onnxruntime_qnn": "3.0", "qnn_sdk": "2.51"})
    replace(compiled, tool_versions={"onnxruntime_qnn": "2.7.0", "qnn_sdk": "2.51"}).write(tmp_path / "compiled")
    message = r"compiled by onnxruntime_qnn 2\.7\.0, here 3\.0; run `dvc repro --force --single-item hub-compile`"
    with pytest.raises(ValueError, match=message):
        LocalHub(CONFIG, tmp_path / "cache").profile(graph, tmp_path / "compiled")


@pytest.mark.skipif(os.name == "nt", reason="the fake compiler is a shell script")
@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("kill -9 $$", ChildProcessError, r"model\.onnx: got the compiler killed \(signal 9\)"),
        ("touch {out}; echo 'No space left on device' >&2; exit 1", OSError, "make room and run again"),
        ("touch {out}; kill -INT $PPID; sleep 20", KeyboardInterrupt, "^$"),
    ],
)
def test_a_compiler_that_does_not_finish_leaves_nothing_and_is_one_error(
    graph, tmp_path, monkeypatch, script, error, message
):
    program = tmp_path / "compiler"
    program.write_text("#!/bin/sh\n" + script.format(out=tmp_path / "compiled.part" / "half"))
    program.chmod(0o755)
    monkeypatch.setattr(hub, "qnn_available", lambda: True)
    monkeypatch.setattr(process.sys, "executable", str(program))
    with pytest.raises(error, match=message) as caught:
        LocalHub(CONFIG, tmp_path / "cache").compile(graph, tmp_path / "compiled")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["compiler"]


def test_a_graph_is_copied_where_links_are_not_allowed(graph, tmp_path, monkeypatch):
    def refuse(*_arguments, **_keywords):
        raise OSError(22, "A required privilege is not held by the client")

    monkeypatch.setattr(local_profile.Path, "symlink_to", refuse)
    local_profile._link(graph, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == graph.read_bytes()


def test_the_first_straying_tensor_is_asked_for_with_the_samples_tensors(graph, monkeypatch, tmp_path):
    asked = []

    def compare(path, inputs, device):
        asked.append((path, sorted(inputs), device.name))
        return "AveragePool pool/AveragePool_3 [1, 8, 4, 4]: relative error 0.6"

    monkeypatch.setattr(tensors, "first_straying_tensor", compare)
    assert (
        LocalHub(CONFIG, tmp_path / "cache").explain(graph, SAMPLES[0])
        == "AveragePool pool/AveragePool_3 [1, 8, 4, 4]: relative error 0.6"
    )
    assert asked == [(graph, ["image_input", "text_input"], CONFIG.device)]


def test_a_comparison_that_fails_hides_no_other_error(graph, monkeypatch, tmp_path):
    def fail(*_arguments):
        raise RuntimeError("no memory")

    monkeypatch.setattr(tensors, "first_straying_tensor", fail)
    assert LocalHub(CONFIG, tmp_path / "cache").explain(graph, SAMPLES[0]) == "not found (no memory)"
