"""Samples as the deployed graph takes them, made one by one."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import picture_to_canvas, read_picture
from promptseg.datasets.records import Sample, Split, read_samples
from promptseg.datasets.tokens import read_tokens
from promptseg.hubs.base import HubInput


class GraphInputs:
    """The inputs of a split's samples, or of `limit` of them spread evenly over it; iterating decodes, nothing is held.

    Raises ValueError when there is no such sample, or tokens and samples do not belong together.
    """

    def __init__(self, images: Path, samples: Path, tokens: Path, split: Split, limit: int | None) -> None:
        everything = read_samples(samples)
        self._tokens = read_tokens(tokens, len(everything))
        rows = [row for row, sample in enumerate(everything) if sample.split == split]
        if not rows:
            raise ValueError(f"{samples}: has no sample of the split {split!r}; choose another one for hub.split")
        count = len(rows) if limit is None else min(limit, len(rows))
        self._rows = [rows[index * len(rows) // count] for index in range(count)]
        self._samples: Sequence[Sample] = everything
        self._archives = PictureArchives(images)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[HubInput]:
        canvas, drawn = np.zeros(0, np.float32), ""
        for row in self._rows:
            sample = self._samples[row]
            if sample.image != drawn:  # the phrases of a picture come together: decode it once
                picture = read_picture(self._archives.read(sample.image), sample.image)
                canvas, drawn = picture_to_canvas(picture)[None].astype(np.float32), sample.image
            yield HubInput(sample.sample_id, canvas, self._tokens[row][:, None])
