"""promptseg: text-prompted segmentation, from fine-tuning to a Snapdragon's NPU, as one repeatable experiment.

    model = promptseg.load("nano-shapes")
    for found in model.segment("table.jpg", ["the red cup", "the plate below it"]):
        found.draw()

`load` is all there is to call from outside; docs/api.md tells of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptseg.inference.model import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import `load`, and with it numpy and ONNX Runtime, when it is first asked for."""
    if name != "load":
        raise AttributeError(f"module 'promptseg' has no attribute {name!r}")
    from promptseg.inference.model import load

    return load
