"""The fault drill: whatever ends a stage, at whatever moment, the next `dvc repro` ends as if nothing had happened.

Forty cases, five for each stage; those of EVERY_TIME run with the other tests, all of them with `-m drill`.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.projects import METRICS, STAGES, copy_run, dvc, dvc_environment, edit_yaml

FAULTS = ("kill", "kill_all", "edit", "disk", "interrupt")
EVERY_TIME = {
    ("fetch", "kill_all"),
    ("finetune", "kill"),
    ("export", "disk"),
    ("hub-compile", "interrupt"),
    ("hub-infer", "edit"),
}
# Seconds of processor time that a stage needs at least, imports included: the fault comes at a random moment of them.
CPU_S = {
    "fetch": 0.35,
    "tokenize": 0.6,
    "finetune": 3.5,
    "export": 8.0,
    "hub-compile": 3.0,
    "hub-profile": 4.0,
    "hub-infer": 1.1,
    "score": 1.1,
}
PARAMS, SHAPES = "params.yaml", "configs/data/shapes.yaml"
EDITS: dict[str, tuple[str, dict[str, Any]]] = {
    "fetch": (SHAPES, {"seed": 1}),
    "tokenize": (PARAMS, {"res": 72}),  # which it does not read
    "finetune": (PARAMS, {"finetune.seed": 8}),
    "export": (PARAMS, {"res": 72}),
    "hub-compile": (PARAMS, {"hub.device": "Samsung Galaxy S24"}),
    "hub-profile": (PARAMS, {"hub.cpu_latency_runs": 3}),
    "hub-infer": (PARAMS, {"hub.samples": 4}),
    "score": (PARAMS, {"score.seed": 8}),
}
CASES = [
    pytest.param(stage, fault, marks=pytest.mark.slow if (stage, fault) in EVERY_TIME else pytest.mark.drill)
    for stage in STAGES
    for fault in FAULTS
]


@pytest.fixture(scope="module")
def project(finished_run: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project that goes through every case, one after the other."""
    return copy_run(finished_run[0], tmp_path_factory.mktemp("drill") / "project")


@pytest.fixture(scope="module")
def undisturbed(finished_run: tuple[Path, list[str]]) -> dict[str, Any]:
    """The metrics of the run that nothing disturbed."""
    return figures(finished_run[0])


def figures(project: Path) -> dict[str, Any]:
    """Return all metrics but the host's own times, which no two runs share."""
    found = {name: json.loads((project / name).read_text(encoding="utf-8")) for name in METRICS}
    del found["metrics/latency.json"]["host"]
    return found


def processes_of(dvc_pid: int, stage: str) -> list[psutil.Process]:
    """Return the stage's process and those that it started; none where it has not begun or is over."""
    module = f"stages.{stage.replace('-', '_')}"
    try:
        for process in psutil.Process(dvc_pid).children(recursive=True):
            if process.cmdline()[1:3] == ["-m", module]:
                return [process, *process.children(recursive=True)]
    except psutil.Error:
        pass
    return []


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return the processor time of processes, and of what they waited for."""
    used = 0.0
    for process in processes:
        try:
            used += sum(process.cpu_times()[:4])
        except psutil.Error:
            continue
    return used


def strike(fault: str, dvc_pid: int, processes: list[psutil.Process], project: Path, stage: str) -> None:
    """End the stage, or spoil what it needs."""
    if fault == "kill_all":  # DVC, too, as when the machine goes down
        os.killpg(dvc_pid, signal.SIGKILL)
    elif fault == "interrupt":  # a terminal sends Ctrl-C to all of them
        os.killpg(dvc_pid, signal.SIGINT)
    elif fault == "edit":
        file, changes = EDITS[stage]
        edit_yaml(project / file, changes)
    for process in processes:
        try:
            if fault == "kill":
                process.kill()
            elif fault == "disk":  # no file beyond 1 kB
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        except (psutil.Error, ProcessLookupError):
            continue


def hear_ctrl_c() -> None:
    """Undo what a shell does to programs in the background: they ignore Ctrl-C, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_disturbed(project: Path, stage: str, fault: str) -> tuple[int, str]:
    """Run one stage anew, with a fault at a moment that the case's name decides; return its status and what it said."""
    moment_s = random.Random(f"{stage} {fault}").random() * CPU_S[stage]
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", stage],
        cwd=project,
        env=dvc_environment(),
        stdout=subprocess.PIPE,  # a file would be full, too
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    while process.poll() is None:
        processes = processes_of(process.pid, stage)
        if processes and cpu_seconds(processes) >= moment_s:
            strike(fault, process.pid, processes, project, stage)
            break
        time.sleep(0.005)
    said, _ = process.communicate()
    return process.returncode, said


@pytest.mark.parametrize(("stage", "fault"), CASES)
def test_after_a_fault_a_run_ends_as_an_undisturbed_one(
    project: Path, undisturbed: dict[str, Any], stage: str, fault: str
) -> None:
    settings = {name: (project / name).read_bytes() for name in (PARAMS, SHAPES)}
    status, said = run_disturbed(project, stage, fault)
    if fault not in ("kill", "kill_all"):
        assert "Traceback" not in said, said
    if fault == "edit" and stage != "tokenize" and status:
        assert "settings that changed while the stage ran" in said
    for name, content in settings.items():
        (project / name).write_bytes(content)
    dvc(project, "repro", "--force", "--single-item", stage)  # or DVC takes from its cache what it made before
    dvc(project, "repro")
    assert figures(project) == undisturbed
    assert not [path for path in project.rglob("*.part") if ".cache" not in path.parts]
