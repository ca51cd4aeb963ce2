"""The cloud backend against the bench, through the real, unmodified client: what it submits and brings back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
from qai_hub import public_api_pb2 as pb

from promptseg.files import sha256_of
from promptseg.hubs.aihub.hub import latency_of
from promptseg.hubs.aihub.service import RefusedError
from promptseg.hubs.base import SLOWEST, CompiledGraphs, LatencyProfile, Layer
from promptseg.hubs.host import masks_on_host
from tests.aihub_bench import Bench, Fault
from tests.aihub_helpers import DEVICE, ONE_SAMPLE_MB
from tests.graphs import split_picture

pytest_plugins = ("tests.aihub_fixtures",)
SAMPLES = [split_picture(f"s{number}", 30 + number, 120, first_id=number * 15000) for number in range(3)]


def counts(bench: Bench) -> dict[str, int]:
    return {kind: len(bench.state.names(kind)) for kind in ("compile", "profile", "infer")}


def test_a_graph_is_compiled_and_its_manifest_says_by_whom(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    compiled = opened().compile(graph, tmp_path / "compiled")
    assert CompiledGraphs.read(tmp_path / "compiled") == compiled
    assert compiled.binaries[0].binary_file == "model.bin"
    assert compiled.binaries[0].binary_sha256 == sha256_of(tmp_path / "compiled" / "model.bin")
    assert compiled.binaries[0].binary_bytes == (tmp_path / "compiled" / "model.bin").stat().st_size
    assert compiled.graph_sha256 == sha256_of(graph)
    assert compiled.binaries[0].job_address == f"{bench.address}/jobs/{compiled.binaries[0].job_id}/"
    assert compiled.tool_versions["qairt_sdk_version"] == "2.45.0.260326"
    assert compiled.tool_versions["qairt_asked_for"] == "2.45"
    (job,) = bench.state.jobs.values()
    assert job.content.options == (
        "--target_runtime qnn_context_binary --qairt_version 2.45 --output_names pred_mask "
        "--qnn_options default_graph_htp_precision=FLOAT16"
    )
    types = {
        spec.name: (tuple(spec.tensor_type.shape), spec.tensor_type.dtype)
        for spec in job.content.tensor_type_list.types
    }
    assert types == {
        "image_input": ((1, 3, 1024, 1024), pb.TENSOR_DTYPE_FLOAT32),
        "text_input": ((2, 1, 77), pb.TENSOR_DTYPE_INT32),
    }
    assert [device.name for device in job.content.devices.devices] == [DEVICE]


def test_a_profile_is_measured_with_its_spread_and_its_slowest_layers(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    opened().compile(graph, tmp_path / "compiled")
    profile = opened(max_profiler_iterations=7).profile(graph, tmp_path / "compiled")
    assert (profile.latency_ms_device, profile.latency_ms_device_low, profile.latency_ms_device_high) == (
        6.5,
        5.0,
        40.0,
    )
    assert (profile.device_runs, profile.first_load_ms, profile.warm_load_ms) == (4, 310.0, 52.0)
    assert profile.peak_memory_mb == 160.0
    assert (profile.layers_npu, profile.layers_gpu, profile.layers_cpu) == (3, 0, 0)
    assert profile.placed_on_npu
    assert profile.layers == [
        Layer("conv_0", "NPU", ms=0.9), Layer("argmax_9", "NPU", ms=0.25), Layer("softmax_7", "NPU", ms=0.1)
    ]  # fmt: skip
    assert profile.latency_ms_estimated is None
    job = next(job for job in bench.state.jobs.values() if job.kind == "profile")
    assert job.content.options == "--qairt_version 2.45 --max_profiler_iterations 7"
    assert job.content.is_profiling_on


def test_masks_are_those_of_onnx_runtime_in_order(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    opened().compile(graph, tmp_path / "compiled")
    got = list(opened().run(graph, tmp_path / "compiled", SAMPLES))
    wanted = list(masks_on_host(graph, SAMPLES))
    assert [output.sample_id for output in got] == ["s0", "s1", "s2"]
    assert all((one.pred_mask == other.pred_mask).all() for one, other in zip(got, wanted, strict=True))
    assert {float(output.pred_mask.mean()) for output in got} == {0.5, 0.0}
    jobs = [job for job in bench.state.jobs.values() if job.kind == "infer"]
    assert [job.content.is_profiling_on for job in jobs] == [False] * 3
    assert len(list(opened().run(graph, tmp_path / "compiled", SAMPLES[:2]))) == 2
    assert len(bench.state.names("infer")) == 3, "what was inferred is not paid for again"


def test_a_second_run_asks_for_nothing_twice(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        hub = opened()
        hub.compile(graph, tmp_path / folder)
        hub.profile(graph, tmp_path / folder)
        assert len(list(hub.run(graph, tmp_path / folder, SAMPLES))) == 3
    assert counts(bench) == {"compile": 1, "profile": 1, "infer": 3}
    assert (bench.requests["new model"], bench.requests["new dataset"]) == (1, 3)
    assert CompiledGraphs.read(tmp_path / "first") == CompiledGraphs.read(tmp_path / "second")


def test_masks_that_are_stored_need_no_service(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    opened().compile(graph, tmp_path / "compiled")
    first = list(opened().run(graph, tmp_path / "compiled", SAMPLES))
    asked = bench.requests.total()
    again = list(opened().run(graph, tmp_path / "compiled", SAMPLES))
    assert bench.requests.total() == asked
    assert all((one.pred_mask == other.pred_mask).all() for one, other in zip(first, again, strict=True))


def test_a_trial_run_is_paid_for_once(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    """The samples of a trial share a chunk with others later, and are not sent again."""
    opened().compile(graph, tmp_path / "compiled")
    list(opened().run(graph, tmp_path / "compiled", SAMPLES[:1]))
    outputs = list(opened(chunk_mb=2 * ONE_SAMPLE_MB).run(graph, tmp_path / "compiled", SAMPLES))
    wanted = list(masks_on_host(graph, SAMPLES))
    assert [output.sample_id for output in outputs] == ["s0", "s1", "s2"]
    assert all((one.pred_mask == other.pred_mask).all() for one, other in zip(outputs, wanted, strict=True))
    sent = []
    for job in (job for job in bench.state.jobs.values() if job.kind == "infer"):
        with h5py.File(bench.state.datasets[job.content.dataset.dataset_id].file) as store:
            sent.append(int(store["data/0"].attrs["batch_count"]))
    assert sent == [1, 2]


def test_jobs_in_flight_are_bounded(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    opened().compile(graph, tmp_path / "compiled")
    unfinished: list[int] = []

    def count(step: str) -> None:
        if step == "submit":
            jobs = [job for job in bench.state.jobs.values() if job.kind == "infer"]
            unfinished.append(sum(job.state != pb.JOB_STATE_DONE for job in jobs))

    bench.on_request = count
    samples = [split_picture(f"t{number}", 20, 99, first_id=number) for number in range(6)]
    assert len(list(opened(jobs_in_flight=2).run(graph, tmp_path / "compiled", samples))) == 6
    assert max(unfinished) == 1, "one more makes two"


def test_sharing_is_retried_and_verified_and_compiles_nothing_anew(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    opened().compile(graph, tmp_path / "compiled")
    bench.faults.append(Fault("share", "500", times=1))
    compiled = opened(share_with=("jury@example.org",)).compile(graph, tmp_path / "compiled")
    assert bench.state.jobs[compiled.binaries[0].job_id].shared_with == {"jury@example.org"}
    assert bench.requests["share"] == 2
    assert counts(bench)["compile"] == 1


def test_sharing_that_does_not_take_is_an_error(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    bench.state.ignores_sharing = True
    with pytest.raises(RefusedError, match=r"does not list jury@example\.org"):
        opened(share_with=("jury@example.org",)).compile(graph, tmp_path / "compiled")
    assert not (tmp_path / "compiled").exists()


def test_a_compilation_by_another_backend_is_refused(opened: Any, graph: Path, tmp_path: Path) -> None:
    compiled = opened().compile(graph, tmp_path / "compiled")
    replace(compiled, backend="local").write(tmp_path / "compiled")
    with pytest.raises(ValueError, match="compiled for the backend 'local', wanted 'aihub'"):
        opened().profile(graph, tmp_path / "compiled")


SUMMARY = {
    "estimated_inference_time": 5000,
    "estimated_inference_peak_memory": 70_000_000,
    "first_load_time": 300_000,
    "warm_load_time": 40_000,
    "inference_memory_peak_range": (60_000_000, 90_000_000),
    "all_inference_times": [9000, 5000, 6000],
}


def layer(name: str, unit: str, **cost: int) -> dict[str, Any]:
    return {"name": name, "type": "t", "compute_unit": unit, **cost}


def latency(summary: dict[str, Any], layers: list[dict[str, Any]]) -> LatencyProfile:
    return latency_of({"execution_summary": summary, "execution_detail": layers}, "d", 1_500_000, "")


def test_the_median_and_the_spread_are_over_all_runs() -> None:
    profile = latency(SUMMARY, [layer("a", "NPU")])
    assert (profile.latency_ms_device, profile.latency_ms_device_low, profile.latency_ms_device_high) == (6.0, 5.0, 9.0)
    assert (profile.device_runs, profile.peak_memory_mb, profile.binary_mb) == (3, 90.0, 1.5)
    assert profile.latency_ms_estimated is None


def test_a_service_that_names_no_runs_gives_one_time_and_no_spread() -> None:
    old = {**SUMMARY, "all_inference_times": [], "inference_memory_peak_range": None, "first_load_time": 0}
    profile = latency(old, [layer("a", "NPU")])
    assert (profile.latency_ms_device, profile.latency_ms_device_low, profile.device_runs) == (5.0, None, None)
    assert (profile.peak_memory_mb, profile.first_load_ms) == (70.0, None)


@pytest.mark.parametrize(
    ("units", "counts", "whole"),
    [
        (["NPU", "NPU"], (2, 0, 0, 0), True),
        (["NPU", "CPU"], (1, 0, 1, 0), False),
        (["NPU", "GPU", "UNSPECIFIED"], (1, 1, 0, 1), False),
        ([], (0, 0, 0, 0), False),
    ],
)
def test_layers_are_counted_by_where_they_ran(units: list[str], counts: tuple[int, ...], whole: bool) -> None:
    profile = latency(SUMMARY, [layer(f"l{number}", unit) for number, unit in enumerate(units)])
    assert (profile.layers_npu, profile.layers_gpu, profile.layers_cpu, profile.layers_unknown) == counts
    assert profile.placed_on_npu == whole


def test_the_slowest_layers_come_first_and_are_few() -> None:
    layers = [layer(f"l{number}", "NPU", execution_time=number * 100) for number in range(2 * SLOWEST)]
    slowest = latency(SUMMARY, layers).layers
    assert len(slowest) == SLOWEST
    assert slowest[:2] == [Layer(f"l{2 * SLOWEST - 1}", "NPU", ms=2.3), Layer(f"l{2 * SLOWEST - 2}", "NPU", ms=2.2)]


def test_without_times_cycles_tell() -> None:
    layers = [layer("a", "NPU", execution_cycles=1500), layer("b", "CPU", execution_cycles=20_000), layer("c", "NPU")]
    assert latency(SUMMARY, layers).layers == [Layer("b", "CPU", cycles=20_000), Layer("a", "NPU", cycles=1500)]
    assert latency(SUMMARY, []).layers == []
