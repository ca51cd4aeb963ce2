"""The training loop: its terms against a slow oracle, what it keeps, what it refuses, and that it learns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import drawn, micro_network, micro_phrase, random_phrases, random_pictures
from torch import Tensor
from torch.nn import functional as F
from trainings import short_training, splits

from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.params import FinetuneConfig, LossWeights
from promptseg.training import data as data_module
from promptseg.training import loop, losses
from promptseg.training.data import Batch
from promptseg.training.loop import Outcome, finetune
from promptseg.training.losses import LossTerms, assign, batch_terms, pairwise_mask_terms
from promptseg.training.processes import make_accelerator
from promptseg.training.snapshots import Snapshots
from promptseg.training.validation import MASK_BIASES, calibrate_masks, validate

RULE = MaskAttention("inside", "bilinear")


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def _train(config: FinetuneConfig, folder: Path) -> tuple[XDecoder, Outcome]:
    network = micro_network(RULE)
    snapshots = Snapshots(folder, config.snapshot_every_s)
    return network, finetune(network, splits(config), config, snapshots, make_accelerator(bfloat16=False), None)


def _weights(network: XDecoder) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _batch(own: list[int], pictures: int, per_picture: int) -> Batch:
    generator = torch.Generator().manual_seed(4)
    targets = torch.rand(pictures, per_picture, 16 * 16, generator=generator).round()
    for row, place in enumerate(own):
        targets[row // per_picture, row % per_picture] = targets[row // per_picture, place]
    return Batch(random_pictures(pictures, 64), random_phrases(pictures * per_picture), targets, torch.tensor(own))


def _oracle_terms(network: XDecoder, batch: Batch, config: FinetuneConfig) -> list[float]:
    """Every layer, every row, every object after the other."""
    outputs, phrase = network(batch.pictures, batch.token_ids, every_layer=True)
    per_picture, weights = batch.phrases_per_picture, config.loss_weights
    layers = []
    for grounding in outputs:
        similarity = network.similarity(grounding.query_embedding, phrase)
        bces, dices, contrasts = [], [], []
        for row, own in enumerate(batch.own.tolist()):
            picture = row // per_picture
            objects = sorted({int(each) for each in batch.own[picture * per_picture : (picture + 1) * per_picture]})
            bce, dice = pairwise_mask_terms(
                grounding.mask_logits[row].flatten(1)[None], batch.targets[picture, objects][None]
            )
            text = 1 - similarity[row].softmax(0)
            cost = weights.mask_bce * bce[0] + weights.mask_dice * dice[0]  # (Q, objects)
            cost[:, objects.index(own)] += weights.contrast * text
            free_queries, free_objects = set(range(len(cost))), set(range(len(objects)))
            while free_objects:
                query, place = min(((q, k) for q in free_queries for k in free_objects), key=lambda qk: cost[qk])
                free_queries.remove(query)
                free_objects.remove(place)
                bces.append(bce[0, query, place])
                dices.append(dice[0, query, place])
                if objects[place] == own:
                    contrasts.append(-similarity[row].log_softmax(0)[query])
        layers.append([torch.stack(each).mean().item() for each in (bces, dices, contrasts)])
    return [*torch.tensor(layers).mean(0).tolist(), _oracle_region(network, batch, phrase)]


def _oracle_region(network: XDecoder, batch: Batch, phrase: Tensor) -> float:
    """Every phrase against every distinct region, pooled cell by cell, on each map."""
    mask_features, pyramid = network.encode(batch.pictures)
    per_picture = batch.phrases_per_picture
    distinct = sorted({(row // per_picture, own) for row, own in enumerate(batch.own.tolist())})
    losses = []
    for features in pyramid:
        regions = []
        for picture, place in distinct:
            mask = batch.targets[picture, place].view(mask_features.shape[2:])
            weights = F.adaptive_avg_pool2d(mask[None], features.shape[2:])[0]
            total = sum(weights[y, x] * features[picture, :, y, x] for y, x in np.ndindex(*weights.shape))
            regions.append(network.describe(total / weights.sum()))
        for row, own in enumerate(batch.own.tolist()):
            logits = network.similarity(torch.stack(regions)[None], phrase[row][None])[0]
            losses.append(F.cross_entropy(logits, torch.tensor(distinct.index((row // per_picture, own)))))
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize(
    ("own", "pictures"), [([0], 1), ([0, 1, 2], 1), ([0, 0, 2, 0, 1, 1], 2), ([0, 0, 0, 0, 0, 0], 2)]
)
def test_terms_equal_the_oracles(own, pictures):
    network, config = micro_network(RULE), short_training()
    batch = _batch(own, pictures, len(own) // pictures)
    with torch.no_grad():
        found = batch_terms(network, batch, config.loss_weights)
        expected = _oracle_terms(network, batch, config)
    assert list(found.values().values()) == pytest.approx(expected, abs=1e-4)


def test_bfloat16_gives_nearly_the_same_terms(monkeypatch):
    """With one matching for both: where two queries cost nearly the same, rounding may choose the other one."""
    network, config, batch = micro_network(RULE), short_training(), _batch([0, 1, 2], 1, 3)
    matched: list[Tensor] = []
    monkeypatch.setattr(losses, "assign", lambda cost, real: matched.append(assign(cost, real)) or matched[-1])
    with torch.no_grad():
        exact = batch_terms(network, batch, config.loss_weights)
        monkeypatch.setattr(losses, "assign", lambda *_: matched.pop(0))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = batch_terms(network, batch, config.loss_weights)
    assert not matched
    assert {term.dtype for term in vars(rounded).values()} == {torch.float32}
    assert list(rounded.values().values()) == pytest.approx(list(exact.values().values()), rel=0.02)
    assert rounded.values() != exact.values()


def test_likeness_is_float32_under_autocast():
    network = micro_network(RULE)
    queries, phrase = torch.randn(2, 6, 16), torch.randn(2, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        likeness = network.similarity(queries, phrase)
    assert torch.equal(likeness, network.similarity(queries, phrase).detach())


def test_gradients_reach_the_text_encoder_through_the_loss():
    network, config = micro_network(RULE), short_training()
    batch_terms(network, _batch([0, 1], 1, 2), config.loss_weights).weighted(config.loss_weights).backward()
    gradient = network.text_encoder.token_embedding.weight.grad
    assert gradient is not None
    assert gradient[random_phrases(2)[0, 0]].abs().sum() > 0


def _results(network: XDecoder, outcome: Outcome) -> dict[str, Any]:
    """Everything that a run ends with, comparable."""
    return {"outcome": outcome, **{key: value.tolist() for key, value in network.state_dict().items()}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: False)
        return _results(*_train(short_training(), tmp_path_factory.mktemp("whole")))


def test_equal_seeds_give_equal_runs_and_others_do_not(tmp_path, whole):
    assert _results(*_train(short_training(), tmp_path / "same")) == whole
    assert _train(short_training(seed=4), tmp_path / "other")[1].curve != whole["outcome"].curve


def test_the_curve_has_a_row_per_step_and_scores_where_they_are_due(whole):
    outcome = whole["outcome"]
    assert [row["step"] for row in outcome.curve] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in outcome.curve if row.get("val_miou") is not None] == [0, 2, 4, 5]
    assert all({"loss", "mask_bce", "mask_dice", "contrast", "region"} <= row.keys() for row in outcome.curve[1:])
    for row in outcome.curve[1:]:
        expected = 5 * row["mask_bce"] + 5 * row["mask_dice"] + 2 * row["contrast"] + 2 * row["region"]
        assert row["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.5, 0.3, 0.5], 2), ([0.9, 0.5, 0.3, 0.4], 0), ([0, 0, 0, 1], 5)])
def test_the_best_weights_are_kept(tmp_path, monkeypatch, scores, best):
    upcoming, seen = iter(scores), []

    def scripted(network: XDecoder, *_: object) -> float:
        seen.append(_weights(network))
        return next(upcoming)

    monkeypatch.setattr(loop, "validate", scripted)
    network, outcome = _train(short_training(steps=5, val_every=2), tmp_path)
    assert (outcome.step, outcome.val_miou) == (best, max(scores))
    assert _equal(_weights(network), seen[[0, 2, 4, 5].index(best)])
    assert not _equal(seen[0], seen[1])


def test_no_steps_leave_the_network_as_it_was(tmp_path):
    network, outcome = _train(short_training(init="some", steps=0), tmp_path)
    assert _equal(_weights(network), _weights(micro_network(RULE)))
    assert outcome.step == 0
    assert [row["step"] for row in outcome.curve] == [0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_terms(tmp_path, monkeypatch, value):
    def broken(network: XDecoder, batch: Batch, weights: LossWeights) -> LossTerms:
        good = batch_terms(network, batch, weights)
        return LossTerms(good.mask_bce, good.mask_dice * value, good.contrast, good.region)

    monkeypatch.setitem(losses.OBJECTIVES, XDecoder, broken)
    with pytest.raises(
        FloatingPointError, match=rf"step 0: the loss is {value} .*'mask_dice': {value}.*lower learning_"
    ):
        _train(short_training(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_diverges_later_leaves_the_state_before(tmp_path, monkeypatch):
    calls: Iterator[int] = iter(range(9))
    monkeypatch.setitem(losses.OBJECTIVES, XDecoder, lambda *args: _scaled(batch_terms(*args), next(calls) == 3))
    with pytest.raises(FloatingPointError, match="step 3: the loss is nan"):
        _train(short_training(snapshot_every_s=0), tmp_path)
    state = Snapshots(tmp_path, 0).restore()
    assert state is not None
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["network"].values())


def _scaled(terms: LossTerms, broken: bool) -> LossTerms:
    return LossTerms(*(value * (float("nan") if broken else 1) for value in vars(terms).values()))


class _Killed(BaseException):
    """Stands for a signal: nothing catches it."""


def _stop_at(monkeypatch: pytest.MonkeyPatch, stop: int | None) -> list[int]:
    """Record the steps that are trained; end the run as `stop` is about to be."""
    trained: list[int] = []
    draw = data_module.draw

    def recorded(config: FinetuneConfig, step: int, samples_of: Any) -> Any:
        if step == stop:
            raise _Killed
        trained.append(step)
        return draw(config, step, samples_of)

    monkeypatch.setattr(data_module, "draw", recorded)
    return trained


def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patched:
        _stop_at(patched, 3)
        with pytest.raises(_Killed):
            _train(short_training(snapshot_every_s=0), tmp_path)
    trained = _stop_at(monkeypatch, None)
    assert _results(*_train(short_training(), tmp_path)) == whole
    assert trained == [3, 4]


def test_a_run_repeats_only_what_came_after_its_last_snapshot(tmp_path, monkeypatch, whole):
    due = iter([False, True, False, False])
    with monkeypatch.context() as patched:
        patched.setattr(Snapshots, "due", lambda _: next(due))
        _stop_at(patched, 4)
        with pytest.raises(_Killed):
            _train(short_training(), tmp_path)
    trained = _stop_at(monkeypatch, None)
    assert _results(*_train(short_training(), tmp_path)) == whole
    assert trained == [2, 3, 4]


def test_it_learns(tmp_path):
    config = short_training(steps=15, batch_size=6, res=(64,), val_every=15, learning_rate=1e-2)
    _, outcome = _train(config, tmp_path)
    losses = [row["loss"] for row in outcome.curve[1:]]
    assert max(losses[-3:]) < 0.7 * losses[0]


def test_a_step_is_clipped(tmp_path, monkeypatch):
    norms = []
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self: norms.append(
            torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"] if p.grad is not None]).norm()
        ),
    )
    _train(short_training(steps=2, clip_norm=0.01), tmp_path)
    assert [norm.item() for norm in norms] == [pytest.approx(0.01, rel=1e-3)] * 2


def test_cross_entropy_is_over_a_pictures_queries():
    network, config = micro_network(RULE), short_training()
    batch = _batch([0], 1, 1)
    with torch.no_grad():
        outputs, phrase = network(batch.pictures, batch.token_ids, every_layer=True)
        contrast = batch_terms(network, batch, config.loss_weights).contrast.item()
        least = [F.log_softmax(network.similarity(g.query_embedding, phrase), dim=1) for g in outputs]
    assert min(-each.max() for each in least) <= contrast <= max(-each.min() for each in least)


def test_frozen_parts_stay_as_they_are_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    before = _weights(micro_network(RULE))
    network, outcome = _train(short_training(frozen=("backbone", "mask_decoder.norm")), tmp_path)
    changed = {key for key, value in _weights(network).items() if not torch.equal(value, before[key])}
    assert outcome.step == 0 or changed
    assert not any(key.startswith(("backbone.", "mask_decoder.norm.")) for key in changed)
    with pytest.raises(ValueError, match=r"finetune.frozen: got 'backbon', .*wanted one of .*backbone, text_encoder"):
        loop.freeze(network, ["backbon"])


def test_an_average_moves_by_its_share_and_is_what_is_kept(tmp_path: Path) -> None:
    network, averaged = micro_network(RULE), loop._averaged(micro_network(RULE), None)
    start = averaged.log_temperature.item()
    network.log_temperature.data.fill_(start + 1)
    loop._average(averaged, network, 0.75)
    assert averaged.log_temperature.item() == pytest.approx(start + 0.25)
    kept = [_weights(_train(short_training(average=share), tmp_path / str(share))[0]) for share in (0.0, 0.9)]
    resumed = _weights(_train(short_training(average=0.9), tmp_path / "0.9")[0])
    assert _equal(resumed, kept[1])


def test_the_bias_of_masks_is_the_one_that_scores_best() -> None:
    config = short_training()
    network, data = drawn(micro_phrase(RULE), 0), splits(config).val
    device = torch.device("cpu")
    calibrate_masks(network, data, 64, 6, device)
    best = validate(network, data, 64, 6, device)
    for bias in MASK_BIASES:
        network.mask_bias.fill_(bias)
        assert validate(network, data, 64, 6, device) <= best + 1e-9
