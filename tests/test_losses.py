"""Loss terms against a loop over pixels."""

import math

import pytest
import torch

from promptseg.params import LossWeights
from promptseg.training.losses import LossTerms, pairwise_mask_terms

TERMS = LossTerms(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.25))


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
    assert TERMS.weighted(LossWeights(mask_bce=2.0, mask_dice=10.0, contrast=100.0)).item() == 2 + 5 + 25
    assert TERMS.weighted(LossWeights(mask_bce=0.0, mask_dice=0.0, contrast=4.0)).item() == 1


def test_values_are_numbers_by_name():
    assert TERMS.values() == {"mask_bce": 1.0, "mask_dice": 0.5, "contrast": 0.25}
