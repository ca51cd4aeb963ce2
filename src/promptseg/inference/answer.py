"""What a model says about one picture and one phrase, where there is no truth to hold it against."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Decision:
    """One decided mask on the canvas, bool [CANVAS, CANVAS], and how sure the model is, where it can say.

    `query_probability`: softmax, over all queries, of the chosen one's likeness to the phrase. `mask_probability`: mean
    probability of the pixels inside, None also for an empty mask. Both None where the graph hands out masks alone.
    """

    mask: NDArray[np.bool_]
    query_probability: float | None
    mask_probability: float | None
    milliseconds: float


class Model(Protocol):
    """Something that answers phrases; `name` is what a person calls it; `why_no_confidence` is empty if it has one."""

    name: str
    why_no_confidence: str

    def decide(self, canvas: NDArray[np.float32], tokens: NDArray[np.int32]) -> list[Decision]:
        """Answer float32 [1, 3, CANVAS, CANVAS] and int32 [N, 2, 77], one decision for each of the N phrases."""
        ...


@dataclass(frozen=True)
class Answer:
    """The mask of one phrase at the picture's own size, bool [h, w], and what is known of it."""

    phrase: str
    mask: NDArray[np.bool_]
    query_probability: float | None
    mask_probability: float | None
    milliseconds: float

    @property
    def area_pixels(self) -> int:
        """Number of pixels inside."""
        return int(np.count_nonzero(self.mask))

    @property
    def area_share(self) -> float:
        """Share of the picture that is inside, 0..1."""
        return self.area_pixels / self.mask.size

    @property
    def box_xyxy(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom in px, the latter two exclusive; None when nothing is inside."""
        columns, rows = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (0, 1))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def confidence(self) -> float | None:
        """Query probability times mask probability, 0..1, as Mask2Former ranks its masks (Cheng et al. 2022, 3.4).

        It ranks answers of one model; it is no calibrated chance of being right. None where a factor is.
        """
        if self.query_probability is None or self.mask_probability is None:
            return None
        return self.query_probability * self.mask_probability
