"""The inputs and outputs of the deployed graph, as data, and what an ONNX file says of itself.

Read by export, compilation, inference and tests. The contract is that of the challenge (IEEE Low Power Computer Vision
Challenge 2025, track 2). It never changes with the resolution at which the network works inside.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from promptseg.datasets.preprocess import CANVAS
from promptseg.datasets.tokenizer import CONTEXT_LENGTH

MASK_THRESHOLD = 0.5  # a pixel of `pred_mask` above it is inside


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype and static shape of one tensor at the graph's border."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def check(self, array: NDArray[Any], owner: str) -> None:
        """Raise ValueError, with `owner` (a sample or a file), when dtype or shape differ from the contract."""
        if str(array.dtype) != self.dtype or array.shape != self.shape:
            got = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{owner}: got {self.name} as {got}, wanted {self.dtype} {list(self.shape)}")


# RGB 0..255, longest edge resized to CANVAS (bilinear), zeros to the right and below.
IMAGE_INPUT = TensorSpec("image_input", "float32", (1, 3, CANVAS, CANVAS))
# Row 0: CLIP ids; row 1: attention mask (kept in the signature even where the network ignores it).
TEXT_INPUT = TensorSpec("text_input", "int32", (2, 1, CONTEXT_LENGTH))
# 1 inside, 0 outside.
PRED_MASK = TensorSpec("pred_mask", "float32", (CANVAS, CANVAS))

INPUTS = (IMAGE_INPUT, TEXT_INPUT)
OUTPUTS = (PRED_MASK,)
CONTRACT = "lpcvc-2025-track-2"
_PREFIX = "promptseg."  # of the record's keys in an ONNX file's metadata


@dataclass(frozen=True)
class GraphRecord:
    """What an exported ONNX file says of itself, in its metadata, so that it cannot be taken for another one.

    `attends` and `mask_resize` are the checkpoint's rule of mask attention (see xdecoder/mask_decoder.py) and
    `canvas_rule` is how its masks reach the canvas (see xdecoder/model.py); `precision` is that of the arithmetic that
    the file is meant for.
    """

    model: str
    res: int
    precision: str
    checkpoint_sha256: str
    attends: str
    mask_resize: str
    canvas_rule: str
    contract: str = CONTRACT

    def write_into(self, content: onnx.ModelProto) -> None:
        """Replace the record in `content`: one entry per field, in the fields' order."""
        others = [entry for entry in content.metadata_props if not entry.key.startswith(_PREFIX)]
        record = [
            onnx.StringStringEntryProto(key=_PREFIX + name, value=str(value)) for name, value in asdict(self).items()
        ]
        content.ClearField("metadata_props")
        content.metadata_props.extend([*others, *record])


def read_record(graph: Path) -> GraphRecord:
    """Read the record of an exported ONNX file.

    Raises ValueError when there is no such file, when it is no ONNX, or when its record is missing, has
    other fields or is of another contract.
    """
    again = "run `dvc repro export`"
    entries = _read_onnx(graph).metadata_props
    found = {entry.key.removeprefix(_PREFIX): entry.value for entry in entries if entry.key.startswith(_PREFIX)}
    wanted = {field.name for field in fields(GraphRecord)}
    if found.keys() != wanted:
        got = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{graph}: got a record of the fields {got}, wanted {', '.join(sorted(wanted))}; {again}")
    res = found.pop("res")
    if not res.isdecimal():
        raise ValueError(f"{graph}: got the record's res {res!r}, wanted pixels; {again}")
    record = GraphRecord(res=int(res), **found)
    if record.contract != CONTRACT:
        raise ValueError(f"{graph}: got a graph of the contract {record.contract!r}, wanted {CONTRACT!r}; {again}")
    return record


def mask_of(pred_mask: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Decide each pixel of the network's output: float32 [CANVAS, CANVAS] -> bool of the same shape.

    A NaN is outside, as the challenge's comparison has it.
    """
    return pred_mask > MASK_THRESHOLD


def check_border(graph: Path) -> None:
    """Raise ValueError when the file is missing, is no ONNX, or its inputs or outputs are not those of the contract."""
    content = _read_onnx(graph).graph
    for side, values, wanted in (("inputs", content.input, INPUTS), ("outputs", content.output, OUTPUTS)):
        got = [_spec_of(value) for value in values]
        if got != list(wanted):
            raise ValueError(f"{graph}: got {side} {_spell(got)}, wanted {_spell(wanted)}; see hubs/contract.py")


def _read_onnx(graph: Path) -> onnx.ModelProto:
    if not graph.is_file():
        raise ValueError(f"{graph}: got no such file, wanted the exported graph; run `dvc repro export`")
    try:
        return onnx.load(graph, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{graph}: got a file that is no ONNX ({error}); run `dvc repro export` again") from error


def _spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)  # -1: dynamic
    return TensorSpec(value.name, str(dtype), shape)


def _spell(specs: list[TensorSpec] | tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs) or "none"
