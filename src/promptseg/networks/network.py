"""What the rest of the chain uses of a network, whatever is inside."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

CanvasRule = Literal["crop", "stretch"]


class Prediction(NamedTuple):
    """What a network answers to B phrases.

    mask_logits: float32 [B, canvas, canvas], above 0 inside. similarity: float32 [B, Q], of each phrase to each query;
    the mask is that of the query with the largest; None of a network that makes one mask for a phrase. presence:
    float32 [B], 0..1, how likely the picture shows what the phrase means at all; None where it has not learnt to say.
    """

    mask_logits: Tensor
    similarity: Tensor | None
    presence: Tensor | None = None


class Network(nn.Module, ABC):
    """A phrase-to-mask network; what training, export, scoring and asking use of it.

    config: a frozen dataclass, all that decides the function save the weights; it goes to JSON and back. canvas_rule:
    how mask logits at stride 4 reach the canvas where 4 does not divide the input's side: "crop" places every cell
    where it lies and cuts off what is beyond; "stretch" squeezes all cells into the canvas. Parameters that are not to
    learn have `requires_grad` False.
    """

    config: Any

    @property
    def canvas_rule(self) -> CanvasRule:
        """How mask logits reach the canvas."""
        return "crop"

    @property
    def rules(self) -> dict[str, str]:
        """What else of the function a graph's record tells, for people: `attends` and `mask_resize`."""
        return {"attends": "none", "mask_resize": "none"}

    @property
    def says_presence(self) -> bool:
        """Whether predictions have a `presence`."""
        return False

    @property
    def most_phrases(self) -> int | None:
        """How many phrases of a picture a training step may have; None: any number."""
        return None

    def check_res(self, key: str, res: int) -> None:
        """Raise ValueError, with the setting's `key`, where pictures of this side in px cannot be worked on."""

    @abstractmethod
    def predict(self, picture: Tensor, token_ids: Tensor, canvas: int) -> Prediction:
        """Answer phrases with masks at the size of a canvas; the one way from pictures and phrases to masks.

        picture: float [P, 3, res, res], RGB 0..255, as `resize_canvas` makes it; token_ids: int [B, T], B a multiple of
        P, the phrases of a picture following each other; canvas: side in px of the square that `picture` was made from.
        """

    def static_parts(self) -> list[nn.Module]:
        """Return the parts that see the same shapes in every step: worth compiling."""
        return []

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the repeated parts that may compute their activations twice instead of holding them."""
        return iter(())
