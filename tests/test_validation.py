"""Validation: the challenge's mIoU, on the canvas, phrase by phrase."""

import numpy as np
import pytest
import torch
from networks import micro_network
from torch import Tensor, nn
from trainings import short_training, splits

from promptseg.datasets.preprocess import CANVAS, mask_to_canvas
from promptseg.metrics import overlap
from promptseg.networks.xdecoder.model import Prediction, masks_to_canvas
from promptseg.training.data import GroundingData
from promptseg.training.sampling import WHOLE
from promptseg.training.validation import validate

CPU = torch.device("cpu")
RES = 192


@pytest.fixture(scope="module")
def val() -> GroundingData:
    return splits(short_training(val_res=RES)).val


class Oracle(nn.Module):
    """Knows the answers: the mask of every phrase is right (or empty, where `silent`)."""

    def __init__(self, data: GroundingData, silent: bool) -> None:
        super().__init__()
        self.data, self.silent, self.pictures = data, silent, 0

    def predict(self, _: Tensor, token_ids: Tensor, canvas: int) -> Prediction:
        """Answer for the next picture."""
        assert not self.training
        assert torch.is_inference_mode_enabled()
        samples = self.data.samples_of[self.pictures]
        self.pictures += 1
        share = torch.stack([self.data.target(index, RES) for index in samples]).float() / 255
        logits = torch.full_like(share, -1.0) if self.silent else share - 0.5
        assert len(token_ids) == len(samples)
        return Prediction(masks_to_canvas(logits, RES, canvas, "crop"), torch.eye(len(samples)))


def test_right_masks_score_high_and_empty_ones_nothing(val):
    assert validate(Oracle(val, silent=False), val, RES, 1000, CPU) > 0.7  # masks at 48x48 are coarse
    assert validate(Oracle(val, silent=True), val, RES, 1000, CPU) == 0


@pytest.mark.parametrize(("phrases", "pictures"), [(1, 1), (6, 1), (7, 2), (1000, 2)])
def test_stops_after_the_picture_that_has_the_last_phrase(val, phrases, pictures):
    assert [len(samples) for samples in val.samples_of] == [6, 6]
    network = Oracle(val, silent=False)
    validate(network, val, RES, phrases, CPU)
    assert network.pictures == pictures


def test_equals_scoring_phrase_by_phrase(val):
    network = micro_network()
    ious = []
    for picture, samples in enumerate(val.samples_of):
        for index in samples:
            batch = val.batch([picture], [[index]], [[WHOLE]], RES)
            with torch.no_grad():
                (grounding,), phrase = network(batch.pictures, batch.token_ids)
                best = network.similarity(grounding.query_embedding, phrase)[0].argmax()
                mask = masks_to_canvas(grounding.mask_logits[:, best], RES, CANVAS, "crop")[0] > 0
            ious.append(overlap(mask.numpy(), mask_to_canvas(val.samples[index].mask.to_mask())).iou)
    assert validate(network, val, RES, 1000, CPU) == pytest.approx(np.mean(ious), abs=1e-4)
    assert 0 < np.mean(ious) < 1


def test_leaves_the_network_in_training_mode_and_its_weights_alone(val):
    network = micro_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    validate(network, val, RES, 1, CPU)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
