"""The batches of a run, step by step: this process's share of each, prepared here or by workers ahead of time."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from promptseg.params import FinetuneConfig
from promptseg.training.data import Batch, GroundingData
from promptseg.training.sampling import draw


class Steps(Dataset[list[Batch]]):
    """What one of `processes` trains on at a step: as many batches as gradients are accumulated over.

    A step depends on the seed and its number alone, so that workers need no random state and resuming is exact.
    Raises ValueError when the pictures of a step cannot be shared out evenly.
    """

    def __init__(self, data: GroundingData, config: FinetuneConfig, processes: int, index: int) -> None:
        shares = processes * config.accumulate
        if config.batch_size % shares:
            raise ValueError(
                f"finetune.batch_size: got {config.batch_size}, wanted a multiple of {shares}, of "
                f"{processes} processes times finetune.accumulate {config.accumulate}"
            )
        self._data, self._config = data, config
        self._processes, self._index = processes, index

    def __len__(self) -> int:
        return self._config.steps

    def __getitem__(self, step: int) -> list[Batch]:
        drawn = draw(self._config, step, self._data.samples_of)
        size = len(drawn.pictures) // (self._processes * self._config.accumulate)
        batches = []
        for micro in range(self._config.accumulate):
            start = (micro * self._processes + self._index) * size
            part = slice(start, start + size)
            batches.append(self._data.batch(drawn.pictures[part], drawn.samples[part], drawn.views[part], drawn.res))
        return batches


def batches(steps: Steps, first: int, workers: int) -> Iterator[list[Batch]]:
    """Every step's batches from `first` on, on the processor; workers have them ready before they are asked for."""
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, len(steps)),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_they_are,
    )
    return iter(loader)


def _as_they_are(made: list[Batch]) -> list[Batch]:
    return made
