"""A hub's masks as predictions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from promptseg.datasets.predictions import read_predictions, write_predictions
from promptseg.datasets.preprocess import CANVAS
from promptseg.hubs.base import HubOutput
from promptseg.hubs.outputs import predictions_of


def mask(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((CANVAS, CANVAS)) < 0.01 * seed


def test_masks_survive_the_way_to_disk_and_keep_their_order(tmp_path: Path) -> None:
    outputs = [HubOutput(name, mask(seed)) for seed, name in enumerate(("b", "a", "c"))]
    assert write_predictions(tmp_path / "predictions.jsonl", predictions_of(outputs, len(outputs))) == 3
    read = read_predictions(tmp_path / "predictions.jsonl")
    assert list(read) == ["b", "a", "c"]
    for output in outputs:
        assert np.array_equal(read[output.sample_id].to_mask(), output.pred_mask)


def test_one_mask_is_held_at_a_time() -> None:
    made: list[int] = []

    def outputs() -> Iterator[HubOutput]:
        for seed in range(3):
            made.append(seed)
            yield HubOutput(str(seed), mask(seed))

    for index, prediction in enumerate(predictions_of(outputs(), 3)):
        assert prediction.sample_id == str(index)
        assert made == list(range(index + 1))


def test_no_masks_are_no_predictions() -> None:
    assert list(predictions_of([], 0)) == []
