"""Each fault at each step of the protocol, once and for ever: the right result or a clear error, and each job once."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from promptseg.files import sha256_of
from promptseg.hubs.aihub import jobs
from promptseg.hubs.aihub.hub import AiHub
from promptseg.hubs.aihub.service import BusyError, JobFailedError, RefusedError, UnreachableError
from promptseg.hubs.base import MANIFEST
from tests.aihub_bench import Bench, Fault
from tests.aihub_bench.device import MAGIC
from tests.aihub_bench.faults import FOR_EVER, KINDS
from tests.aihub_bench.routes import ROUTES, S3_SECRET, STORAGE
from tests.aihub_bench.state import TOKEN, ServiceState
from tests.aihub_helpers import forget_sleep, give_up_early, open_bench_hub
from tests.graphs import split_picture, write_bright_graph

EMAIL = "jury@example.org"
STEPS = {
    "compile": (
        *("user", "devices", "frameworks", "list", "new model", "model parts", "put part", "model complete", "model"),
        *("submit", "job", "model address", "get model", "shared", "share"),
    ),
    "profile": ("user", "list", "job", "model", "submit", "result"),
    "infer": (
        *("list", "new dataset", "dataset address", "post dataset", "dataset complete", "dataset", "job", "model"),
        *("submit", "result", "outputs address", "get outputs"),
    ),
}
# The service gives no checksum, so a file of the right length with other content cannot be told, and an upload that its
# storage confirms without having it is only told by the job that fails: see the last test but one.
NOT_TELLABLE = {
    *(("get model", "garbage"), ("post dataset", "garbage")),
    *(("post dataset", "another type"), ("put object", "another type")),
}
# What the storage is asked for where the service hands out credentials for objects of a bucket.
BUCKET_STEPS = {
    "compile": ("put object", "model confirmed", "head object", "get object"),
    "infer": ("put object", "dataset confirmed", "head object", "get object"),
}
TIMES = {"once": 1, "for_ever": FOR_EVER}
FAST = {
    ("compile", "submit", "lost"),
    ("infer", "submit", "500"),
    ("compile", "get model", "truncated without a length"),
    ("compile", "get object", "truncated"),
    ("infer", "get object", "truncated without a length"),
    ("infer", "submit", "late"),
    ("infer", "get outputs", "late"),
}
GIVEN_UP_S, LATE_S = 0.5, 0.7  # by the client, and what takes longer; real time-outs: the last test
SAMPLE = split_picture("s", 30, 120, first_id=5)


def cases() -> Iterator[object]:
    """Every kind at every step; too late for ever is left out: it is "lost" with seconds of waiting for each try."""
    steps = [(action, step) for table in (STEPS, BUCKET_STEPS) for action in table for step in table[action]]
    for times, (action, step), kind in product(TIMES, steps, KINDS):
        if (step, kind) not in NOT_TELLABLE and (times, kind) != ("for_ever", "late"):
            marks = () if (action, step, kind) in FAST else (pytest.mark.matrix,)
            name = f"{times}-{action}-{step}-{kind}".replace(" ", "_")
            yield pytest.param(action, step, kind, TIMES[times], marks=marks, id=name)


@dataclass
class Arena:
    """A bench, the graph, and what a compilation left behind, to start each case from."""

    bench: Bench
    graph: Path
    folder: Path
    compiled_state: ServiceState

    def reset(self, compiled: bool) -> None:
        """Start over: nothing anywhere, or compiled by an earlier run."""
        before = self.bench.state
        self.bench.start_over(self.compiled_state if compiled else None)
        if before is not self.compiled_state:
            shutil.rmtree(before.folder)
        shutil.rmtree(self.folder / "case", ignore_errors=True)
        if compiled:
            shutil.copytree(self.folder / "start", self.folder / "case")


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch, Bench(folder / "bench") as bench:
        forget_sleep(patch.setattr)
        patch.setattr(jobs, "OUTAGE_S", 15.0)
        graph = write_bright_graph(folder / "model.onnx")
        open_bench_hub(bench, folder / "start", patch).compile(graph, folder / "start" / "compiled")
        yield Arena(bench, graph, folder, bench.state)


def act(action: str, hub: AiHub, graph: Path, folder: Path) -> None:
    """Carry out one stage and hold its result to what it must be."""
    if action == "compile":
        compiled = hub.compile(graph, folder / "compiled")
        content = (folder / "compiled" / "model.bin").read_bytes()
        assert content == MAGIC + graph.read_bytes()
        assert compiled.binaries[0].binary_sha256 == sha256_of(folder / "compiled" / "model.bin")
        assert compiled.binaries[0].job_id
    elif action == "profile":
        profile = hub.profile(graph, folder / "compiled")
        assert (profile.latency_ms_device, profile.layers_npu) == (6.5, 3)
    else:
        (output,) = hub.run(graph, folder / "compiled", [SAMPLE])
        wanted = np.zeros((1024, 1024), bool)
        wanted[512:] = True
        assert output.sample_id == "s"
        assert (output.pred_mask == wanted).all()


def attempt(run: Callable[[], None]) -> str:
    """Let `run` succeed, or fail with one of our own errors; return what it says."""
    try:
        run()
    except (BusyError, JobFailedError, RefusedError, UnreachableError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("action", "step", "kind", "times"), cases())
def test_a_fault_costs_no_second_job_and_no_half_file(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, action: str, step: str, kind: str, times: int
) -> None:
    arena.reset(compiled=action != "compile")
    folder = arena.folder / "case"
    arena.bench.state.hands_out_credentials = step in BUCKET_STEPS.get(action, ())

    def run() -> None:
        share_with = (EMAIL,) if action == "compile" else ()
        act(
            action,
            open_bench_hub(arena.bench, folder, monkeypatch, share_with=share_with, wait_hours=0.05),
            arena.graph,
            folder,
        )

    if kind == "late":
        give_up_early(monkeypatch.setattr, GIVEN_UP_S)
    fault = Fault(step, kind, times, late_s=LATE_S)
    arena.bench.faults.append(fault)
    message = attempt(run)
    assert not message or "AI Hub" in message or "job j" in message, "it says what it is about"
    assert TOKEN not in message
    assert S3_SECRET not in message
    assert fault.times < times, "the step came up"
    submitted = arena.bench.state.names(action)
    assert len(submitted) <= 1
    assert (folder / "compiled").exists() == (folder / "compiled" / MANIFEST).exists()
    arena.bench.faults.clear()
    run()
    assert len(arena.bench.state.names(action)) == 1, "submitted once, whatever happened"
    if action == "compile":
        assert [job.shared_with for job in arena.bench.state.jobs.values()] == [{EMAIL}]


def test_every_step_of_the_protocol_is_in_the_matrix() -> None:
    steps = {step for table in (STEPS, BUCKET_STEPS) for steps in table.values() for step in steps}
    assert steps | {"logs", "get log"} == set(ROUTES) | set(STORAGE)  # logs: see test_aihub_hub.py


@pytest.mark.parametrize("times", [2, 3])
def test_too_many_requests_are_waited_out(arena: Arena, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    arena.reset(compiled=True)
    arena.bench.faults.append(Fault("submit", "429", times))
    folder = arena.folder / "case"
    act("infer", open_bench_hub(arena.bench, folder, monkeypatch), arena.graph, folder)
    assert arena.bench.requests["submit"] == times + 1


def test_a_submission_without_an_answer_is_one_post_and_then_a_look(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena.reset(compiled=True)
    arena.bench.faults.append(Fault("submit", "lost"))
    folder = arena.folder / "case"
    act("infer", open_bench_hub(arena.bench, folder, monkeypatch), arena.graph, folder)
    assert arena.bench.requests["submit"] == 1


def test_a_job_that_the_list_shows_late_is_not_submitted_again(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is asked for up to a minute after a lost answer; here it has the job from the third look on."""
    arena.reset(compiled=True)
    arena.bench.faults.append(Fault("submit", "lost"))
    looks: list[str] = []

    def show_late(step: str) -> None:
        if step == "list":
            looks.append(step)
            state = arena.bench.state
            new = {job_id for job_id, job in state.jobs.items() if job.kind == "infer"}
            state.hidden_jobs = set() if len(looks) >= 4 else new

    folder = arena.folder / "case"
    monkeypatch.setattr(arena.bench, "on_request", show_late)
    act("infer", open_bench_hub(arena.bench, folder, monkeypatch), arena.graph, folder)
    assert arena.bench.requests["submit"] == 1
    assert len(looks) == 4


def test_where_neither_answer_nor_list_can_be_had_nothing_is_submitted_again(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena.reset(compiled=True)
    arena.bench.faults += [Fault("submit", "lost"), Fault("list", "500", skip=1)]
    folder = arena.folder / "case"
    with pytest.raises(UnreachableError, match="run again, and it is looked for first"):
        act("infer", open_bench_hub(arena.bench, folder, monkeypatch), arena.graph, folder)
    assert arena.bench.requests["submit"] == 1


def test_an_upload_that_was_confirmed_and_lost_is_made_again_after_its_job_failed(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena.reset(compiled=True)
    arena.bench.faults.append(Fault("post dataset", "another type", times=1))
    folder = arena.folder / "case"
    with pytest.raises(JobFailedError, match="no input"):
        act("infer", open_bench_hub(arena.bench, folder, monkeypatch), arena.graph, folder)
    act("infer", open_bench_hub(arena.bench, folder, monkeypatch), arena.graph, folder)
    assert (arena.bench.requests["new dataset"], len(arena.bench.state.names("infer"))) == (2, 2)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("step", "late_s"), [("submit", 29.0), ("job", 29.0), ("post dataset", 5.0), ("get outputs", 5.0)]
)
def test_a_late_answer_costs_no_second_job(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, step: str, late_s: float
) -> None:
    """By the client's own time-outs: 28 s for the service, 4 s for storage."""
    arena.reset(compiled=True)
    fault, folder = Fault(step, "late", times=1, late_s=late_s), arena.folder / "case"
    arena.bench.faults.append(fault)
    act("infer", open_bench_hub(arena.bench, folder, monkeypatch), arena.graph, folder)
    assert len(arena.bench.state.names("infer")) == 1
    assert fault.times <= 0, "it did come late"
