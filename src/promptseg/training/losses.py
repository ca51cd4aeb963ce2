"""Named, unweighted loss terms between the phrases of pictures and the queries that are matched to them.

Sources: binary cross-entropy and dice on masks as in Cheng et al., "Masked-attention Mask Transformer" (2022); the
contrast is a cross-entropy over a picture's queries, as in Zou et al., "Generalized Decoding" (2023); the region term
is the contrastive objective of CLIP (Radford et al., 2021) between phrases and mask-pooled features.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from promptseg.params import LossWeights


@dataclass(frozen=True)
class LossTerms:
    """Scalars >= 0; 0 is perfect.

    mask_bce, mask_dice: the masks of all matched queries; contrast: telling the phrase's own query from the others;
    region: telling the features under the phrase's own mask from those under all masks of the batch.
    """

    mask_bce: Tensor
    mask_dice: Tensor
    contrast: Tensor
    region: Tensor

    def weighted(self, weights: LossWeights) -> Tensor:
        """Sum of the terms times their weights."""
        return torch.stack([getattr(self, f.name) * getattr(weights, f.name) for f in fields(self)]).sum()

    def values(self) -> dict[str, float]:
        """The terms as numbers, by name."""
        return {f.name: getattr(self, f.name).item() for f in fields(self)}


def pairwise_mask_terms(mask_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice of every query with every target.

    mask_logits [B, Q, N] and targets [B, K, N] in 0..1 (soft at the borders of objects), N pixels -> two [B, Q, K].
    """
    hits = mask_logits @ targets.transpose(1, 2)
    bce = (F.softplus(mask_logits).sum(2, keepdim=True) - hits) / targets.shape[2]
    probability = mask_logits.sigmoid()
    overlap = probability @ targets.transpose(1, 2)
    dice = 1 - (2 * overlap + 1) / (probability.sum(2, keepdim=True) + targets.sum(2).unsqueeze(1) + 1)
    return bce, dice


def pool_regions(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature under each mask: features [P, C, h, w], masks [P, K, H, W] in 0..1 -> [P, K, C].

    Masks are averaged down to the features' cells, so that the smallest still weighs on the cells that it touches.
    """
    weights = F.adaptive_avg_pool2d(masks, (features.shape[2], features.shape[3])).flatten(2)
    return weights @ features.flatten(2).transpose(1, 2) / weights.sum(2, keepdim=True).clamp_min(1e-6)


def region_contrast(logits: Tensor, own: Tensor, real: Tensor) -> Tensor:
    """Cross-entropy of each phrase over the regions of the whole batch: [B].

    logits [B, P * K]: phrases against regions; own int64 [B]: each phrase's region; real bool [P * K]: False for the
    repetitions of a region, which are left out.
    """
    return F.cross_entropy(logits.masked_fill(~real, -torch.inf), own, reduction="none")
