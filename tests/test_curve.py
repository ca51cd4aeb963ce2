"""The curve on disk while a network trains: every step once, in DVCLive's tables, and nothing else anywhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from promptseg.report.charts import read_curve
from promptseg.training.curve import FIGURES, LiveCurve, Row

STEPS: list[Row] = [
    {"step": step, "loss": step / 3, "mask_bce": 0.5, "mask_dice": 0.25, "contrast": 1e-6, "region": 2.0}
    for step in (1, 2, 3)
]
ROWS: list[Row] = [{"step": 0, "loss": None, "val_miou": 0.25}, *STEPS[:2], {**STEPS[2], "val_miou": 0.75}]


def test_rows_are_there_as_soon_as_they_are_handed_over(tmp_path: Path) -> None:
    tables = tmp_path / "plots/metrics"
    curve = LiveCurve(tables, ROWS[:1])
    for end in (2, 4, 4):
        curve.update(ROWS[:end])
        assert [*read_curve(tables)["step"]] == list(range(end))
    curve.close()
    found = [row.dropna().to_dict() for _, row in read_curve(tables).iterrows()]
    assert found[0] == {"step": 0, "val_miou": 0.25}
    assert found[3] == {**STEPS[2], "contrast": 0.0, "val_miou": 0.75}  # five digits
    assert (tables / "loss.tsv").read_text() == "step\tloss\n1\t0.33333\n2\t0.66667\n3\t1.0\n"


def test_a_resumed_run_goes_on_from_its_snapshot_in_the_same_tables(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole/plots/metrics", tmp_path / "killed/plots/metrics"
    LiveCurve(whole, []).update(ROWS)
    LiveCurve(killed, []).update(ROWS[:3])  # one more than the snapshot knows
    LiveCurve(killed, ROWS[:2]).update(ROWS)
    for name in FIGURES:
        table = f"{name}.tsv"
        assert (killed / table).read_text() == (whole / table).read_text()


def test_a_process_that_does_not_write_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    curve = LiveCurve(None, [])
    curve.update(ROWS)
    curve.close()
    assert not list(tmp_path.iterdir())


def test_a_repository_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "x")
    before = run("git", "for-each-ref"), run("git", "log", "--all", "--format=%H")
    curve = LiveCurve(tmp_path / "live/plots/metrics", [])
    curve.update(ROWS)
    curve.close()
    assert (run("git", "for-each-ref"), run("git", "log", "--all", "--format=%H")) == before
    assert run("git", "status", "--short").split() == ["??", "live/"]


def test_what_dvclive_meets_in_dvcs_records_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens them, though nothing is written there: a full disk and a repository without a commit end it."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"wanted room on the disk below .dvc and, in a git repository, a first commit"):
        LiveCurve(tmp_path / "plots" / "metrics", [])
