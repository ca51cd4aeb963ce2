"""mIoU of a network on a split, the challenge's way: on the canvas, per phrase, plain mean."""

import numpy as np
import torch

from promptseg.metrics import overlap
from promptseg.preprocess import CANVAS, mask_to_canvas
from promptseg.training.data import GroundingData
from promptseg.xdecoder.model import XDecoder, best_masks, masks_to_canvas


@torch.inference_mode()
def validate(network: XDecoder, data: GroundingData, res: int, phrases: int, device: torch.device) -> float:
    """Mean IoU, 0..1, over the first pictures that have `phrases` phrases among them (all of them if fewer)."""
    network.eval()
    scores: list[float] = []
    for picture, samples in enumerate(data.samples_of):
        if len(scores) >= phrases:
            break
        batch = data.batch([picture], [samples], res).to(device)
        groundings, phrase = network(batch.pictures, batch.token_ids)
        similarity = network.similarity(groundings[-1].query_embedding, phrase)
        masks = masks_to_canvas(best_masks(groundings[-1], similarity).float(), res, CANVAS) > 0
        for index, mask in zip(samples, masks.cpu().numpy(), strict=True):
            scores.append(overlap(mask, mask_to_canvas(data.samples[index].mask.to_mask())).iou)
    network.train()
    return float(np.mean(scores))
