"""Whole runs: one folder per run, resumed exactly or not at all, killed by a real signal."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import micro, micro_network
from trainings import few_scenes, short_training

from promptseg.checkpoints.checkpoint import Provenance, load_checkpoint, save_checkpoint
from promptseg.files import sha256_of
from promptseg.networks import BUILDERS
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.params import FinetuneConfig, read_code
from promptseg.training import loop, losses
from promptseg.training.curve import FIGURES
from promptseg.training.loop import Outcome
from promptseg.training.losses import batch_terms
from promptseg.training.run import Run, run_finetune
from promptseg.training.snapshots import fingerprint
from tests.projects import copy_parts

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def micro_network_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILDERS, "nano", micro)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def _run(config: FinetuneConfig, snapshots: Path, code: Sequence[Path] = (), **paths: Path) -> Run:
    tables = _tables(snapshots)
    return run_finetune("nano", config, **{**few_scenes(), **paths}, cache=snapshots, code=code, curve=tables)


def _tables(snapshots: Path) -> Path:
    return snapshots.with_name(f"{snapshots.name}-live") / "plots" / "metrics"


def _assert_equal(one: Run, other: Run) -> None:
    assert one.outcome == other.outcome
    assert one.init_sha256 == other.init_sha256
    ours, theirs = one.network.state_dict(), other.network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def _folders(snapshots: Path) -> set[str]:
    return {path.name for path in (snapshots / "finetune").iterdir()}


def test_a_finished_run_is_returned_and_not_trained_again(tmp_path, monkeypatch):
    first = _run(short_training(steps=2), tmp_path)
    monkeypatch.setitem(losses.OBJECTIVES, XDecoder, lambda *_: pytest.fail("trained again"))
    _assert_equal(_run(short_training(steps=2), tmp_path), first)


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    config = short_training(steps=3, snapshot_every_s=0)
    _kill(config, tmp_path / "killed", monkeypatch, 2)
    trained = []
    with monkeypatch.context() as patched:
        patched.setitem(losses.OBJECTIVES, XDecoder, lambda *args: (trained.append(1), batch_terms(*args))[1])
        resumed = _run(config, tmp_path / "killed")
    assert len(trained) == 1
    _assert_equal(resumed, _run(config, tmp_path / "fresh"))


class _Killed(BaseException):
    pass


def _kill(config: FinetuneConfig, snapshots: Path, monkeypatch: pytest.MonkeyPatch, step: int, **others: Any) -> None:
    def killed(config: FinetuneConfig, at: int) -> float:
        if at == step:
            raise _Killed
        return rate(config, at)

    rate = loop.lr_factor
    with monkeypatch.context() as patched:
        patched.setattr(loop, "lr_factor", killed)
        with pytest.raises(_Killed):  # a run that was resumed beyond `step` would not get there
            _run(config, snapshots, **others)


@pytest.mark.parametrize("change", [{"learning_rate": 2e-3}, {"seed": 4}])
def test_another_parameter_is_another_run(tmp_path, monkeypatch, change):
    _kill(short_training(snapshot_every_s=0), tmp_path, monkeypatch, 1)
    _kill(short_training(snapshot_every_s=0, **change), tmp_path, monkeypatch, 0)
    assert len(_folders(tmp_path)) == 2


def test_another_input_is_another_run(tmp_path, monkeypatch):
    config, original = short_training(snapshot_every_s=0), few_scenes()
    _kill(config, tmp_path / "snapshots", monkeypatch, 1)
    samples, tokens, images = (tmp_path / original[name].name for name in ("samples", "tokens", "images"))
    first, second, *others = original["samples"].read_text(encoding="utf-8").splitlines(keepends=True)
    samples.write_text("".join((second, first, *others)), encoding="utf-8")
    np.save(tokens, np.load(original["tokens"])[::-1])
    images.mkdir()
    for archive in original["images"].iterdir():
        (images / archive.name).write_bytes(archive.read_bytes() + b"\n")  # still a zip, and not the same
    for changed in ({"samples": samples}, {"tokens": tokens}, {"images": images}):
        _kill(config, tmp_path / "snapshots", monkeypatch, 0, **changed)
    assert len(_folders(tmp_path / "snapshots")) == 4


def test_other_code_is_another_run(tmp_path, monkeypatch):
    code = tmp_path / "code"
    code.mkdir()
    (code / "loop.py").write_text("x = 1\n")
    _kill(short_training(snapshot_every_s=0), tmp_path / "snapshots", monkeypatch, 1, code=[code])
    (code / "loop.py").write_text("x = 2\n")
    _kill(short_training(snapshot_every_s=0), tmp_path / "snapshots", monkeypatch, 0, code=[code])
    assert len(_folders(tmp_path / "snapshots")) == 2


@pytest.mark.parametrize(
    ("edited", "resumed"), [("src/promptseg/report/page.py", True), ("src/promptseg/training/loop.py", False)]
)
def test_only_code_that_the_stage_depends_on_decides_whether_a_run_is_resumed(tmp_path, edited, resumed):
    project = copy_parts(tmp_path / "project")
    code = read_code(project, "finetune")
    assert {"stages/finetune.py", "src/promptseg/training", "src/promptseg/networks"} <= {
        path.relative_to(project).as_posix() for path in code
    }
    before = fingerprint({}, code)
    with (project / edited).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert (fingerprint({}, code) == before) == resumed


def test_a_full_gpu_says_what_to_change(tmp_path, monkeypatch):
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")

    monkeypatch.setattr(loop, "validate", full)
    with pytest.raises(ValueError, match=r"finetune: the GPU's memory is full \(.*2\.00 GiB\.\); raise finetune"):
        _run(short_training(), tmp_path)


def test_more_memory_for_pictures_than_there_is_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"finetune\.cache_gib: got 1e\+09, which this machine does not have; lower it"
    ):
        _run(short_training(cache_gib=1e9), tmp_path)


def test_a_loss_that_is_not_finite_leaves_no_state(tmp_path):
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        _run(short_training(learning_rate=1e30, clip_norm=1e30, warmup_steps=0), tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] in ([], ["lock"])


def test_no_steps_store_what_they_start_from_bit_for_bit(tmp_path):
    init, stored = tmp_path / "init.safetensors", tmp_path / "stored.safetensors"
    rule = MaskAttention("inside", "bilinear")
    save_checkpoint(init, micro_network(rule), Provenance("nano", None, {}, 9, 0.5), torch.float16)
    done = _run(short_training(init=str(init), steps=0), tmp_path / "snapshots")
    save_checkpoint(stored, done.network, Provenance("nano", done.init_sha256, {}, 0, None), torch.float32)
    before, after = load_checkpoint(init)[0].state_dict(), load_checkpoint(stored)[0].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert done.init_sha256 == sha256_of(init)
    assert done.ledger["kind"] == "ours"


def test_no_steps_train_and_validate_nothing_and_need_no_data(tmp_path, monkeypatch):
    init, nowhere = tmp_path / "init.safetensors", tmp_path / "nowhere"
    rule = MaskAttention("inside", "bilinear")
    save_checkpoint(init, micro_network(rule), Provenance("nano", None, {}, 9, 0.5), torch.float32)
    monkeypatch.setattr(loop, "validate", lambda *_: pytest.fail("validated"))
    config = short_training(init=str(init), steps=0)
    tables = tmp_path / "live/plots/metrics"
    done = run_finetune("nano", config, nowhere, nowhere, nowhere, tmp_path / "cache", [], tables)
    assert done.outcome == Outcome(0, None, [{"step": 0}])
    assert {path.name: path.read_text() for path in tables.iterdir()} == {
        f"{name}.tsv": f"step\t{name}\n" for name in FIGURES
    }
    assert not (tmp_path / "cache").exists()


def test_training_from_a_checkpoint_is_never_worse_than_it(tmp_path):
    init = tmp_path / "init.safetensors"
    rule = MaskAttention("inside", "bilinear")
    save_checkpoint(init, micro_network(rule), Provenance("nano", None, {}, 9, 0.5), torch.float32)
    outcome = _run(
        short_training(init=str(init), steps=2, val_every=1, learning_rate=1.0), tmp_path / "snapshots"
    ).outcome
    scores = [row["val_miou"] for row in outcome.curve if row.get("val_miou") is not None]
    assert outcome.val_miou == max(scores) >= scores[0]


# Trains in a process of its own until step 3, says so, and then hangs, so that the test can kill it there.
_VICTIM = """
import sys, time
from pathlib import Path
import torch
torch.cuda.is_available = lambda: False
from networks import micro
from trainings import short_training
from promptseg.training import loop
from promptseg.training.run import run_finetune
from promptseg.networks import BUILDERS

BUILDERS["nano"] = micro
rate = loop.lr_factor

def hangs(config, step):
    if step == 3:
        print("at step 3", flush=True)
        time.sleep(600)
    return rate(config, step)

loop.lr_factor = hangs
images, samples, tokens, snapshots, tables = map(Path, sys.argv[1:])
run_finetune("nano", short_training(snapshot_every_s=0), images, samples, tokens, snapshots, [], tables)
"""


@pytest.mark.slow
def test_a_run_killed_with_signal_9_goes_on_where_it_was(tmp_path, monkeypatch):
    scenes = [few_scenes()[name] for name in ("images", "samples", "tokens")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))}
    paths = [*scenes, tmp_path / "snapshots", _tables(tmp_path / "snapshots")]
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, *map(str, paths)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "at step 3\n"
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    live, fresh = (_tables(tmp_path / name) for name in ("snapshots", "fresh"))
    assert _steps(live) == ["1", "2", "3"]  # on disk while it trained
    trained = []
    with monkeypatch.context() as patched:
        patched.setitem(losses.OBJECTIVES, XDecoder, lambda *args: (trained.append(1), batch_terms(*args))[1])
        resumed = _run(short_training(snapshot_every_s=0), tmp_path / "snapshots")
    assert len(trained) == 2
    assert len(_folders(tmp_path / "snapshots")) == 1
    _assert_equal(resumed, _run(short_training(snapshot_every_s=0), tmp_path / "fresh"))
    assert _steps(live) == ["1", "2", "3", "4", "5"]
    for name in FIGURES:
        assert (live / f"{name}.tsv").read_bytes() == (fresh / f"{name}.tsv").read_bytes()


def _steps(tables: Path) -> list[str]:
    lines = (tables / "loss.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[0] for line in lines[1:]]
