"""docs/compare.md as a new user follows it, on a network too small to know anything: sweep, choose, apply, compare."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.projects import copy_run, dvc, git, metric, run_command, run_dvc, stages_run

pytestmark = pytest.mark.slow
LONGEST_S = 1500


@pytest.fixture(scope="module")
def swept(finished_run: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project after its first run, committed on main, and a queued sweep of two sizes that DVC's worker ran."""
    project = copy_run(finished_run[0], tmp_path_factory.mktemp("story") / "project")
    ours(project, "grid", "--prefix", "sweep-", "res=96,128")
    dvc(project, "queue", "start")
    try:
        deadline = time.monotonic() + LONGEST_S
        while any(word in dvc(project, "queue", "status") for word in ("Queued", "Running")):
            assert time.monotonic() < deadline, dvc(project, "queue", "status")
            time.sleep(2)
        yield project
    finally:
        run_dvc(project, "queue", "stop", "--kill")


def ours(project: Path, *arguments: str) -> str:
    """Run one of our own command lines, which must succeed; return what it says."""
    done = run_command(project, "-m", "promptseg", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git_says(project: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, check=True).stdout


def test_the_sweep_is_drawn_and_plots_lay_experiments_over_each_other(swept: Path) -> None:
    assert "2 experiments" in ours(swept, "sweep-plot", "--prefix", "sweep-")
    assert (swept / "sweep.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert "docs/sweep.svg" not in git_says(swept, "status", "--short")
    dvc(swept, "plots", "diff", "sweep-res96", "sweep-res128")
    page = (swept / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "Latency against mIoU" in page
    assert all(page.count(name) for name in ("sweep-res96", "sweep-res128"))


def test_a_queued_sweep_is_recommended_applied_committed_and_compared(swept: Path) -> None:
    said = ours(swept, "recommend", "--above-miou", "0", "--under-ms", "100000")
    assert all(name in said for name in ("sweep-res96", "sweep-res128", "workspace"))
    assert "take it: dvc exp apply sweep-res" in said or "it is what you have" in said
    dvc(swept, "exp", "apply", "sweep-res96")
    assert metric(swept, "export")["res"] == 96
    assert stages_run(swept, "repro") == [], "an applied experiment has run already"
    git(swept, "checkout", "-q", "-b", "at-96")
    git(swept, "commit", "-a", "-m", "Run at 96 px")
    changed = json.loads(dvc(swept, "metrics", "diff", "main", "--json"))
    assert changed["metrics/export.json"]["res"] == {"old": 64, "new": 96, "diff": 32}
    commit = git_says(swept, "rev-parse", "HEAD").strip()
    assert f"at commit {commit}" in ours(swept, "report")
    assert f"Git commit: {commit}" in (swept / "report.html").read_text(encoding="utf-8")
