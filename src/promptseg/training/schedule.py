"""What each step sees and how fast it learns: functions of the seed and the step alone, so that resuming is exact."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promptseg.params import FinetuneConfig


@dataclass(frozen=True)
class Draw:
    """The pictures of a step, the samples chosen for each (indices into the data's lists), and the size."""

    pictures: list[int]
    samples: list[list[int]]
    res: int


def draw(config: FinetuneConfig, step: int, samples_of: Sequence[Sequence[int]]) -> Draw:
    """Choose what a step trains on: every picture once an epoch, in an order of its own; phrases and size at random.

    Pictures with fewer samples than `phrases_per_picture` repeat some.
    """
    count = len(samples_of)
    pictures = []
    for place in range(step * config.pictures_per_step, (step + 1) * config.pictures_per_step):
        epoch, offset = divmod(place, count)
        pictures.append(int(np.random.default_rng([config.seed, 0, epoch]).permutation(count)[offset]))
    rng = np.random.default_rng([config.seed, 1, step])
    chosen = []
    for picture in pictures:
        available = samples_of[picture]
        repeat = len(available) < config.phrases_per_picture
        chosen.append([int(i) for i in rng.choice(available, config.phrases_per_picture, replace=repeat)])
    return Draw(pictures, chosen, int(rng.choice(config.res)))


def rate_share(config: FinetuneConfig, step: int) -> float:
    """Share of the rates: linear warm-up, then half a cosine down to zero, which the step after the last would have."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return (1 + math.cos(math.pi * progress)) / 2
