"""Copies of the project in folders of their own, for tests that run its stages or its whole graph."""

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
