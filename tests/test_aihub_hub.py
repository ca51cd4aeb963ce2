"""The cloud backend against the bench, through the real, unmodified client: what it submits, brings back and says."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
from qai_hub import public_api_pb2 as pb

from promptseg.files import sha256_of
from promptseg.hubs.aihub import waiting
from promptseg.hubs.aihub.client import PROBE_TIMEOUT_S
from promptseg.hubs.aihub.errors import JobFailedError, RefusedError, UnreachableError
from promptseg.hubs.aihub.hub import AiHub
from promptseg.hubs.base import CompiledGraph
from promptseg.hubs.host import masks_on_host
from tests.aihub_bench import Bench, Fault
from tests.aihub_bench.state import TOKEN
from tests.aihub_helpers import DEVICE, ONE_SAMPLE_MB, forget_sleep, hub_config, open_bench_hub
from tests.graphs import split_picture, write_bright_graph, write_refused_graph

SAMPLES = [split_picture(f"s{number}", 30 + number, 120, first_id=number * 15000) for number in range(3)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    forget_sleep(monkeypatch.setattr)
    with Bench(tmp_path / "bench") as bench:
        yield bench


@pytest.fixture
def opened(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a hub as another process would: the same journal, nothing else in common."""

    def open_hub(**changes: Any) -> AiHub:
        return open_bench_hub(bench, tmp_path / "mine", monkeypatch, **changes)

    return open_hub


def counts(bench: Bench) -> dict[str, int]:
    return {kind: len(bench.state.names(kind)) for kind in ("compile", "profile", "infer")}


def test_a_graph_is_compiled_and_its_manifest_says_by_whom(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    compiled = opened().compile(graph, tmp_path / "compiled")
    assert CompiledGraph.read(tmp_path / "compiled") == compiled
    assert compiled.binary_file == "model.bin"
    assert compiled.binary_sha256 == sha256_of(tmp_path / "compiled" / "model.bin")
    assert compiled.binary_bytes == (tmp_path / "compiled" / "model.bin").stat().st_size
    assert compiled.graph_sha256 == sha256_of(graph)
    assert compiled.job_address == f"{bench.address}/jobs/{compiled.job_id}/"
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
    assert profile.slowest_layers == "conv_0 (NPU) 0.9 ms; argmax_9 (NPU) 0.25 ms; softmax_7 (NPU) 0.1 ms"
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
    assert CompiledGraph.read(tmp_path / "first") == CompiledGraph.read(tmp_path / "second")


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
    assert bench.state.jobs[compiled.job_id].shared_with == {"jury@example.org"}
    assert bench.requests["share"] == 2
    assert counts(bench)["compile"] == 1


def test_sharing_that_does_not_take_is_an_error(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    bench.state.ignores_sharing = True
    with pytest.raises(RefusedError, match=r"does not list jury@example\.org"):
        opened(share_with=("jury@example.org",)).compile(graph, tmp_path / "compiled")
    assert not (tmp_path / "compiled").exists()


@pytest.mark.parametrize("kind", ["compile", "profile", "infer"])
def test_a_failed_job_raises_with_its_reason_and_its_log_and_the_next_run_submits_another(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, kind: str
) -> None:
    steps = {
        "compile": lambda: opened().compile(graph, tmp_path / "compiled"),
        "profile": lambda: opened().profile(graph, tmp_path / "compiled"),
        "infer": lambda: list(opened().run(graph, tmp_path / "compiled", SAMPLES[:1])),
    }
    if kind != "compile":
        steps["compile"]()
    bench.state.failing[kind] = "Op Abs is\nnot supported"
    with pytest.raises(JobFailedError, match="failed: Op Abs is not supported") as failure:
        steps[kind]()
    (job,) = (job for job in bench.state.jobs.values() if job.kind == kind)
    assert f"{bench.address}/jobs/{job.job_id}/" in str(failure.value)
    assert "its last lines: first line | the op that failed: Abs" in str(failure.value)
    assert list((tmp_path / "mine").rglob(f"logs/{job.job_id}/*.log"))
    bench.state.failing.clear()
    assert steps[kind]()
    assert counts(bench)[kind] == 2


def test_a_failed_job_without_a_log_says_so(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    bench.state.failing["compile"], bench.state.logs = "no reason to speak of", False
    with pytest.raises(JobFailedError, match="it left no log"):
        opened().compile(graph, tmp_path / "compiled")


def test_a_log_that_cannot_be_had_hides_no_failure(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    bench.state.failing["compile"] = "Op Abs is not supported"
    bench.faults.append(Fault("logs", "500"))
    with pytest.raises(JobFailedError, match=r"Op Abs is not supported.*its log could not be downloaded"):
        opened().compile(graph, tmp_path / "compiled")


def test_a_slow_queue_is_shown_state_by_state(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened().compile(graph, tmp_path / "compiled")
    bench.state.looks_needed = 4
    with caplog.at_level(logging.INFO, "promptseg"):
        list(opened().run(graph, tmp_path / "compiled", SAMPLES[:1]))
    states = [line.rpartition(": ")[2] for line in caplog.messages if line.startswith("inference on 1 samples: http")]
    assert states == ["queued", "provisioning a device", "running", "done"]


def test_minutes_of_errors_pass_while_a_job_runs(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    bench.faults.append(Fault("job", "503", times=7 * 6, skip=2))  # six polls, each with its seven tries
    assert opened().compile(graph, tmp_path / "compiled")
    assert counts(bench)["compile"] == 1


def test_an_outage_without_end_names_the_job_and_the_next_run_picks_it_up(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "OUTAGE_S", 0.05)
    bench.faults.append(Fault("job", "503", skip=1))
    with pytest.raises(UnreachableError, match=r"The job goes on at http://[\d.:]+/jobs/\w+/; run again to pick it up"):
        opened().compile(graph, tmp_path / "compiled")
    bench.faults.clear()
    assert opened().compile(graph, tmp_path / "compiled")
    assert counts(bench)["compile"] == 1


def test_waiting_ends_by_our_own_clock(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    bench.state.looks_needed = 10**9
    with pytest.raises(UnreachableError, match=r"no result in 0.0 h .*The job goes on"):
        opened(wait_hours=0.0001).compile(graph, tmp_path / "compiled")


def test_a_state_that_nobody_knows_yet_counts_as_running(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.aihub_bench.state.COMPILE_STATES", (pb.JOB_STATE_CREATED, 12345))
    bench.state.looks_needed = 3
    assert opened().compile(graph, tmp_path / "compiled")


@pytest.mark.parametrize(("lives_s", "uploads"), [(3600.0, 2), (30 * 24 * 3600.0, 1)])
def test_a_data_set_is_used_by_other_jobs_until_it_expires(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, lives_s: float, uploads: int
) -> None:
    """The same samples for two compilations; a data set that may expire in the queue is uploaded again."""
    bench.state.expire_after_s = lives_s
    for version in ("2.45", "2.46"):
        opened(qairt_version=version).compile(graph, tmp_path / version)
        list(opened(qairt_version=version).run(graph, tmp_path / version, SAMPLES[:1]))
    assert counts(bench)["infer"] == 2
    assert bench.requests["new dataset"] == uploads


def test_outputs_that_expired_are_redone_by_the_next_run(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    opened().compile(graph, tmp_path / "compiled")
    bench.state.output_expires_after_s = -5.0
    with pytest.raises(JobFailedError, match="expired before they were collected; run again"):
        list(opened().run(graph, tmp_path / "compiled", SAMPLES[:1]))
    bench.state.output_expires_after_s = None
    assert len(list(opened().run(graph, tmp_path / "compiled", SAMPLES[:1]))) == 1
    assert counts(bench)["infer"] == 2


def test_empty_profiles_are_asked_for_again_and_never_taken(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    opened().compile(graph, tmp_path / "compiled")
    bench.state.empty_profiles = 2
    assert opened().profile(graph, tmp_path / "compiled").latency_ms_device == 6.5
    bench.state.empty_profiles = 10**9
    with pytest.raises(UnreachableError, match=r"got an empty profile; run again .*max_profiler_iterations"):
        opened(max_profiler_iterations=3).profile(graph, tmp_path / "compiled")


def test_a_graph_that_the_cloud_would_refuse_is_refused_before_it_is_asked(
    bench: Bench, opened: Any, tmp_path: Path
) -> None:
    graph = write_refused_graph(tmp_path / "refused.onnx")
    with pytest.raises(ValueError, match=r"int64 places .of NonZero find_inside"):
        opened().compile(graph, tmp_path / "compiled")
    assert bench.requests.total() == 0


def test_a_device_that_is_nearly_right_is_named(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"got 'Snapdragon X Elite', .* did you mean 'Snapdragon X Elite CRD'"):
        opened(device="Snapdragon X Elite").compile(graph, tmp_path / "compiled")
    assert bench.requests["new model"] == 0


def test_the_device_list_is_kept_for_a_day(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    bench.on_request = asked.append
    opened().compile(graph, tmp_path / "compiled")
    first = asked.count("devices")  # the list, and the client's own check at submission
    opened().compile(graph, tmp_path / "compiled")
    assert (first, asked.count("devices")) == (2, 2)
    (kept,) = (tmp_path / "mine").rglob("devices.json")
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"listed_at": time.time() - 25 * 3600}))
    opened().compile(graph, tmp_path / "compiled")
    assert asked.count("devices") == 3


def test_a_version_that_the_cloud_lacks_is_refused_with_those_it_has(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=r"got '1\.0', wanted one of 2\.45, 2\.46, default, latest"):
        opened(qairt_version="1.0").compile(graph, tmp_path / "compiled")
    assert bench.requests["new model"] == 0


def test_a_compilation_by_another_backend_is_refused(opened: Any, graph: Path, tmp_path: Path) -> None:
    compiled = opened().compile(graph, tmp_path / "compiled")
    replace(compiled, backend="local").write(tmp_path / "compiled")
    with pytest.raises(ValueError, match="compiled by the backend 'local', wanted 'aihub'"):
        opened().profile(graph, tmp_path / "compiled")


def test_a_job_that_the_service_forgot_is_submitted_again(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    opened().compile(graph, tmp_path / "compiled")
    bench.state.jobs.clear()
    assert opened().compile(graph, tmp_path / "compiled")
    assert counts(bench)["compile"] == 1


def test_a_lost_journal_costs_no_job(bench: Bench, opened: Any, graph: Path, tmp_path: Path) -> None:
    opened().compile(graph, tmp_path / "compiled")
    (journal,) = (tmp_path / "mine").rglob("journal.jsonl")
    journal.unlink()
    assert opened().compile(graph, tmp_path / "again")
    assert counts(bench)["compile"] == 1


@pytest.mark.parametrize("token", ["wrong-token-987", "100%-sure-token", "né-token", "two words"])
def test_a_bad_token_is_refused_and_shown_nowhere(
    bench: Bench,
    graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    token: str,
) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(bench.write_configuration(tmp_path / "client.ini", token)))
    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match=r"token|read|Header|sign in") as refusal:
        AiHub(hub_config(), tmp_path / "cache").compile(graph, tmp_path / "compiled")
    for text in (str(refusal.value), caplog.text):
        assert token not in text
    assert refusal.value.__suppress_context__
    assert bench.requests["new model"] == 0


def test_without_a_token_the_remedy_is_named(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "none.ini"))
    monkeypatch.delenv("QAIHUB_API_TOKEN", raising=False)
    with pytest.raises(RefusedError, match="qai-hub configure --api_token"):
        AiHub(hub_config(), tmp_path / "cache").compile(graph, tmp_path / "compiled")


def test_a_token_in_the_environment_counts(
    bench: Bench, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(bench.write_configuration(tmp_path / "client.ini", "old-token")))
    monkeypatch.setenv("QAIHUB_API_TOKEN", TOKEN)
    assert AiHub(hub_config(), tmp_path / "cache").compile(graph, tmp_path / "compiled")


def test_the_token_is_in_no_file_no_log_and_no_error(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    said = []
    with caplog.at_level(logging.DEBUG):
        opened().compile(graph, tmp_path / "out" / "compiled")
        opened().profile(graph, tmp_path / "out" / "compiled")
        list(opened().run(graph, tmp_path / "out" / "compiled", SAMPLES[:1]))
        for step in ("submit", "result", "list"):
            bench.faults = [Fault(step, "400")]  # the service's answer quotes the header
            with pytest.raises((RefusedError, UnreachableError)) as error:
                opened(max_profiler_iterations=len(said) + 1).profile(graph, tmp_path / "out" / "compiled")
            said.append(str(error.value))
    files = [path for folder in ("out", "mine/cache") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert len(files) > 5
    assert all("<token>" in text for text in said[:1])
    captured = capfd.readouterr()
    for text in (*said, caplog.text, captured.out, captured.err):
        assert TOKEN not in text
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path


def test_what_the_client_prints_reaches_nobody(
    opened: Any, graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It prints progress bars, addresses and boxes; standard output belongs to whoever called."""
    opened().compile(graph, tmp_path / "compiled")
    list(opened().run(graph, tmp_path / "compiled", SAMPLES[:1]))
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("down", ["refused", "silent"])
def test_a_server_that_is_down_is_noticed_in_less_than_a_minute(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, down: str
) -> None:
    """By the sum of the waits that it asks for, none of them cut short: the clock of a busy machine is no measure."""
    waits: list[float] = []
    monkeypatch.setattr("promptseg.hubs.aihub.preflight.pause", waits.append)
    with Bench(tmp_path / "bench") as bench:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(bench.write_configuration(tmp_path / "client.ini")))
        if down == "silent":
            bench.faults.append(Fault("user", "late", late_s=9.0))
            with pytest.raises(UnreachableError, match="Nothing was uploaded or submitted"):
                AiHub(hub_config(), tmp_path / "cache").compile(graph, tmp_path / "compiled")
            assert bench.requests["user"] == 3
    if down == "refused":
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "client.ini"))  # the bench takes its environment along
        with pytest.raises(UnreachableError, match="Nothing was uploaded or submitted"):
            AiHub(hub_config(), tmp_path / "cache").compile(graph, tmp_path / "compiled")
    assert len(waits) == 2
    assert sum(waits) + 3 * sum(PROBE_TIMEOUT_S) < 60


def test_a_check_asks_for_token_device_and_version_and_submits_nothing(bench: Bench, opened: Any) -> None:
    opened().check()
    with pytest.raises(RefusedError, match=r"hub\.device: got 'Snapdragon X Elite', wanted a device that AI Hub has"):
        opened(device="Snapdragon X Elite").check()
    with pytest.raises(RefusedError, match=r"hub\.aihub\.qairt_version: got '1\.0'"):
        opened(qairt_version="1.0").check()
    assert counts(bench) == {"compile": 0, "profile": 0, "infer": 0}
