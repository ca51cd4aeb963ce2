"""Which query answers for which object: the assignment of DETR (Carion et al., 2020), by mask and text cost.

All phrases of a picture are known, so every row (one phrase) also knows the other phrases' objects. Matching queries to
all of them keeps one query from answering everything; the phrase then only has to say which query is meant.
"""

import torch
from torch import Tensor

from promptseg.params import LossWeights


@torch.no_grad()
def matching_cost(bce: Tensor, dice: Tensor, similarity: Tensor, own: Tensor, weights: LossWeights) -> Tensor:
    """Cost [B, Q, K] of pairing queries with objects; the text cost (1 - probability) counts for the own object only.

    bce and dice [B, Q, K]; similarity [B, Q]; own int64 [B], the row's own object among the K.
    """
    text = 1 - similarity.softmax(1)
    is_own = torch.nn.functional.one_hot(own, bce.shape[2]).to(bce.dtype)
    return (
        weights.mask_bce * bce + weights.mask_dice * dice + weights.contrast * text.unsqueeze(2) * is_own.unsqueeze(1)
    )


@torch.no_grad()
def assign(cost: Tensor, real: Tensor) -> Tensor:
    """Pair every real object with a query of its own, the cheapest pair first -> query int64 [B, K].

    cost [B, Q, K] with Q >= K; real bool [B, K]. Objects that are not real get an arbitrary query: mask them. Works on
    the device without waiting for it; on the few objects of a row, cheapest-first differs little from the optimum.
    """
    batch, _, objects = cost.shape
    open_pairs = cost.masked_fill(~real.unsqueeze(1), torch.inf)
    rows = torch.arange(batch, device=cost.device)
    assigned = torch.zeros(batch, objects, dtype=torch.long, device=cost.device)
    for _ in range(objects):
        smallest, pair = open_pairs.flatten(1).min(1)
        query, chosen = pair // objects, pair % objects
        found = smallest.isfinite()
        assigned[rows, chosen] = torch.where(found, query, assigned[rows, chosen])
        open_pairs[rows, query] = torch.inf
        open_pairs[rows, :, chosen] = torch.inf
    return assigned
