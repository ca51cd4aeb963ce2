"""Two processes train as one does, and workers, parts of steps and recomputation change nothing."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import drawn, micro, micro_network, micro_vit
from trainings import few_scenes, short_training, splits

from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.params import FinetuneConfig
from promptseg.training import loop
from promptseg.training.data import Steps, batches
from promptseg.training.loop import Outcome, finetune
from promptseg.training.losses import batch_terms
from promptseg.training.processes import make_accelerator, prepare_network, relaunched
from promptseg.training.snapshots import Snapshots

RULE = MaskAttention("inside", "bilinear")
ROOT = Path(__file__).resolve().parent.parent
CONFIG = short_training(batch_size=4, res=(64,), steps=4, train_phrases=6)


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def _train(config: FinetuneConfig, folder: Path) -> Outcome:
    return finetune(
        micro_network(RULE), splits(config), config, Snapshots(folder, 1e9), make_accelerator(bfloat16=False), None
    )


def _assert_same_curve(one: Outcome, curve: list[dict[str, float | None]]) -> None:
    assert len(one.curve) == len(curve)
    for ours, theirs in zip(one.curve, curve, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            expected = value if value is None else pytest.approx(value, rel=2e-4, abs=2e-4)
            assert theirs[key] == expected, (ours["step"], key)


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_share_a_step_out_and_lose_nothing(processes):
    config = replace(CONFIG, accumulate=2)
    data = splits(config).train
    whole = Steps(data, replace(config, accumulate=1), 1, 0)[1][0]
    parts = [part for index in range(processes) for part in Steps(data, config, processes, index)[1]]
    assert len(parts) == 2 * processes
    ours = sorted(part.pictures[row].sum().item() for part in parts for row in range(len(part.pictures)))
    assert ours == sorted(whole.pictures[row].sum().item() for row in range(4))


def test_pictures_that_cannot_be_shared_out_are_refused():
    with pytest.raises(ValueError, match="batch_size: got 4, wanted a multiple of 6, of 3 processes times fine"):
        Steps(splits(CONFIG).train, replace(CONFIG, accumulate=2), 3, 0)


def test_more_processes_than_gpus_are_refused_before_any_starts(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"finetune\.processes: got 8, wanted at most 1, the number of GPUs"):
        relaunched(8, "stages.finetune", [])


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("none-such --nnodes 2", "PROMPTSEG_LAUNCHER: 'none-such --nnodes 2': got a program that cannot be run"),
        ("false", "PROMPTSEG_LAUNCHER: 'false': a process failed"),
    ],
)
def test_a_launcher_that_fails_is_told(monkeypatch, launcher, message):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("PROMPTSEG_LAUNCHER", launcher)
    with pytest.raises(ValueError, match=message):
        relaunched(1, "stages.finetune", [])


def test_batches_start_where_they_are_asked_to():
    steps = Steps(splits(CONFIG).train, CONFIG, 1, 0)
    found = list(batches(steps, 2, 0))
    assert len(found) == 2
    assert torch.equal(found[0][0].pictures, steps[2][0].pictures)


@pytest.mark.slow
def test_workers_give_the_same_batches():
    steps = Steps(splits(CONFIG).train, CONFIG, 1, 0)
    for ours, theirs in zip(batches(steps, 0, 0), batches(steps, 0, 1), strict=True):
        assert all(
            torch.equal(one, other)
            for one, other in zip(*(vars(each[0]).values() for each in (ours, theirs)), strict=True)
        )


def test_recomputed_activations_change_nothing(tmp_path):
    plain = _train(CONFIG, tmp_path / "plain")
    _assert_same_curve(_train(replace(CONFIG, checkpoint_activations=True), tmp_path / "recomputed"), plain.curve)


def test_blocks_of_every_kind_are_computed_twice_to_hold_fewer_activations(monkeypatch):
    computed: Counter[type] = Counter()
    kinds = {type(block) for config in (micro(RULE), micro_vit(RULE)) for block in drawn(config, 0).blocks()}
    assert len(kinds) == 5
    for kind in kinds:
        monkeypatch.setattr(kind, "forward", _counted(kind.forward, kind, computed))
    for config in (micro(RULE), micro_vit(RULE)):
        network = drawn(config, 0)
        blocks = Counter(type(module) for module in network.modules() if type(module) in kinds)
        prepare_network(network, compiled=False, checkpoint_activations=True)
        computed.clear()
        batch = Steps(splits(CONFIG).train, CONFIG, 1, 0)[0][0]
        batch_terms(network, batch, CONFIG.loss_weights).weighted(CONFIG.loss_weights).backward()
        assert computed == {kind: 2 * count for kind, count in blocks.items()}


def _counted(forward: Callable[..., Any], kind: type, computed: "Counter[type]") -> Callable[..., Any]:
    def counting(*args: Any) -> Any:
        computed[kind] += 1
        return forward(*args)

    return counting


def test_parts_of_a_step_add_up_where_terms_do_not_cross_pictures(tmp_path):
    """The region term compares within a part: without it, two parts of pictures with equal counts are one step."""
    weights = replace(CONFIG.loss_weights, region=0.0)
    config = replace(CONFIG, loss_weights=weights, steps=1, learning_rate=1e-6, train_phrases=0)
    whole, parts = _train(config, tmp_path / "one"), _train(replace(config, accumulate=2), tmp_path / "two")
    assert parts.curve[1]["contrast"] == pytest.approx(whole.curve[1]["contrast"], rel=1e-4)


def test_training_stops_when_patience_is_at_its_end(tmp_path, monkeypatch):
    scores = iter([0.5, 0.6, 0.4, 0.3, 0.9])
    monkeypatch.setattr(loop, "validate", lambda *_: next(scores))
    config = replace(CONFIG, steps=20, val_every=2, patience=2, train_phrases=0)
    outcome = _train(config, tmp_path)
    assert (outcome.step, outcome.val_miou) == (2, 0.6)
    assert outcome.curve[-1]["step"] == 6
    monkeypatch.setattr(loop, "_forward_backward", lambda *_: pytest.fail("trained again"))
    assert _train(config, tmp_path).curve == outcome.curve


def test_scores_on_what_was_trained_on_stand_beside_validation(tmp_path):
    outcome = _train(CONFIG, tmp_path)
    scored = [row["step"] for row in outcome.curve if row.get("train_miou") is not None]
    assert scored == [row["step"] for row in outcome.curve if row.get("val_miou") is not None] == [0, 2, 4]


_ONE_OF_TWO = """
import json, sys, torch
torch.cuda.is_available = lambda: False
from pathlib import Path
from networks import micro_network
import trainings
from test_processes import CONFIG, RULE
from promptseg.training.data import GroundingData
from promptseg.training.processes import make_accelerator
from promptseg.training.loop import Splits, finetune
from promptseg.training.snapshots import Snapshots

folder = Path(sys.argv[1])
paths = {name: Path(path) for name, path in json.loads(sys.argv[2]).items()}
opened = {**paths, "cache_bytes": 10**8, "canvas_rule": "crop"}
open_split = lambda split, sizes: GroundingData(**opened, split=split, sizes=sizes)
accelerator = make_accelerator(bfloat16=False)
assert accelerator.num_processes == 2
small = [CONFIG.val_res]
own = folder / str(accelerator.process_index)  # as on two machines without a common disk
three = Splits(open_split("train", CONFIG.res), open_split("val", small), open_split("train", small))
snapshots = Snapshots(own, 1e9, writes=accelerator.is_main_process)
outcome = finetune(micro_network(RULE), three, CONFIG, snapshots, accelerator, folder / "plots" / "metrics")
(folder / f"{accelerator.process_index}.json").write_text(json.dumps(outcome.curve))
"""


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_two_processes_equal_one(tmp_path, monkeypatch, resumed):
    """Also where they go on from a snapshot that only the first one's disk holds."""
    alone = _train(CONFIG, tmp_path / "alone")
    if resumed:
        _stop_after(2, tmp_path / "0", monkeypatch)
    script = tmp_path / "one_of_two.py"
    script.write_text(_ONE_OF_TWO)
    paths = json.dumps({name: str(path) for name, path in few_scenes().items()})
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests"), str(ROOT)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), str(tmp_path), paths], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    curves = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2)]
    assert curves[0] == curves[1]
    _assert_same_curve(alone, curves[0])


def _stop_after(steps: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the snapshot of a run that was killed."""
    snapshots = Snapshots(folder, 0)

    def save(state: dict[str, Any]) -> None:
        Snapshots.save(snapshots, state)
        if state["step"] == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(snapshots, "save", save)
    with pytest.raises(KeyboardInterrupt):
        finetune(micro_network(RULE), splits(CONFIG), CONFIG, snapshots, make_accelerator(bfloat16=False), None)
