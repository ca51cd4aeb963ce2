"""A network that is sharded over two processes trains as one that is not, resumes exactly and leaves whole files."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import micro_network
from sharded_process import CONFIGS, MATRICES, RULE, muon_steps
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path
from trainings import few_scenes, short_training, splits

from promptseg.training.device import make_accelerator
from promptseg.training.loop import Outcome, finetune
from promptseg.training.run import run_finetune
from promptseg.training.snapshots import Snapshots

ROOT = Path(__file__).resolve().parent.parent
State = dict[str, Any]


def test_one_process_has_nothing_to_shard(tmp_path):
    with pytest.raises(ValueError, match=r"^finetune\.shard: got true with one process, wanted several .*; set finetu"):
        run_finetune("nano", short_training(shard=True), tmp_path, tmp_path, tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def _launch(folder: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    scenes = json.dumps({name: str(path) for name, path in few_scenes().items()})
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(ROOT / "tests" / "sharded_process.py")
    return subprocess.run(
        [*launch, script, str(folder), scenes, *names], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained all of CONFIGS, "resumed" after one of them was killed."""
    folder = tmp_path_factory.mktemp("sharded")
    assert "Signal 9 (SIGKILL)" in _launch(folder, "killed").stderr
    assert 2 <= _state(folder / "resumed")["step"] <= 3
    done = _launch(folder, *CONFIGS, "muon-steps")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=["adamw", "muon", "recomputed"])
def name(request: pytest.FixtureRequest) -> str:
    """A training that nothing disturbed."""
    return request.param


@pytest.fixture(scope="module")
def locked(name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, State]:
    """The same training in one process: what it ends with, and its last snapshot."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        config = CONFIGS[name]
        outcome = finetune(micro_network(RULE), splits(config), config, Snapshots(folder, 1e9), make_accelerator())
    return outcome, _state(folder)


def _state(folder: Path) -> State:
    state = Snapshots(folder, 1e9).restore()
    assert state is not None
    return state


def _seen(folder: Path, name: str) -> list[State]:
    return [json.loads((folder / f"{name}-{index}.json").read_text()) for index in range(2)]


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(sharded, name, alone):
    first, second = _seen(sharded, name)
    assert first["curve"] == second["curve"]
    assert len(first["curve"]) == len(alone[0].curve) == 1 + CONFIGS[name].steps
    for ours, theirs in zip(first["curve"], alone[0].curve, strict=True):
        known = {key: value for key, value in theirs.items() if value is not None}
        assert {key: ours[key] for key in known} == pytest.approx(known, rel=2e-4, abs=2e-4)
        assert ours.keys() == theirs.keys()


@pytest.mark.slow
def test_each_holds_half_of_the_weights_and_of_their_moments(sharded, name, alone):
    state = alone[1]
    for kind, whole in (("weights", state["network"]), ("moments", state["optimizers"])):
        numbers = sum(leaf.numel() for _, leaf in _tensors(whole))
        held = [seen[kind] for seen in _seen(sharded, name)]
        assert numbers <= sum(held) < 1.001 * numbers  # both have the temperature and the optimizers' counts of steps
        assert max(held) < 0.51 * numbers


@pytest.mark.slow
def test_gradients_are_clipped_by_the_norm_of_all_of_them(sharded, name):
    for seen in _seen(sharded, name):
        assert seen["norms"] == pytest.approx([CONFIGS[name].clip_norm] * CONFIGS[name].steps, rel=1e-4)


@pytest.mark.slow
def test_a_snapshot_is_that_of_one_process(sharded, name, alone):
    """Key for key, in order, shapes and number formats."""
    ours, theirs = _leaves(_state(sharded / name)), _leaves(alone[1])
    assert [(path, type(leaf)) for path, leaf in ours] == [(path, type(leaf)) for path, leaf in theirs]
    for (path, one), (_, other) in zip(ours, theirs, strict=True):
        if isinstance(one, Tensor):
            assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device), path


@pytest.mark.slow
def test_two_processes_move_the_weights_as_one_does(sharded, name, alone):
    ours, theirs = _state(sharded / name)["network"], alone[1]["network"]
    first = micro_network(RULE).state_dict()
    moved = sum((theirs[key] - first[key]).abs().sum().item() for key in first)
    far = sum((theirs[key] - ours[key]).abs().sum().item() for key in first)
    # Muon makes all singular values equal, those too that are rounding and nothing else.
    assert 0 < far < (1e-4 if name == "adamw" else 0.05) * moved


@pytest.mark.slow
def test_muon_moves_sharded_matrices_exactly_as_whole_ones(sharded):
    found = torch.load(sharded / "muon-steps.pt", weights_only=True)
    assert len(found) == len(MATRICES)
    for one, other in zip(found, muon_steps(torch.optim.Muon, lambda whole: whole), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_moments_and_so_gradients_are_those_of_one_process(sharded, name, alone):
    """AdamW and Muon move by the same whatever the gradients' size, so that weights alone would not tell."""
    ours, theirs = _state(sharded / name)["optimizers"], alone[1]["optimizers"]
    for kind in ("exp_avg", "exp_avg_sq", *(["momentum_buffer"] if len(theirs) == 2 else [])):
        pairs = [
            (moments[kind], other["state"][index][kind])
            for one, other in zip(ours, theirs, strict=True)
            for index, moments in one["state"].items()
            if kind in moments
        ]
        size = sum(other.abs().sum().item() for _, other in pairs)
        far = sum((one - other).abs().sum().item() for one, other in pairs)
        assert far < 1e-3 * size, kind
        if kind != "momentum_buffer":
            (temperature,) = (pair for pair in pairs if pair[0].ndim == 0)  # which is not sharded
            assert temperature[0].item() == pytest.approx(temperature[1].item(), rel=1e-3)


@pytest.mark.slow
def test_the_network_ends_with_its_best_weights_whole(sharded, name):
    best = _state(sharded / name)["best"]
    ended = torch.load(sharded / f"{name}.pt", weights_only=True)
    assert list(ended) == list(best) == list(micro_network(RULE).state_dict())
    assert all(torch.equal(ended[key], best[key]) for key in best)


@pytest.mark.slow
def test_first_weights_that_are_not_beaten_come_back_whole(sharded):
    first, ended = micro_network(RULE).state_dict(), torch.load(sharded / "unbeaten.pt", weights_only=True)
    for found in (ended, _state(sharded / "unbeaten")["best"]):
        assert all(type(found[key]) is Tensor and torch.equal(found[key], first[key]) for key in first)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(sharded):
    resumed, whole = _state(sharded / "resumed"), _state(sharded / "muon")
    assert _seen(sharded, "resumed")[0]["curve"] == _seen(sharded, "muon")[0]["curve"]
    assert 1 <= len(_seen(sharded, "resumed")[0]["norms"]) <= 2
    for (path, one), (_, other) in zip(_leaves(resumed), _leaves(whole), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, path


@pytest.mark.slow
def test_one_process_can_go_on_from_a_snapshot_of_two(sharded, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    snapshots, config = Snapshots(tmp_path, 1e9), replace(CONFIGS["muon"], steps=6, val_every=6)
    snapshots.save(_state(sharded / "muon"))
    outcome = finetune(micro_network(RULE), splits(config), config, snapshots, make_accelerator())
    assert [row["step"] for row in outcome.curve] == list(range(7))


@pytest.mark.slow
def test_snapshots_are_all_that_is_written(sharded):
    assert {path.relative_to(sharded).as_posix() for path in sharded.rglob("*.*")} == {
        *(f"{name}/state.pt" for name in CONFIGS),
        *(f"{name}.pt" for name in (*CONFIGS, "muon-steps")),
        *(f"{name}-{index}.json" for name in CONFIGS for index in range(2)),
    }


def _leaves(state: State) -> list[tuple[str, Any]]:
    return [(str(path), leaf) for path, leaf in tree_flatten_with_path(state)[0]]


def _tensors(state: State) -> list[tuple[str, Tensor]]:
    return [(path, leaf) for path, leaf in _leaves(state) if isinstance(leaf, Tensor)]
