"""A hub's masks as predictions on disk."""

from collections.abc import Iterable, Iterator

from tqdm import tqdm

from promptseg.datasets.predictions import Prediction
from promptseg.datasets.records import Rle
from promptseg.hubs.base import HubOutput


def predictions_of(outputs: Iterable[HubOutput], total: int) -> Iterator[Prediction]:
    """Encode masks as they come, with a progress bar of `total` steps."""
    for output in tqdm(outputs, desc="infer", total=total, unit="phrase"):
        yield Prediction(output.sample_id, Rle.from_mask(output.pred_mask))
