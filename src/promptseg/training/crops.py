"""Random crops of photographs, and of each only the phrases whose objects it still shows, and of names that it lacks.

A crop is cut from the picture at its own size, not from the canvas: a thousand pictures a minute on one core. What a
step sees depends on the seed and the step alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from promptseg.datasets.records import Rle, Sample
from promptseg.networks.xdecoder.model import MASK_STRIDE
from promptseg.params import FinetuneConfig

TRIES = 4  # crops drawn for a picture until one shows an object; then the whole picture is taken
LEAST_SHOWN = 0.6  # share of an object that a crop must show where a phrase means no other
LEAST_CELLS = 4  # area in cells of the mask, of what is asked for
UNKNOWN = 0.15  # of the phrases of what is absent, the share whose words are drawn from all of the vocabulary
FIRST_WORD, LAST_WORD = 600, 40_000  # ids of whole or half words, common ones first; below are letters
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Crop:
    """A square of `side` pixels of a picture, its top left at (`left`, `top`); zeros beyond the picture."""

    left: int
    top: int
    side: int
    mirrored: bool

    def cut(self, image: NDArray[np.uint8] | NDArray[np.bool_]) -> Tensor:
        """[h, w, ...] -> what of it the crop shows, at most [side, side, ...]; mirrored first, where it is."""
        whole = torch.from_numpy(np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image)
        return whole[self.top : self.top + self.side, self.left : self.left + self.side]


@dataclass(frozen=True)
class Asked:
    """A crop, and the samples (places in the list given) asked for in it, each with its mask there, as in `Crop.cut`.

    The mask is None where the crop shows nothing that the phrase means.
    """

    crop: Crop
    samples: list[int]
    masks: list[Tensor | None]


def choose(rng: np.random.Generator, samples: Sequence[Sample], res: int, config: FinetuneConfig) -> Asked:
    """Draw a crop of a picture, and phrases for it: some of what it lacks, and of the others, as far as there are, half
    names. `samples` are all of the picture.
    """
    height, width = samples[0].height, samples[0].width
    masks = {mask: mask.to_mask() for mask in {sample.mask for sample in samples if sample.means_something}}
    absent = [at for at, sample in enumerate(samples) if not sample.means_something]
    for attempt in range(TRIES + 1):
        crop = _draw(rng, height, width, config, whole=attempt == TRIES)
        shown = {rle: crop.cut(mask) for rle, mask in masks.items()}
        cell = (crop.side * MASK_STRIDE / res) ** 2
        large = {rle for rle, mask in shown.items() if int(mask.sum()) >= LEAST_CELLS * cell}
        kept = [at for at, sample in enumerate(samples) if sample.mask in large and _valid(sample, shown)]
        if kept:
            break
    count = config.phrases_per_picture
    lacking = min(int(rng.binomial(count, config.absent_share)), count - 1) if absent else 0
    chosen = [int(at) for at in rng.choice(absent, lacking, replace=len(absent) < lacking)] if lacking else []
    chosen += _mixed(rng, samples, kept or list(range(len(samples))), count - len(chosen))
    return Asked(crop, chosen, [shown.get(samples[at].mask) for at in chosen])


def _draw(rng: np.random.Generator, height: int, width: int, config: FinetuneConfig, *, whole: bool) -> Crop:
    assert config.crop is not None
    longest = max(height, width)
    least, most = config.crop
    side = longest if whole else round(longest * rng.uniform(least, most))
    left, top = (int(rng.integers(max(0, length - side) + 1)) for length in (width, height))
    return Crop(left, top, side, config.flip and bool(rng.random() < 0.5))


def _valid(sample: Sample, shown: dict[Rle, Tensor]) -> bool:
    """Whether a phrase still means what its mask shows: a name means all that is there, another phrase one object."""
    return sample.phrase_kind == "keyword" or int(shown[sample.mask].sum()) >= LEAST_SHOWN * sample.mask.area


def _mixed(rng: np.random.Generator, samples: Sequence[Sample], kept: Sequence[int], count: int) -> list[int]:
    """Draw `count` of `kept`: half names, half others, no mask of a kind twice as long as there are more."""
    order = [int(at) for at in rng.permutation(kept)]
    by_kind: dict[bool, dict[Rle, int]] = {True: {}, False: {}}
    for at in order:
        by_kind[samples[at].phrase_kind == "keyword"].setdefault(samples[at].mask, at)
    names, others = list(by_kind[True].values()), list(by_kind[False].values())
    half = max(count - len(others), -(-count // 2))
    chosen = [*names[:half], *others[: count - min(half, len(names))]]
    return chosen + [int(at) for at in rng.choice(order, count - len(chosen))]


def picture_of(rng: np.random.Generator, image: NDArray[np.uint8], crop: Crop, res: int, colour: float) -> Tensor:
    """Uint8 RGB [h, w, 3] -> float [3, res, res], 0..255, as the network's input is sampled; colours varied."""
    shown = crop.cut(image).permute(2, 0, 1).float()
    if colour:
        bright, contrast, saturation = (float(each) for each in rng.uniform(1 - colour, 1 + colour, 3))
        grey = (shown * torch.tensor(LUMA).view(3, 1, 1)).sum(0)
        shown = grey + (shown - grey) * saturation
        shown = ((shown - grey.mean()) * contrast + grey.mean()) * bright
        shown = shown.clamp(0, 255)
    return F.interpolate(_padded(shown, crop.side)[None], size=(res, res), mode="bilinear")[0]


def targets_of(asked: Asked, res: int) -> Tensor:
    """Float [K, h * w] at stride 4: the share of each cell that a phrase's mask covers."""
    cells = res // MASK_STRIDE
    targets = torch.zeros(len(asked.masks), cells, cells)
    found = [place for place, mask in enumerate(asked.masks) if mask is not None]
    if found:
        stacked = torch.stack([mask for mask in asked.masks if mask is not None]).float()
        padded = _padded(stacked, asked.crop.side)[None]
        targets[found] = F.interpolate(padded, size=(cells, cells), mode="bilinear", antialias=True)[0]
    return targets.flatten(1)


def unknown_words(rng: np.random.Generator, token_ids: NDArray[np.int32], end_of_text: int) -> NDArray[np.int32]:
    """Token ids [T] -> those of a phrase of one or two drawn words, which no picture shows."""
    words = rng.integers(FIRST_WORD, LAST_WORD, int(rng.integers(1, 3)))
    drawn = np.full_like(token_ids, end_of_text)
    drawn[0] = token_ids[0]
    drawn[1 : 1 + len(words)] = words
    return drawn


def _padded(image: Tensor, side: int) -> Tensor:
    return F.pad(image, (0, side - image.shape[-1], 0, side - image.shape[-2]))
