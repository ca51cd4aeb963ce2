"""Which optimizer moves which weight, at which rate, and that Muon's step is what it says."""

import pytest
import torch
from networks import micro_network
from trainings import short_training

from promptseg.params import LrScale
from promptseg.training.optimizers import make_optimizers, parameter_groups, set_learning_rates


def test_decay_spares_biases_norms_scales_and_tables():
    network = micro_network()
    groups = parameter_groups(network, LrScale(1.0, 1.0))
    decayed, whole = groups[1.0, True], groups[1.0, False]
    by_id = {id(parameter): name for name, parameter in network.named_parameters()}
    names = [{by_id[id(parameter)] for parameter in group} for group in (decayed, whole)]
    assert names[0] | names[1] == set(by_id.values())
    assert not names[0] & names[1]
    assert {
        "text_encoder.token_embedding.weight",
        "text_encoder.positional_embedding",
        "mask_decoder.query_content",
        "mask_decoder.query_position",
        "mask_decoder.level_embedding",
        "log_temperature",
        "backbone.stages.0.blocks.0.scale1",
    } <= names[1]
    assert all(name.endswith((".weight", "projection")) for name in names[0])


@pytest.mark.parametrize("muon", [None, 0.01])
def test_every_weight_has_one_optimizer_and_muon_takes_matrices_only(muon):
    network = micro_network()
    optimizers = make_optimizers(network, short_training(muon_learning_rate=muon))
    assert (
        [type(each) for each in optimizers] == [torch.optim.AdamW]
        if muon is None
        else [torch.optim.Muon, torch.optim.AdamW]
    )
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    if muon is not None:
        (group,) = optimizers[0].param_groups
        by_id = {id(p): name for name, p in network.named_parameters()}
        names = {by_id[id(p)] for p in group["params"]}
        assert "mask_decoder.layers.0.ffn.0.weight" in names
        assert "text_encoder.token_embedding.weight" not in names
        assert all(p.ndim == 2 for p in group["params"])


def test_parts_learn_at_their_shares_of_the_rates():
    config = short_training(learning_rate=0.5, muon_learning_rate=0.02, lr_scale=LrScale(0.1, 0.0))
    network = micro_network()
    optimizers = make_optimizers(network, config)
    by_id = {id(parameter): name for name, parameter in network.named_parameters()}
    for optimizer, base in zip(optimizers, (0.02, 0.5), strict=True):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                share = {"backbone": 0.1, "text_encoder": 0.0}.get(by_id[id(parameter)].partition(".")[0], 1.0)
                assert group["base_lr"] == pytest.approx(base * share)


def test_rates_are_shares_of_each_groups_own():
    optimizers = make_optimizers(micro_network(), short_training(learning_rate=0.5, muon_learning_rate=0.02))
    set_learning_rates(optimizers, 0.25)
    assert [[group["lr"] for group in each.param_groups] for each in optimizers] == [[0.005], [0.125] * 2]


def test_muons_first_step_is_nearly_orthogonal():
    """Without decay, what a square matrix moves by has all singular values near the rate, whatever the gradient's."""
    network = micro_network()
    (muon, _) = make_optimizers(network, short_training(muon_learning_rate=0.1, weight_decay=0.0))
    weight = network.mask_decoder.mask_embedding[0].weight
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * 1e-3
    before = weight.detach().clone()
    muon.step()
    moved = torch.linalg.svdvals((weight - before).detach()) / 0.1
    assert weight.shape == (16, 16)
    assert 0.5 < moved.min() <= moved.max() < 1.3
