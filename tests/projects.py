"""Copies of the project in folders of their own, for tests that run its stages or its whole graph."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.imports import ROOT

STAGES = ["fetch", "tokenize", "finetune", "export", "hub-compile", "hub-profile", "hub-infer", "score"]
SMALL = {
    "res": 64,
    "finetune.init": None,
    "finetune.steps": 2,
    "finetune.res": [64],
    "finetune.warmup_steps": 1,
    "finetune.batch_size": 2,
    "finetune.phrases_per_picture": 2,
    "finetune.val_res": 64,
    "finetune.val_every": 2,
    "finetune.val_phrases": 4,
    "export.parity_samples": 1,
    "hub.samples": 5,
    "hub.emulator_samples": 0,
    "hub.min_fidelity_mean": 0.0,  # two steps of training leave masks that rounding may change
    "hub.min_fidelity_worst": 0.0,
    "hub.cpu_latency_runs": 2,
    "score.gallery": 1,
}
METRICS = tuple(f"metrics/{name}.json" for name in ("train", "export", "latency", "fidelity", "score"))
FEW_SCENES = {"train_scenes": 6, "val_scenes": 3, "test_scenes": 3}
PARTS = ("stages", "src", "configs", "params.yaml", "dvc.yaml")
_NO_PYTHON = shutil.ignore_patterns("__pycache__")


def copy_parts(target: Path) -> Path:
    """Copy what a stage needs to run, no artefacts and no git, to `target`; return it."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target / part, ignore=_NO_PYTHON)
        else:
            shutil.copy(ROOT / part, target / part)
    return target


def copy_tracked(target: Path) -> Path:
    """Copy every file that git tracks, as it is in the working tree, to `target`; return it."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


def edit_yaml(path: Path, changes: dict[str, Any]) -> None:
    """Set dotted keys of a YAML file; a value of None is null."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[last] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def files_of(project: Path) -> set[str]:
    """Every file and folder of a project."""
    return {path.relative_to(project).as_posix() for path in project.rglob("*")}


def stage_command(project: Path, name: str) -> list[str]:
    """The stage's command line as dvc.yaml has it, by this interpreter."""
    graph = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))
    paths = graph["vars"][0]["path"]
    line = re.sub(r"\$\{path\.(\w+)\}", lambda match: paths[match[1]], graph["stages"][name]["cmd"])
    program, *arguments = line.split()
    assert program == "python"
    return [sys.executable, *arguments]


def run_stage(
    project: Path, name: str, *more: str, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a stage in `project`; nothing of this process's environment points to another tree."""
    return run_command(project, *stage_command(project, name)[1:], *more, before=before)


def run_command(
    project: Path, *arguments: str, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with `arguments` in `project`, with the project's own package."""
    environment = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env={**environment, "PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=before,
    )


def copy_run(project: Path, target: Path) -> Path:
    """Copy a project that DVC has run, with its cache and its commits, to `target`; return it."""
    return shutil.copytree(project, target, symlinks=True)


def dvc_environment() -> dict[str, str]:
    """Return the environment without another tree's code, and with this interpreter's `python` first."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DVC_ROOT")}
    return {**environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"}


def run_dvc(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dvc with this interpreter's `python` first on the path."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=project, env=dvc_environment(), capture_output=True, text=True, check=False)


def dvc(project: Path, *arguments: str) -> str:
    """Run dvc, which must succeed; return what it says."""
    done = run_dvc(project, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_run(project: Path, *arguments: str) -> list[str]:
    """Run `dvc repro` or `dvc exp run`; return the names of the stages that ran, in order."""
    return re.findall(r"^Running stage '([\w-]+)':", dvc(project, *arguments), re.MULTILINE)


def git(project: Path, *arguments: str) -> None:
    """Run git as somebody, whatever this machine knows of its user."""
    somebody = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", *somebody, *arguments], cwd=project, check=True, capture_output=True)


def metric(project: Path, name: str) -> dict[str, Any]:
    return json.loads((project / "metrics" / f"{name}.json").read_text(encoding="utf-8"))
