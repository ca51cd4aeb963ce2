"""Jobs are found again, waited for, given up and redone."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qai_hub import public_api_pb2 as pb

from promptseg.hubs.aihub import jobs as jobs_module
from promptseg.hubs.aihub.service import JobFailedError, RefusedError, UnreachableError
from tests.aihub_bench import Bench, Fault
from tests.aihub_bench.state import COLLEAGUES_TOKEN, TOKEN
from tests.aihub_helpers import open_bench_hub
from tests.graphs import split_picture

pytest_plugins = ("tests.aihub_fixtures",)
SAMPLES = [split_picture(f"s{number}", 30 + number, 120, first_id=number * 15000) for number in range(3)]


def counts(bench: Bench) -> dict[str, int]:
    return {kind: len(bench.state.names(kind)) for kind in ("compile", "profile", "infer")}


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
    monkeypatch.setattr(jobs_module, "OUTAGE_S", 15.0)
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
    with pytest.raises(JobFailedError, match=r"no outputs of job \w+ any more .*; run again to redo it"):
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


def steps_of(opened: Any, graph: Path, folder: Path, token: str = TOKEN) -> dict[str, Callable[[], object]]:
    return {
        "compile": lambda: opened(token=token).compile(graph, folder),
        "profile": lambda: opened(token=token).profile(graph, folder),
        "infer": lambda: list(opened(token=token).run(graph, folder, SAMPLES[:1])),
    }


@pytest.mark.parametrize("kind", ["compile", "profile", "infer"])
def test_a_job_that_is_deleted_while_it_is_waited_for_says_so_and_the_next_run_submits_another(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, kind: str
) -> None:
    steps = steps_of(opened, graph, tmp_path / "compiled")
    if kind != "compile":
        steps["compile"]()
    state = bench.state

    def delete(step: str) -> None:
        for job_id in [job_id for job_id, job in state.jobs.items() if step == "job" and job.kind == kind]:
            del state.jobs[job_id]

    bench.on_request = delete
    with pytest.raises(JobFailedError, match=r"AI Hub has nothing of job \w+ any more .*; run again to redo it"):
        steps[kind]()
    bench.on_request = None
    assert steps[kind]()
    assert counts(bench)[kind] == 1


@pytest.mark.parametrize("kind", ["profile", "infer"])
@pytest.mark.parametrize("gone", ["job", "model"])
def test_a_compilation_that_is_gone_says_how_to_compile_again_and_that_heals(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, kind: str, gone: str
) -> None:
    steps = steps_of(opened, graph, tmp_path / "compiled")
    steps["compile"]()
    (job,) = bench.state.jobs.values()
    if gone == "job":
        del bench.state.jobs[job.job_id]
    else:
        del bench.state.models[job.content.target_model.model_id]
    with pytest.raises(RefusedError, match=r"compile again with `dvc repro --force --single-item hub-compile`"):
        steps[kind]()
    if gone == "model":  # the job is there, and says that it is done
        with pytest.raises(JobFailedError, match=r"no compiled graph of job \w+ any more .*; run again to redo it"):
            steps["compile"]()
    steps["compile"]()
    assert steps[kind]()


def test_outputs_that_are_deleted_are_redone_by_the_next_run(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    steps = steps_of(opened, graph, tmp_path / "compiled")
    steps["compile"]()

    def delete(step: str) -> None:
        if step == "result":
            (job,) = (job for job in bench.state.jobs.values() if job.kind == "infer")
            bench.state.datasets.pop(job.output_id, None)

    bench.on_request = delete
    with pytest.raises(JobFailedError, match=r"no outputs of job \w+ any more"):
        steps["infer"]()
    bench.on_request = None
    assert steps["infer"]()
    assert counts(bench)["infer"] == 2


def test_another_account_finds_restores_and_asks_for_nothing_of_the_first(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    """Both are of one organisation: the service shows each the jobs of both, and would let them be read."""
    for step in steps_of(opened, graph, tmp_path / "compiled").values():
        step()
    first = set(bench.state.jobs)
    foreign = steps_of(opened, graph, tmp_path / "compiled", COLLEAGUES_TOKEN)
    for kind in ("profile", "infer"):
        with pytest.raises(ValueError, match=r"that another account compiled.*hub-compile"):
            foreign[kind]()
    assert bench.state.jobs.keys() == first
    for step in steps_of(opened, graph, tmp_path / "theirs", COLLEAGUES_TOKEN).values():
        step()
    assert counts(bench) == {"compile": 2, "profile": 2, "infer": 2}
    assert {bench.state.jobs[job_id].creator for job_id in bench.state.jobs.keys() - first} == {"colleague@example.org"}


def test_another_service_is_asked_for_nothing_of_the_first(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().compile(graph, tmp_path / "compiled")
    with Bench(tmp_path / "other") as other:
        hub = open_bench_hub(other, tmp_path / "mine", monkeypatch)
        with pytest.raises(ValueError, match=rf"that the service at {bench.address} compiled, .* at {other.address}"):
            hub.profile(graph, tmp_path / "compiled")
        assert hub.compile(graph, tmp_path / "compiled").service == other.address
        assert hub.profile(graph, tmp_path / "compiled").latency_ms_device == 6.5
        assert counts(other) == {"compile": 1, "profile": 1, "infer": 0}
    assert counts(bench) == {"compile": 1, "profile": 0, "infer": 0}


def test_after_a_lost_answer_a_colleague_s_job_of_the_same_name_is_not_taken(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path
) -> None:
    opened().compile(graph, tmp_path / "compiled")
    (first,) = bench.state.jobs
    bench.faults.append(Fault("submit", "cut", times=1))
    assert opened(token=COLLEAGUES_TOKEN).compile(graph, tmp_path / "theirs").binaries[0].job_id != first
