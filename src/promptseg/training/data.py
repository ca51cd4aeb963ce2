"""What the network trains on and is validated with: pictures at a network's size, phrases, soft mask targets.

`Steps` are the batches of a run: of each step, this process's share, prepared here or by workers ahead of time.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import mask_to_canvas, picture_to_canvas, read_picture
from promptseg.datasets.records import Rle, Sample, Split, read_samples
from promptseg.datasets.tokenizer import END_OF_TEXT, ClipTokenizer, read_tokens
from promptseg.networks.network import CanvasRule
from promptseg.networks.xdecoder.model import MASK_STRIDE, resize_canvas
from promptseg.params import FinetuneConfig
from promptseg.training.crops import UNKNOWN, Asked, choose, picture_of, targets_of, unknown_words
from promptseg.training.sampling import LEAST_SHOWN, WHOLE, View, draw, swap_sides


@dataclass(frozen=True)
class Batch:
    """P pictures with K phrases each, the phrases of a picture following each other.

    pictures: float32 [P, 3, res, res], RGB 0..255. token_ids: int32 [P * K, T], T the longest phrase's length; ids
    after a row's first end of text have no effect. targets: float32 [P, K, h * w], 0..1, the mask of each phrase. own:
    int64 [P * K], which of its picture's K masks a phrase means; of equal masks the first.
    """

    pictures: Tensor
    token_ids: Tensor
    targets: Tensor
    own: Tensor

    @property
    def phrases_per_picture(self) -> int:
        """K."""
        return self.targets.shape[1]

    def to(self, device: torch.device) -> "Batch":
        """Move to a device; from pinned memory, without waiting for it."""
        parts = (self.pictures, self.token_ids, self.targets, self.own)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in parts))

    def pin_memory(self) -> "Batch":
        """Move to memory that a GPU copies from by itself; a DataLoader asks for it."""
        parts = (self.pictures, self.token_ids, self.targets, self.own)
        return Batch(*(tensor.pin_memory() for tensor in parts))


class GroundingData:
    """One split's samples, grouped by picture; pictures prepared at `sizes` stay in memory up to a budget.

    `canvas_rule` is the network's: targets lie where its mask logits do. Raises ValueError when the split is empty, or
    when tokens and samples do not belong together.
    """

    def __init__(
        self,
        images: Path,
        samples: Path,
        tokens: Path,
        split: Split,
        sizes: Sequence[int],
        cache_bytes: int,
        canvas_rule: CanvasRule,
    ) -> None:
        everything = read_samples(samples)
        token_ids = read_tokens(tokens, len(everything))
        rows = [row for row, sample in enumerate(everything) if sample.split == split]
        if not rows:
            raise ValueError(f"{samples}: has no sample of the split {split!r}; choose another data set or its limits")
        self.samples: list[Sample] = [everything[row] for row in rows]
        self.token_ids: NDArray[np.int32] = token_ids[rows, 0]
        by_picture: dict[str, list[int]] = defaultdict(list)
        for index, sample in enumerate(self.samples):
            by_picture[sample.image].append(index)
        self.images = list(by_picture)
        self.samples_of = list(by_picture.values())
        self._archives = PictureArchives(images)
        self._sizes = sorted(set(sizes))
        self._rule = canvas_rule
        self._memory: dict[tuple[str | Rle, int], Tensor] = {}
        # One block, taken from the system as it fills: small tensors that stay, scattered between large ones that come
        # and go, would keep the process at twice their size.
        try:
            self._block = torch.empty(cache_bytes, dtype=torch.uint8)
        except RuntimeError as error:  # torch's own, of an allocation that the system refuses
            raise ValueError(
                f"finetune.cache_gib: got {cache_bytes / 2**30:g}, which this machine does not have; lower it"
            ) from error
        self._filled = 0

    def batch(
        self,
        pictures: Sequence[int],
        chosen: Sequence[Sequence[int]],
        views: Sequence[Sequence[View]],
        res: int,
    ) -> Batch:
        """Make a batch of pictures (indices into `images`) and, for each, equally many samples (indices).

        Of a picture's `views` the first that shows enough of every chosen mask is taken, or else the last.
        """
        seen = [self._choose(*each) for each in zip(chosen, views, strict=True)]
        flat = [(index, view) for indices, view in zip(chosen, seen, strict=True) for index in indices]
        targets = torch.stack([self.target(index, res, view) for index, view in flat]).flatten(1).float() / 255
        masks = [[self.samples[index].mask for index in indices] for indices in chosen]
        token_ids = [(self._mirrored_ids if view.mirrored else self.token_ids)[index] for index, view in flat]
        return Batch(
            torch.stack([self.picture(index, res, view) for index, view in zip(pictures, seen, strict=True)]).float(),
            torch.from_numpy(_trimmed(np.stack(token_ids))),
            targets.unflatten(0, (len(pictures), -1)),
            torch.tensor([group.index(mask) for group in masks for mask in group]),
        )

    def cropped(
        self, pictures: Sequence[int], seeds: Sequence[Sequence[int]], res: int, config: FinetuneConfig
    ) -> Batch:
        """Make a batch of random crops of pictures (indices into `images`), each decided by its seed."""
        shown, targets, token_ids = [], [], []
        for picture, seed in zip(pictures, seeds, strict=True):
            rng = np.random.default_rng(seed)
            samples = self.samples_of[picture]
            asked = choose(rng, [self.samples[index] for index in samples], res, config)
            image = self.images[picture]
            shown.append(
                picture_of(rng, read_picture(self._archives.read(image), image), asked.crop, res, config.colour)
            )
            targets.append(targets_of(asked, res))
            token_ids += self._asked_ids(rng, asked, samples)
        own = torch.arange(config.phrases_per_picture).repeat(len(pictures))
        return Batch(torch.stack(shown), torch.from_numpy(_trimmed(np.stack(token_ids))), torch.stack(targets), own)

    def _asked_ids(self, rng: np.random.Generator, asked: Asked, samples: Sequence[int]) -> list[NDArray[np.int32]]:
        ids = self._mirrored_ids if asked.crop.mirrored else self.token_ids
        return [
            unknown_words(rng, ids[samples[at]], END_OF_TEXT)
            if mask is None and rng.random() < UNKNOWN
            else ids[samples[at]]
            for at, mask in zip(asked.samples, asked.masks, strict=True)
        ]

    def picture(self, index: int, res: int, view: View = WHOLE) -> Tensor:
        """Uint8 [3, res, res]: the canvas resized as the network does it, rounded; one of the sizes given at first."""
        image = self.images[index]
        if view == WHOLE and (image, res) in self._memory:
            return self._memory[image, res]
        picture = read_picture(self._archives.read(image), image)
        if view.mirrored:
            picture = np.ascontiguousarray(picture[:, ::-1])
        window = view.window(torch.from_numpy(picture_to_canvas(picture)).float()[None])
        sizes = self._sizes if view == WHOLE else [res]  # decoding is the slow part: once for all sizes
        prepared = {size: resize_canvas(window, size)[0].round().to(torch.uint8) for size in sizes}
        self._remember(image, view, prepared)
        return prepared[res]

    def target(self, index: int, res: int, view: View = WHOLE) -> Tensor:
        """Uint8 [h, w] at stride 4: 255 times the share of each cell that the mask covers."""
        mask = self.samples[index].mask  # phrases of one object share its target
        if view == WHOLE and (mask, res) in self._memory:
            return self._memory[mask, res]
        window = view.window(self._mask(index, view))
        sizes = self._sizes if view == WHOLE else [res]
        prepared = {size: (soft_target(window, size, self._rule) * 255).round().to(torch.uint8) for size in sizes}
        self._remember(mask, view, prepared)
        return prepared[res]

    @cached_property
    def _mirrored_ids(self) -> NDArray[np.int32]:
        return ClipTokenizer().encode_all([swap_sides(sample.phrase) for sample in self.samples])[:, 0]

    def _mask(self, index: int, view: View) -> Tensor:
        """Bool [CANVAS, CANVAS]."""
        mask = self.samples[index].mask.to_mask()
        return torch.from_numpy(mask_to_canvas(np.ascontiguousarray(mask[:, ::-1]) if view.mirrored else mask))

    def _choose(self, indices: Sequence[int], views: Sequence[View]) -> View:
        if len(views) == 1:
            return views[0]
        masks = torch.stack([self._mask(index, views[0]) for index in set(indices)])
        least = LEAST_SHOWN * masks.sum((1, 2))
        enough = (view for view in views if (view.window(masks).sum((1, 2)) >= least).all())
        return next(enough, views[-1])

    def _remember(self, what: str | Rle, view: View, prepared: dict[int, Tensor]) -> None:
        for size, value in prepared.items() if view == WHOLE else ():
            end = self._filled + value.numel()
            if (what, size) not in self._memory and end <= len(self._block):
                self._memory[what, size] = self._block[self._filled : end].view(value.shape).copy_(value)
                self._filled = end


def _trimmed(token_ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """Cut [B, T] behind the last of the rows' first ends of text; attention is causal, so that nothing changes."""
    return token_ids[:, : (token_ids == END_OF_TEXT).argmax(1).max() + 1]


def soft_target(mask: Tensor, res: int, rule: CanvasRule) -> Tensor:
    """Bool [S, S] -> float [ceil(res / 4), ceil(res / 4)]: the share of each cell that lies inside, 0..1.

    S is the side of a view, CANVAS for a whole one. The same geometry as `masks_to_canvas`: where res is no multiple of
    4, what cells have beyond the input counts as outside ("crop"), or all cells together are the view ("stretch").
    """
    pad = -res % MASK_STRIDE
    if rule == "stretch":
        res, pad = res + pad, 0
    resized = F.interpolate(mask[None, None].float(), size=(res, res), mode="bilinear", antialias=True)
    return F.avg_pool2d(F.pad(resized, (0, pad, 0, pad)), MASK_STRIDE)[0, 0]


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
        parts = []
        for micro in range(self._config.accumulate):
            start = (micro * self._processes + self._index) * size
            part = slice(start, start + size)
            if self._config.crop is not None:
                seeds = [[self._config.seed, 4, step, place] for place in range(len(drawn.pictures))[part]]
                parts.append(self._data.cropped(drawn.pictures[part], seeds, drawn.res, self._config))
                continue
            parts.append(self._data.batch(drawn.pictures[part], drawn.samples[part], drawn.views[part], drawn.res))
        return parts


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
        collate_fn=_unchanged,
    )
    return iter(loader)


def _unchanged(parts: list[Batch]) -> list[Batch]:
    return parts
