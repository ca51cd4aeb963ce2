"""mIoU of a network on a split, the challenge's way: on the canvas, per phrase, plain mean."""

import torch

from promptseg.datasets.preprocess import CANVAS, mask_to_canvas
from promptseg.metrics import overlap
from promptseg.networks.network import Network
from promptseg.training.data import GroundingData
from promptseg.training.processes import process_count, process_index, total
from promptseg.training.sampling import WHOLE


@torch.inference_mode()
def validate(network: Network, data: GroundingData, res: int, phrases: int, device: torch.device) -> float:
    """Mean IoU, 0..1, over the first pictures that have `phrases` phrases among them (all of them if fewer).

    Several processes take turns at the pictures; the mean is the same whatever their number.
    """
    network.eval()
    pictures: list[tuple[int, int]] = []  # and the place of each one's first phrase among all
    count = 0
    for picture, samples in enumerate(data.samples_of):
        if count >= phrases:
            break
        pictures.append((picture, count))
        count += len(samples)
    scores = torch.zeros(count, dtype=torch.float64)
    for picture, first in pictures[process_index() :: process_count()]:
        samples = data.samples_of[picture]
        batch = data.batch([picture], [samples], [[WHOLE]], res).to(device)
        masks = network.predict(batch.pictures, batch.token_ids, CANVAS).mask_logits > 0
        for place, (index, mask) in enumerate(zip(samples, masks.cpu().numpy(), strict=True), start=first):
            scores[place] = overlap(mask, mask_to_canvas(data.samples[index].mask.to_mask())).iou
    network.train()
    return float(total(scores.to(device)).cpu().mean())
