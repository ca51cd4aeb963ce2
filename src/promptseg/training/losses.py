"""Named, unweighted loss terms between a phrase's mask and the query that is matched to it.

Sources: binary cross-entropy and dice on masks as in Cheng et al., "Masked-attention Mask Transformer" (2022); the
contrast is a cross-entropy over a picture's queries, as in Zou et al. (2023), "Generalized Decoding".
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from promptseg.params import LossWeights


@dataclass(frozen=True)
class LossTerms:
    """One value per row [B], or per row and query [B, Q] while matching; all >= 0, 0 is perfect."""

    mask_bce: Tensor
    mask_dice: Tensor
    contrast: Tensor

    def weighted(self, weights: LossWeights) -> Tensor:
        """Sum of the terms times their weights."""
        return sum(
            (getattr(self, term.name) * getattr(weights, term.name) for term in fields(self)),
            start=torch.zeros((), device=self.contrast.device),
        )


def query_terms(mask_logits: Tensor, similarity: Tensor, target: Tensor) -> LossTerms:
    """Terms of every query: mask_logits [B, Q, N], similarity [B, Q], target [B, N] in 0..1 -> terms [B, Q].

    N are the pixels of the mask, flattened. Targets may be soft, at the borders of objects.
    """
    hits = torch.einsum("bqn,bn->bq", mask_logits, target)
    bce = (F.softplus(mask_logits).sum(2) - hits) / target.shape[1]
    probability = mask_logits.sigmoid()
    overlap = torch.einsum("bqn,bn->bq", probability, target)
    dice = 1 - (2 * overlap + 1) / (probability.sum(2) + target.sum(1, keepdim=True) + 1)
    return LossTerms(bce, dice, -F.log_softmax(similarity, dim=1))
