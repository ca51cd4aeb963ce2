"""Which query answers a phrase: the cheapest one.

With one target a row the Hungarian assignment of DETR (Carion et al., 2020) is the argmin of the costs.
"""

import torch
from torch import Tensor

from promptseg.params import LossWeights
from promptseg.training.losses import LossTerms


@torch.no_grad()
def match(terms: LossTerms, weights: LossWeights) -> Tensor:
    """Terms [B, Q] -> index of each row's cheapest query, int64 [B]; ties go to the lowest index."""
    return terms.weighted(weights).argmin(dim=1)


def select(terms: LossTerms, chosen: Tensor) -> LossTerms:
    """Terms [B, Q] and one query a row [B] -> terms [B]."""
    rows = torch.arange(len(chosen), device=chosen.device)
    return LossTerms(terms.mask_bce[rows, chosen], terms.mask_dice[rows, chosen], terms.contrast[rows, chosen])
