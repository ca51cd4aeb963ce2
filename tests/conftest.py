"""What tests share: one finished run of the pipeline, and one thread for each of several workers."""

import json
import os
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

from tests.projects import FEW_SCENES, SMALL, copy_tracked, edit_yaml, git, stages_run

hypothesis.settings.register_profile("any machine", deadline=None)  # no test may depend on how busy it is
hypothesis.settings.load_profile("any machine")
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: each worker has a core


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A tiny project after its first `dvc repro`, committed, and the stages that ran: to copy, not to change.

    Made once, for all workers.
    """
    base = tmp_path_factory.getbasetemp().parent if WORKER else tmp_path_factory.getbasetemp()
    project, ran = base / "finished-run", base / "finished-run.json"
    with FileLock(base / "finished-run.lock"):
        if not ran.exists():
            copy_tracked(project)
            git(project, "init", "-q", "-b", "main")
            for name in ("user.name", "user.email"):
                git(project, "config", name, "test@localhost")
            (project / "dvc.lock").unlink(missing_ok=True)
            (project / "weights").mkdir(exist_ok=True)  # a dependency, though this run starts from nothing
            edit_yaml(project / "params.yaml", SMALL)
            edit_yaml(project / "configs/data/shapes.yaml", FEW_SCENES)
            git(project, "add", "--all")
            git(project, "commit", "--message", "as cloned")
            names = stages_run(project, "repro")
            git(project, "add", "--all")
            git(project, "commit", "--message", "first run")
            ran.write_text(json.dumps(names), encoding="utf-8")
    return project, json.loads(ran.read_text(encoding="utf-8"))
