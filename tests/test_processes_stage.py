"""The whole stage in two processes, on one machine or on two: it ends as one does, each result written once."""

import json
import os
import shlex
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.report.charts import read_curve
from tests.imports import ROOT
from tests.projects import copy_parts, edit_yaml, run_stage, stage_command

RESULTS = {
    "models/finetuned.safetensors", "models/finetuned.json", "models/finetuned.ledger.json",
    "metrics/train.json",
}  # fmt: skip
SCENES = {"train_scenes": 6, "val_scenes": 2, "test_scenes": 1}
RATE, STEPS = 1e-4, 3
TRAINING = {
    "init": None, "steps": STEPS, "res": [64], "batch_size": 4, "phrases_per_picture": 2, "learning_rate": RATE,
    "muon_learning_rate": None, "warmup_steps": 0, "val_res": 64, "val_every": 2, "val_phrases": 4, "train_phrases": 2,
    "cache_gib": 0.1,
}  # fmt: skip
# Put behind promptseg/files.py in a copy of the project: which process wrote what.
NOTES_WRITES = """

_unnoted = atomic_path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    import os

    with open("writes.log", "a") as log:
        log.write(f"{os.getpid()} {path}\\n")
    with _unnoted(path) as temporary:
        yield temporary
"""


HOW = ("one", "two", "machines", "slurm")
TORCHRUN = f"{sys.executable} -m torch.distributed.run"
# What Slurm's programs do, as far as the script uses them: two machines that share a disk are two calls here.
SLURM = {
    "scontrol": "echo 127.0.0.1",
    "srun": 'while [[ $1 == --* ]]; do shift; done; "$@" & first=$!; "$@"; wait $first',
    "dvc": "exec {stage}",
}


def prepared(project: Path, processes: int) -> Path:
    """Return a copy of the project that is about to train, and notes who writes what."""
    copy_parts(project)
    edit_yaml(project / "configs/data/shapes.yaml", SCENES)
    settings = {**TRAINING, "processes": processes}
    edit_yaml(project / "params.yaml", {f"finetune.{key}": value for key, value in settings.items()})
    for stage in ("fetch", "tokenize"):
        assert run_stage(project, stage).returncode == 0
    with (project / "src/promptseg/files.py").open("a", encoding="utf-8") as code:
        code.write(NOTES_WRITES)
    return project


def train(project: Path, command: list[str], **variables: str) -> "subprocess.Popen[bytes]":
    """Start a training; what it says goes to a file."""
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), **variables}
    with (project / "said.log").open("wb") as said:
        return subprocess.Popen(command, cwd=project, env=environment, stdout=said, stderr=subprocess.STDOUT)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name in HOW, a project after its stages fetch, tokenize and finetune.

    machines: two, each with a clone of its own, of which the first gets the results. slurm: two that share one, by the
    script of docs/examples.
    """
    folder = tmp_path_factory.mktemp("projects")
    projects = {name: prepared(folder / name, processes=2 if name == "two" else 1) for name in HOW}
    other = prepared(folder / "other machine", processes=1)
    stages = {name: stage_command(project, "finetune") for name, project in projects.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("CUDA_VISIBLE_DEVICES", ""), ("OMP_NUM_THREADS", "1")):
            patch.setenv(name, value)
        running = [train(projects[name], stages[name]) for name in ("one", "two")]
        for project in projects["one"], projects["two"]:
            assert running.pop(0).wait() == 0, (project / "said.log").read_text()
        meeting = f"--nnodes 2 --nproc-per-node 1 --master-addr 127.0.0.1 --master-port {free_port()}"
        for rank, project in enumerate((projects["machines"], other)):
            launcher = f"{TORCHRUN} {meeting} --node-rank {rank}"
            running.append(train(project, stages["machines"], PROMPTSEG_LAUNCHER=launcher))
        for process in running:
            assert process.wait() == 0, (projects["machines"] / "said.log").read_text()
        _run_slurm(projects["slurm"], shlex.join(stages["slurm"]))
    assert not (other / "models").exists()
    return projects


def _run_slurm(project: Path, stage: str) -> None:
    programs = project / "bin"
    programs.mkdir()
    for name, lines in SLURM.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{lines.replace('{stage}', stage)}\n")
        (programs / name).chmod(0o755)
    (programs / "torchrun").symlink_to(Path(sys.executable).parent / "torchrun")
    variables = {"SLURM_NNODES": "2", "SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NODELIST": "a[1-2]"}
    path = os.pathsep.join((str(programs), os.environ["PATH"]))
    script = train(project, ["bash", str(ROOT / "docs/examples/finetune.slurm")], PATH=path, **variables)
    assert script.wait() == 0, (project / "said.log").read_text()


@pytest.mark.slow
def test_each_result_is_written_once_and_by_one_process(trained: dict[str, Path]) -> None:
    for project in trained.values():
        written = [line.split(" ", 1) for line in (project / "writes.log").read_text().splitlines()]
        assert len({process for process, _ in written}) == 1
        results = Counter(path for _, path in written if path in RESULTS)
        assert results == Counter(RESULTS)
        assert all((project / path).is_file() for path in RESULTS)


@pytest.mark.slow
def test_two_processes_end_as_one_does(trained: dict[str, Path]) -> None:
    one, *others = (read_curve(trained[name] / "metrics/live/plots/metrics") for name in HOW)
    assert [*one["step"]] == [*range(STEPS + 1)]
    assert one["val_miou"].notna().any()
    for other in others:
        pd.testing.assert_frame_equal(one, other, rtol=2e-4, atol=2e-4)
    first, *more = (json.loads((trained[name] / "metrics/train.json").read_text()) for name in HOW)
    assert all(summary == pytest.approx(first, rel=2e-4, abs=2e-4) for summary in more)


@pytest.mark.slow
def test_two_processes_move_the_weights_as_one_does(trained: dict[str, Path]) -> None:
    """After the last step, by the snapshots: the checkpoint holds the best step's weights, which may be the first.

    AdamW's first steps are as long as the rate whatever the gradient: where that is rounding, so is its sign.
    """
    states = [torch.load(_snapshot(trained[name]), weights_only=True) for name in HOW]
    one, *others = (state["network"] for state in states)
    moved = sum((one[name] - states[0]["best"][name]).abs().sum().item() for name in one)
    assert moved > 0
    for other in others:
        assert one.keys() == other.keys()
        far = [(one[name] - other[name]).abs() for name in one]
        assert max(each.max().item() for each in far) <= 2.1 * RATE * STEPS
        assert sum(each.sum().item() for each in far) <= 1e-4 * moved


@pytest.mark.slow
def test_the_checkpoint_of_two_processes_is_that_of_one(trained: dict[str, Path]) -> None:
    """Weights are whole, described alike, and of the step that scored best."""
    one, *others = (load_checkpoint(trained[name] / "models/finetuned.safetensors") for name in HOW)
    for other in others:
        assert other[0].config == one[0].config
        assert (other[1].step, other[1].model) == (one[1].step, one[1].model)
        weights = [network.state_dict() for network, _ in (one, other)]
        assert all((weights[0][key] - weights[1][key]).abs().max() <= 2.1 * RATE * STEPS for key in weights[0])


def _snapshot(project: Path) -> Path:
    (path,) = (project / ".cache" / "finetune").glob("*/state.pt")
    return path
