"""mIoU of a network on a split, the challenge's way: on the canvas, per phrase, plain mean."""

from collections.abc import Sequence

import torch
from torch import Tensor

from promptseg.datasets.preprocess import CANVAS, mask_to_canvas
from promptseg.metrics import overlap
from promptseg.networks.network import Network
from promptseg.training.data import GroundingData
from promptseg.training.processes import process_count, process_index, total
from promptseg.training.sampling import WHOLE

MASK_BIASES = tuple(step / 4 for step in range(-10, 5))  # that `calibrate_masks` tries


@torch.inference_mode()
def validate(network: Network, data: GroundingData, res: int, phrases: int, device: torch.device) -> float:
    """Mean IoU, 0..1, over the first pictures that have `phrases` phrases among them (all of them if fewer).

    Phrases of what a picture does not show have no IoU, and are left out. Several processes take turns at the pictures;
    the mean is the same whatever their number.
    """
    return float(_mean_ious(network, data, res, phrases, device, (0.0,))[0])


@torch.inference_mode()
def calibrate_masks(network: Network, data: GroundingData, res: int, phrases: int, device: torch.device) -> None:
    """Set the network's `mask_bias`, where it has one, to the one of MASK_BIASES with the best mean IoU.

    Losses make a pixel's probability right; the mask with the best expected IoU holds less probable pixels, too (Lipton
    et al., "Optimal Thresholding of Classifiers to Maximize F1", 2014).
    """
    bias = getattr(network, "mask_bias", None)
    if bias is not None:
        ious = _mean_ious(network, data, res, phrases, device, [each - float(bias) for each in MASK_BIASES])
        bias.fill_(MASK_BIASES[int(ious.argmax())])


def _mean_ious(
    network: Network, data: GroundingData, res: int, phrases: int, device: torch.device, shifts: Sequence[float]
) -> Tensor:
    """See `validate`; the mean for each of `shifts`, added to the mask logits: float64 [shifts]."""
    network.eval()
    pictures: list[tuple[int, int]] = []  # and the place of each one's first phrase among all
    count = 0
    meant = [[index for index in samples if data.samples[index].means_something] for samples in data.samples_of]
    for picture, samples in enumerate(meant):
        if count >= phrases:
            break
        if samples:
            pictures.append((picture, count))
        count += len(samples)
    scores = torch.zeros(count, len(shifts), dtype=torch.float64)
    for picture, first in pictures[process_index() :: process_count()]:
        samples = meant[picture]
        batch = data.batch([picture], [samples], [[WHOLE]], res).to(device)
        logits = network.predict(batch.pictures, batch.token_ids, CANVAS).mask_logits
        truths = [mask_to_canvas(data.samples[index].mask.to_mask()) for index in samples]
        for at, shift in enumerate(shifts):
            masks = (logits > -shift).cpu().numpy()
            for place, (truth, mask) in enumerate(zip(truths, masks, strict=True), start=first):
                scores[place, at] = overlap(mask, truth).iou
    network.train()
    return total(scores.to(device)).cpu().mean(0)
