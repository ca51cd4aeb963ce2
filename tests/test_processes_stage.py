"""The whole stage in two processes: it ends as one process does, and each result is written once."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.report.charts import read_curve
from tests.projects import copy_parts, edit_yaml, run_stage

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


HOW = {"one": {"processes": 1}, "two": {"processes": 2}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name in HOW, a project after its stages fetch, tokenize and finetune."""
    projects = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, how in HOW.items():
            project = copy_parts(tmp_path_factory.mktemp("project") / name)
            edit_yaml(project / "configs/data/shapes.yaml", SCENES)
            settings = {f"finetune.{key}": value for key, value in {**TRAINING, **how}.items()}
            edit_yaml(project / "params.yaml", settings)
            for stage in ("fetch", "tokenize"):
                assert run_stage(project, stage).returncode == 0
            with (project / "src/promptseg/files.py").open("a", encoding="utf-8") as code:
                code.write(NOTES_WRITES)
            done = run_stage(project, "finetune")
            assert done.returncode == 0, done.stderr
            projects[name] = project
    return projects


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
    one, two = (read_curve(trained[name] / "metrics/live/plots/metrics") for name in HOW)
    assert [*one["step"]] == [*range(STEPS + 1)]
    assert one["val_miou"].notna().any()
    pd.testing.assert_frame_equal(one, two, rtol=2e-4, atol=2e-4)
    summaries = [json.loads((trained[name] / "metrics/train.json").read_text()) for name in HOW]
    assert summaries[1] == pytest.approx(summaries[0], rel=2e-4, abs=2e-4)


@pytest.mark.slow
def test_two_processes_move_the_weights_as_one_does(trained: dict[str, Path]) -> None:
    """After the last step, by the snapshots: the checkpoint holds the best step's weights, which may be the first.

    AdamW's first steps are as long as the rate whatever the gradient: where that is rounding, so is its sign.
    """
    states = [torch.load(_snapshot(trained[name]), weights_only=True) for name in HOW]
    one, two = (state["network"] for state in states)
    assert one.keys() == two.keys()
    moved = sum((one[name] - states[0]["best"][name]).abs().sum().item() for name in one)
    assert moved > 0
    far = [(one[name] - two[name]).abs() for name in one]
    assert max(each.max().item() for each in far) <= 2.1 * RATE * STEPS
    assert sum(each.sum().item() for each in far) <= 1e-4 * moved


@pytest.mark.slow
def test_the_checkpoint_of_two_processes_is_that_of_one(trained: dict[str, Path]) -> None:
    """Weights are whole, described alike, and of the step that scored best."""
    one, two = (load_checkpoint(trained[name] / "models/finetuned.safetensors") for name in HOW)
    assert two[0].config == one[0].config
    assert (two[1].step, two[1].model) == (one[1].step, one[1].model)
    weights = [network.state_dict() for network, _ in (one, two)]
    assert all((weights[0][key] - weights[1][key]).abs().max() <= 2.1 * RATE * STEPS for key in weights[0])


def _snapshot(project: Path) -> Path:
    (path,) = (project / ".cache" / "finetune").glob("*/state.pt")
    return path
