"""The table of the two rules: pairs of equal seeds, and nothing else may differ."""

import csv
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.mask_attention_rules import COLUMNS, pairs_of, summary
from tests.imports import ROOT

SCORES = {("inside", 7): 0.5, ("outside", 7): 0.4, ("inside", 8): 0.44, ("outside", 8): 0.46}


def run(rule: str, seed: int, **changes: Any) -> dict[str, str]:
    row = dict.fromkeys(COLUMNS, "1")
    row |= {"typ": "branch_commit", "finetune.init": "", "finetune.attends": rule, "finetune.seed": str(seed)}
    return row | {"miou": str(SCORES[rule, seed]), "Created": f"{rule} {seed}", **changes}


RUNS = [run(rule, seed) for rule, seed in sorted(SCORES, reverse=True)]


def test_runs_are_paired_by_seed_and_region_contrast():
    pairs = pairs_of([run("inside", 7, typ="workspace"), run("inside", 7, **{"finetune.init": "weights/a"}), *RUNS])
    assert [(one["Created"], other["Created"]) for one, other in pairs] == [
        ("inside 7", "outside 7"), ("inside 8", "outside 8")
    ]  # fmt: skip
    text = summary(pairs)
    assert "| 7 | 0.500 | 0.400 | -0.100 |" in text
    assert "Mean difference over 2 seeds: -0.040 (-0.100 to +0.020)." in text


@pytest.mark.parametrize("runs", [RUNS[:3], [*RUNS, RUNS[0]], []])
def test_a_seed_without_its_pair_is_refused(runs):
    with pytest.raises(ValueError, match=r"wanted one of each rule for every seed"):
        pairs_of(runs)


@pytest.mark.parametrize("key", ["finetune.steps", "data", "finetune.mask_resize"])
def test_runs_that_differ_otherwise_are_refused(key):
    with pytest.raises(ValueError, match=rf"^{key}: got \['1', '2'\] among the runs"):
        pairs_of([*RUNS[:3], {**RUNS[3], key: "2"}])


def test_the_command_writes_a_table(tmp_path):
    shown = tmp_path / "shown.csv"
    with shown.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(RUNS[0]))
        writer.writeheader()
        writer.writerows(RUNS)
    command = [sys.executable, "-m", "benchmarks.mask_attention_rules", str(tmp_path / "table.csv")]
    with shown.open() as stdin:
        done = subprocess.run(command, cwd=ROOT, stdin=stdin, capture_output=True, text=True, check=True)
    assert "Mean difference over 2 seeds" in done.stdout
    with (tmp_path / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["finetune.attends"], row["finetune.seed"]) for row in rows] == [
        ("inside", "7"), ("outside", "7"), ("inside", "8"), ("outside", "8")
    ]  # fmt: skip
