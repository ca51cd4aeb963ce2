"""The loss terms of one batch: forward, matching, and the means that training descends on."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.xdecoder.mask_decoder import DecoderOutput
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.params import LossWeights
from promptseg.training.data import Batch
from promptseg.training.losses import LossTerms, pairwise_mask_terms, pool_regions, region_contrast
from promptseg.training.matcher import assign, matching_cost
from promptseg.training.processes import gathered, mean_over_all, process_index


def batch_terms(network: XDecoder, batch: Batch, weights: LossWeights) -> LossTerms:
    """Terms of a batch: means over matched pairs or rows, and over the decoder's layers, each matched anew.

    `weights` are those of the matching. In one of several processes they are its part, as `mean_over_all` has it.
    """
    mask_features, pyramid = network.encode(batch.pictures)
    phrase = network.text_encoder(batch.token_ids)
    outputs = network.mask_decoder(mask_features, pyramid, phrase, every_layer=True)
    places = torch.arange(batch.phrases_per_picture, device=phrase.device)
    real = batch.own.view(-1, batch.phrases_per_picture) == places  # (P, K): of equal masks only the first counts
    layers = [_matched(network, grounding, phrase, batch, real, weights) for grounding in outputs]
    bce, dice, contrast = torch.stack(layers).mean(0)
    masks = batch.targets.unflatten(2, mask_features.shape[2:])
    regions = [network.describe(pool_regions(features.float(), masks)) for features in pyramid]
    region = torch.stack([_region_contrast(network, each, phrase, batch.own, real) for each in regions]).mean()
    return LossTerms(bce, dice, contrast, region)


def _matched(
    network: XDecoder, grounding: DecoderOutput, phrase: Tensor, batch: Batch, real: Tensor, weights: LossWeights
) -> Tensor:
    """Binary cross-entropy, dice and contrast after one layer, [3]."""
    per_picture = batch.phrases_per_picture
    targets = batch.targets.repeat_interleave(per_picture, dim=0)  # (P * K, K, N): a row knows its picture's masks
    real = real.repeat_interleave(per_picture, dim=0)
    similarity = network.similarity(grounding.query_embedding, phrase)
    bce, dice = pairwise_mask_terms(grounding.mask_logits.flatten(2).float(), targets)
    query = assign(matching_cost(bce, dice, similarity, batch.own, weights), real)  # (P * K, K)
    told = F.cross_entropy(similarity, query.gather(1, batch.own.unsqueeze(1)).squeeze(1), reduction="none")
    contrast = mean_over_all(told, torch.ones_like(told))
    counted = real.to(bce.dtype)
    matched = (mean_over_all(term.gather(1, query.unsqueeze(1))[:, 0], counted) for term in (bce, dice))
    return torch.stack((*matched, contrast))


def _region_contrast(network: XDecoder, regions: Tensor, phrase: Tensor, own: Tensor, real: Tensor) -> Tensor:
    """Region contrast of one map: regions [P, K, C], phrase [P * K, C], own [P * K], real [P, K] -> scalar.

    The regions of all processes compete: the phrases of this one find theirs behind those of the processes before it.
    """
    pictures, per_picture = real.shape
    candidates = gathered(regions.flatten(0, 1)).expand(len(phrase), -1, -1)
    first = process_index() * real.numel()
    first_of_picture = first + torch.arange(pictures, device=own.device).repeat_interleave(per_picture) * per_picture
    logits = network.similarity(candidates, phrase)
    told = region_contrast(logits, first_of_picture + own, gathered(real.flatten().to(logits.dtype)) > 0)
    return mean_over_all(told, torch.ones_like(told))


class Objective(nn.Module):
    """A batch's loss terms as a module's forward, which is where data parallelism and autocast take hold."""

    def __init__(self, network: XDecoder, weights: LossWeights) -> None:
        super().__init__()
        self.network = network
        self.weights = weights

    def forward(self, batch: Batch) -> LossTerms:
        """See `batch_terms`."""
        terms = batch_terms(self.network, batch, self.weights)
        return LossTerms(*(term.clone() for term in vars(terms).values()))  # FSDP hangs hooks on them: not on views
