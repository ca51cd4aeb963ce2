"""The assignment against slow and obvious ones."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from promptseg.params import LossWeights
from promptseg.training.matcher import assign, matching_cost


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
