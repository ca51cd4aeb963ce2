"""What each step sees and how fast it learns: functions of the seed and the step alone, so that resuming is exact."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from promptseg.params import FinetuneConfig
from promptseg.training.views import View, draw_views


@dataclass(frozen=True)
class Draw:
    """The pictures of a step, for each the samples (indices into the data's lists) and views to try, and the size."""

    pictures: list[int]
    samples: list[list[int]]
    views: list[tuple[View, ...]]
    res: int


def draw(config: FinetuneConfig, step: int, samples_of: Sequence[Sequence[int]]) -> Draw:
    """Choose what a step trains on: every picture once an epoch, in an order of its own; phrases and size at random.

    Pictures with fewer samples than `phrases_per_picture` repeat some.
    """
    count = len(samples_of)
    pictures = []
    for place in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, offset = divmod(place, count)
        pictures.append(int(_order(config.seed, epoch, count)[offset]))
    rng = np.random.default_rng([config.seed, 1, step])
    chosen = []
    for picture in pictures:
        available = samples_of[picture]
        repeat = len(available) < config.phrases_per_picture
        chosen.append([int(i) for i in rng.choice(available, config.phrases_per_picture, replace=repeat)])
    res = int(rng.choice(config.res))
    return Draw(pictures, chosen, [draw_views(rng, config.flip, config.zoom) for _ in pictures], res)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def lr_factor(config: FinetuneConfig, step: int) -> float:
    """Share of the rates: linear warm-up; then a tenth at each of `lr_milestones`, or else half a cosine down to zero.

    The step after the last would have the zero. The published recipe (Zou et al., 2023) drops at 0.889 and 0.963.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_milestones:
        return 0.1 ** sum(step >= drop * config.steps for drop in config.lr_milestones)
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return (1 + math.cos(math.pi * progress)) / 2
