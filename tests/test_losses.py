"""Loss terms against a loop over pixels, and the matching against slow and obvious ones."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import PAPER_RULE, drawn, micro_phrase, random_phrases, random_pictures
from torch import Tensor

from promptseg.params import LossWeights
from promptseg.training.data import Batch
from promptseg.training.losses import (
    LossTerms,
    assign,
    matching_cost,
    pairwise_mask_terms,
    pool_regions,
    query_terms,
    region_contrast,
)

TERMS = LossTerms(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.25), torch.tensor(0.125))


def test_equals_a_loop_over_pairs_and_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 3, 11, generator=generator)
    targets = torch.rand(2, 4, 11, generator=generator).round(decimals=1)
    bce, dice = pairwise_mask_terms(logits, targets)
    assert bce.shape == dice.shape == (2, 3, 4)
    for row in range(2):
        for query in range(3):
            for target in range(4):
                entropy = overlap = size = 0.0
                for logit, wanted in zip(logits[row, query].tolist(), targets[row, target].tolist(), strict=True):
                    p = 1 / (1 + math.exp(-logit))
                    entropy -= wanted * math.log(p) + (1 - wanted) * math.log(1 - p)
                    overlap += p * wanted
                    size += p + wanted
                assert bce[row, query, target].item() == pytest.approx(entropy / 11, abs=1e-5)
                assert dice[row, query, target].item() == pytest.approx(1 - (2 * overlap + 1) / (size + 1), abs=1e-5)


def test_a_perfect_mask_costs_nothing_and_its_opposite_most():
    target = torch.tensor([[[1.0, 0, 0, 1, 1, 0, 0, 0, 0]]])
    bce, dice = pairwise_mask_terms(100 * (2 * target - 1), target)
    assert bce.item() == dice.item() == pytest.approx(0, abs=1e-6)
    bce, dice = pairwise_mask_terms(-100 * (2 * target - 1), target)
    assert bce.item() == pytest.approx(100)
    assert dice.item() == pytest.approx(0.9)  # 1 - 1 / (6 + 3 + 1)


@pytest.mark.parametrize("scale", [0.0, 1e4, 1e8])
def test_extreme_logits_and_empty_targets_stay_finite(scale):
    logits = (scale * torch.tensor([[[-1.0, 1, 1, -1]]])).requires_grad_()
    bce, dice = pairwise_mask_terms(logits, torch.zeros(1, 1, 4))
    assert bce.isfinite().all()
    assert 0 <= dice.item() < 1
    assert torch.autograd.grad(bce.sum() + dice.sum(), logits)[0].isfinite().all()


def test_weights_meet_the_terms_of_their_names():
    weights = LossWeights(mask_bce=2.0, mask_dice=10.0, contrast=100.0, region=8.0)
    assert TERMS.weighted(weights).item() == 2 + 5 + 25 + 1
    assert TERMS.weighted(LossWeights(mask_bce=0.0, mask_dice=0.0, contrast=4.0, region=0.0)).item() == 1


def test_values_are_numbers_by_name():
    assert TERMS.values() == {"mask_bce": 1.0, "mask_dice": 0.5, "contrast": 0.25, "region": 0.125}


def test_pooling_equals_a_mean_over_the_masks_own_pixels():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 4, 6, generator=generator)
    masks = (torch.rand(2, 5, 4, 6, generator=generator) > 0.6).float()
    pooled = pool_regions(features, masks)
    for picture in range(2):
        for mask in range(5):
            inside = masks[picture, mask].bool()
            assert torch.allclose(pooled[picture, mask], features[picture][:, inside].mean(1), atol=1e-5)


def test_a_mask_of_one_fine_cell_pools_the_coarse_cell_that_it_touches():
    features = torch.arange(4.0).view(1, 1, 2, 2)
    masks = torch.zeros(1, 1, 8, 8)
    masks[0, 0, 6, 1] = 1
    assert pool_regions(features, masks).item() == 2


def test_an_empty_mask_pools_to_zero_and_not_to_nan():
    assert pool_regions(torch.ones(1, 3, 2, 2), torch.zeros(1, 1, 4, 4)).tolist() == [[[0, 0, 0]]]


def test_regions_compete_with_those_of_the_whole_batch_and_repetitions_are_left_out():
    logits = torch.tensor([[2.0, 0.0, -1.0, 5.0], [0.5, 1.0, 3.0, 9.0]])
    own, real = torch.tensor([0, 2]), torch.tensor([True, True, True, False])
    expected = -torch.stack((logits[0, :3].log_softmax(0)[0], logits[1, :3].log_softmax(0)[2]))
    assert torch.allclose(region_contrast(logits, own, real), expected)


@st.composite
def costs_and_real(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Costs [B, Q, K], often equal ones, with Q >= K, and which objects are real."""
    batch, objects = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    queries = draw(st.integers(objects, 6))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, draw(st.sampled_from([1, 4, 1000])), (batch, queries, objects), endpoint=True)
    return torch.from_numpy(cost).float(), torch.from_numpy(rng.random((batch, objects)) < 0.7)


@given(costs_and_real())
def test_real_objects_get_queries_of_their_own(case):
    cost, real = case
    for row, mask in zip(assign(cost, real), real, strict=True):
        chosen = row[mask].tolist()
        assert len(set(chosen)) == len(chosen)
        assert all(0 <= query < cost.shape[1] for query in row.tolist())


@given(costs_and_real())
def test_the_cheapest_open_pair_comes_first(case):
    cost, real = case
    for row in range(len(cost)):
        queries, objects = set(range(cost.shape[1])), {k for k in range(cost.shape[2]) if real[row, k]}
        expected = []
        while objects:
            least = min(cost[row, q, k].item() for q in queries for k in objects)
            taken = {(q, k) for q in queries for k in objects if cost[row, q, k] == least}
            q, k = min(taken)
            expected.append(least)
            queries.remove(q)
            objects.remove(k)
        got = assign(cost, real)[row]
        paid = sorted(cost[row, got[k], k].item() for k in range(cost.shape[2]) if real[row, k])
        assert paid == expected or len(set(cost[row].flatten().tolist())) < cost[row].numel()


@given(costs_and_real())
def test_together_equals_alone(case):
    cost, real = case
    together = assign(cost, real)
    for row in range(len(cost)):
        assert torch.equal(assign(cost[row, None], real[row, None])[0], together[row])


@given(costs_and_real(), st.sampled_from([-1e9, 1e9, float("nan"), float("inf")]))
def test_objects_that_are_not_real_change_nothing(case, value):
    cost, real = case
    other = torch.where(real.unsqueeze(1), cost, torch.tensor(value))
    assert torch.equal(assign(cost, real)[real], assign(other, real)[real])


@given(st.integers(0, 2**16), st.integers(1, 4))
def test_the_optimum_where_every_object_has_a_favourite_of_its_own(seed, objects):
    rng = np.random.default_rng(seed)
    cost = rng.random((1, 5, objects)) + 1
    favourites = rng.permutation(5)[:objects]
    cost[0, favourites, range(objects)] = rng.random(objects)
    best = min(
        itertools.permutations(range(5), objects), key=lambda chosen: sum(cost[0, q, k] for k, q in enumerate(chosen))
    )
    got = assign(torch.from_numpy(cost), torch.ones(1, objects, dtype=torch.bool))
    assert got[0].tolist() == list(best) == favourites.tolist()


def test_one_object_gets_its_cheapest_query():
    cost = torch.tensor([[[3.0], [1.0], [2.0]]])
    assert assign(cost, torch.tensor([[True]])).tolist() == [[1]]


def test_the_cheaper_pair_wins_a_query_that_two_objects_want():
    cost = torch.tensor([[[1.0, 0.5], [2.0, 9.0], [3.0, 9.0]]])
    assert assign(cost, torch.tensor([[True, True]])).tolist() == [[1, 0]]


def test_the_cost_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    bce, dice = torch.rand(2, 2, 4, 3, generator=generator)
    similarity, own = torch.randn(2, 4, generator=generator), torch.tensor([2, 0])
    cost = matching_cost(bce, dice, similarity, own, LossWeights(mask_bce=2.0, mask_dice=3.0, contrast=5.0, region=0.0))
    for row, query, target in itertools.product(range(2), range(4), range(3)):
        share = (similarity[row, query].exp() / similarity[row].exp().sum()).item()
        text = 5 * (1 - share) if target == own[row] else 0
        expected = 2 * bce[row, query, target].item() + 3 * dice[row, query, target].item() + text
        assert cost[row, query, target].item() == pytest.approx(expected, abs=1e-5)


def test_no_gradient_passes():
    bce = torch.rand(1, 3, 2, requires_grad=True)
    similarity = torch.rand(1, 3, requires_grad=True)
    cost = matching_cost(bce, bce, similarity, torch.tensor([1]), LossWeights(1.0, 1.0, 1.0, 1.0))
    assert not cost.requires_grad


def _asked(present: bool) -> Batch:
    """Two pictures with two phrases each, the left and the right half; of the second phrases half mean nothing."""
    halves = torch.zeros(2, 2, 16, 16)
    halves[:, 0, :, :8], halves[:, 1, :, 8:] = 1, float(present)
    return Batch(random_pictures(2, 64), random_phrases(4), halves.flatten(2), torch.tensor([0, 1, 0, 1]))


def test_a_phrase_that_means_nothing_wants_an_empty_mask_and_a_small_presence():
    network = drawn(micro_phrase(PAPER_RULE), 0)
    values = {}
    for bias in (-20.0, 0.0, 20.0):
        network.presence_bias.data.fill_(bias)
        values[bias] = query_terms(network, _asked(present=False)).contrast.item()
    assert values[0.0] < min(values[-20.0], values[20.0]), "half of the phrases mean something"
    absent, present = query_terms(network, _asked(present=False)), query_terms(network, _asked(present=True))
    assert all(math.isfinite(value) for value in absent.values().values())
    assert absent.mask_bce.item() != pytest.approx(present.mask_bce.item())


def test_the_terms_of_phrases_teach_masks_and_presence():
    network, batch = drawn(micro_phrase(PAPER_RULE), 0).train(), _asked(present=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    before = query_terms(network, batch)
    for _ in range(60):
        optimizer.zero_grad()
        terms = query_terms(network, batch)
        (terms.mask_bce + terms.mask_dice + terms.contrast + terms.region).backward()
        optimizer.step()
    for name, value in terms.values().items():
        assert value < 0.5 * before.values()[name], name
