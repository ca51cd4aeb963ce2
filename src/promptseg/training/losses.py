"""The loss terms of one batch: forward, matching queries to objects, and the means that training descends on.

Sources: binary cross-entropy and dice on masks as in Cheng et al., "Masked-attention Mask Transformer" (2022); the
matching is DETR's (Carion et al., 2020), by mask and text cost; the contrast is a cross-entropy over a picture's
queries, as in Zou et al., "Generalized Decoding" (2023); the region term is the contrastive objective of CLIP (Radford
et al., 2021) between phrases and mask-pooled features.

All phrases of a picture are known, so every row (one phrase) also knows the other phrases' objects. Matching queries to
all of them keeps one query from answering everything; the phrase then only has to say which query is meant.

Shapes: P pictures with K phrases each, B = P * K rows; Q queries; N pixels of a mask at stride 4; C channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.clipseg.model import ClipSeg
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.mask_decoder import DecoderOutput
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.params import LossWeights
from promptseg.training.data import Batch
from promptseg.training.processes import gathered, mean_over_all, process_index

SHARED = 0.1  # of a mask, above which another may be said of it, too
ABSENT_WEIGHT = 0.3  # of a phrase that means nothing, in the cross-entropy of its mask, which is empty


@dataclass(frozen=True)
class LossTerms:
    """Named, unweighted terms, scalars >= 0; 0 is perfect.

    mask_bce, mask_dice: the masks of all matched queries. contrast: telling the phrase's own query from the others.
    region: telling the features under the phrase's own mask from those under all masks of the batch. A network without
    queries, or without maps in the phrases' space, has 0 for these two.
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


class Objective(nn.Module):
    """A batch's loss terms as a module's forward, which is where data parallelism and autocast take hold."""

    def __init__(self, network: Network, weights: LossWeights) -> None:
        super().__init__()
        self.network = network
        self.weights = weights

    def forward(self, batch: Batch) -> LossTerms:
        """Return the terms that the network's family learns from."""
        return OBJECTIVES[type(self.network)](self.network, batch, self.weights)


def batch_terms(network: XDecoder, batch: Batch, weights: LossWeights) -> LossTerms:
    """Terms of a batch: means over matched pairs or rows, and over the decoder's layers, each matched anew.

    `weights` are those of the matching. In one of several processes the terms are that process's part of the mean over
    all of them (see `mean_over_all`).
    """
    if network.config.mask_decoder.phrase_query:
        return query_terms(network, batch)
    mask_features, pyramid = network.encode(batch.pictures)
    phrase = network.text_encoder(batch.token_ids)
    outputs = network.mask_decoder(mask_features, pyramid, phrase, every_layer=True)
    places = torch.arange(batch.phrases_per_picture, device=phrase.device)
    real = batch.own.view(-1, batch.phrases_per_picture) == places  # (P, K): of equal masks only the first counts
    layers = [_matched_terms(network, output, phrase, batch, real, weights) for output in outputs]
    bce, dice, contrast = torch.stack(layers).mean(0)
    masks = batch.targets.unflatten(2, mask_features.shape[2:])
    regions = [network.describe(pool_regions(features.float(), masks)) for features in pyramid]
    region = torch.stack([_region_term(network, each, phrase, batch.own, real) for each in regions]).mean()
    return LossTerms(bce, dice, contrast, region)


def phrase_terms(network: ClipSeg, batch: Batch, _: LossWeights) -> LossTerms:
    """Terms of a network with one mask for each phrase: means over phrases, at the network's own size.

    Targets have a value for 4x4 pixels, the share of them inside; between cells they are interpolated.
    """
    logits = network(batch.pictures, batch.token_ids).float()
    side = math.isqrt(batch.targets.shape[2])
    masks = batch.targets.view(len(logits), 1, side, side)  # a phrase's own: of equal masks any will do
    targets = F.interpolate(masks, size=logits.shape[1:], mode="bilinear")
    bce, dice = (term.flatten() for term in pairwise_mask_terms(logits.flatten(1)[:, None], targets.flatten(2)))
    count, none = torch.ones_like(bce), bce.new_zeros(())
    return LossTerms(mean_over_all(bce, count), mean_over_all(dice, count), none, none)


def query_terms(network: XDecoder, batch: Batch) -> LossTerms:
    """Terms where the one query starts from the phrase: nothing is matched, and a phrase may mean nothing.

    Masks of phrases that mean nothing count ABSENT_WEIGHT in `mask_bce`, and not in `mask_dice`. `contrast` tells
    phrases that mean something from those that do not, by the similarity. `region` tells the phrase of the features
    under a mask from the picture's other phrases, those that mean nothing included.
    """
    mask_features, pyramid = network.encode(batch.pictures)
    phrase = network.text_encoder(batch.token_ids)
    outputs = network.mask_decoder(mask_features, pyramid, phrase, every_layer=True)
    assert network.presence_bias is not None
    rows = torch.arange(len(phrase), device=phrase.device)
    by_picture = batch.targets[rows // batch.phrases_per_picture, batch.own].unflatten(
        0, (-1, batch.phrases_per_picture)
    )  # (P, K, N)
    targets = by_picture.flatten(0, 1)
    present = (targets.sum(1) > 0).to(targets.dtype)
    counted = present + ABSENT_WEIGHT * (1 - present)
    layers = []
    for output in outputs:
        logits = output.mask_logits[:, 0].flatten(1).float()
        bce = (F.softplus(logits) - logits * targets).mean(1)
        probability = logits.sigmoid()
        dice = 1 - (2 * (probability * targets).sum(1) + 1) / (probability.sum(1) + targets.sum(1) + 1)
        likely = network.similarity(output.query_embedding, phrase).amax(1) + network.presence_bias
        contrast = F.binary_cross_entropy_with_logits(likely, present, reduction="none")
        weighted = ((bce, counted), (dice, present), (contrast, torch.ones_like(present)))
        layers.append(torch.stack([mean_over_all(*each) for each in weighted]))
    bce, dice, contrast = torch.stack(layers).mean(0)
    elsewhere = _elsewhere(by_picture)
    masks = by_picture.unflatten(2, mask_features.shape[2:])
    regions = [network.describe(pool_regions(features.float(), masks)).flatten(0, 1) for features in pyramid]
    others = phrase.view(len(masks), -1, phrase.shape[1]).repeat_interleave(batch.phrases_per_picture, dim=0)
    own = rows % batch.phrases_per_picture
    region = [
        F.cross_entropy(network.similarity(others, each).masked_fill(~elsewhere, -torch.inf), own, reduction="none")
        for each in regions
    ]
    return LossTerms(bce, dice, contrast, torch.stack([mean_over_all(each, present) for each in region]).mean())


def _elsewhere(masks: Tensor) -> Tensor:
    """Masks (P, K, N) -> bool (P * K, K): which phrases cannot be said of a mask, and its own."""
    shared = masks @ masks.transpose(1, 2) > SHARED * masks.sum(2, keepdim=True)
    return (~shared | torch.eye(masks.shape[1], dtype=torch.bool, device=masks.device)).flatten(0, 1)


def _matched_terms(
    network: XDecoder, output: DecoderOutput, phrase: Tensor, batch: Batch, real: Tensor, weights: LossWeights
) -> Tensor:
    """Binary cross-entropy, dice and contrast of the decoder's output after one layer, float [3]; real bool [P, K]."""
    per_picture = batch.phrases_per_picture
    targets = batch.targets.repeat_interleave(per_picture, dim=0)  # (B, K, N): every row gets all masks of its picture
    real = real.repeat_interleave(per_picture, dim=0)
    similarity = network.similarity(output.query_embedding, phrase)
    bce, dice = pairwise_mask_terms(output.mask_logits.flatten(2).float(), targets)
    query = assign(matching_cost(bce, dice, similarity, batch.own, weights), real)  # (B, K)
    own_query = query.gather(1, batch.own.unsqueeze(1)).squeeze(1)
    by_row = F.cross_entropy(similarity, own_query, reduction="none")
    contrast = mean_over_all(by_row, torch.ones_like(by_row))
    counted = real.to(bce.dtype)
    matched = (mean_over_all(term.gather(1, query.unsqueeze(1))[:, 0], counted) for term in (bce, dice))
    return torch.stack((*matched, contrast))


def _region_term(network: XDecoder, regions: Tensor, phrase: Tensor, own: Tensor, real: Tensor) -> Tensor:
    """Region contrast of one map: regions [P, K, C], phrase [B, C], own [B], real [P, K] -> scalar.

    The regions of all processes compete; those of the processes before this one come first.
    """
    pictures, per_picture = real.shape
    candidates = gathered(regions.flatten(0, 1)).expand(len(phrase), -1, -1)
    first = process_index() * real.numel()
    first_of_picture = first + torch.arange(pictures, device=own.device).repeat_interleave(per_picture) * per_picture
    logits = network.similarity(candidates, phrase)
    by_row = region_contrast(logits, first_of_picture + own, gathered(real.flatten().to(logits.dtype)) > 0)
    return mean_over_all(by_row, torch.ones_like(by_row))


def pairwise_mask_terms(mask_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice of every query with every target.

    mask_logits [B, Q, N] and targets [B, K, N] in 0..1 (soft at the borders of objects) -> two [B, Q, K].
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


@torch.no_grad()
def matching_cost(bce: Tensor, dice: Tensor, similarity: Tensor, own: Tensor, weights: LossWeights) -> Tensor:
    """Cost [B, Q, K] of pairing queries with objects; the text cost (1 - probability) counts for the own object only.

    bce and dice [B, Q, K]; similarity [B, Q]; own int64 [B], the row's own object among the K.
    """
    text = 1 - similarity.softmax(1)
    is_own = F.one_hot(own, bce.shape[2]).to(bce.dtype)
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


OBJECTIVES: dict[type[Network], Callable[[Any, Batch, LossWeights], LossTerms]] = {
    XDecoder: batch_terms,
    ClipSeg: phrase_terms,
}
