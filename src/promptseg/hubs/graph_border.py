"""Check that an ONNX file has the inputs and outputs of the contract."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from promptseg.hubs.contract import INPUTS, OUTPUTS, TensorSpec


def check_border(graph: Path) -> None:
    """Raise ValueError when the file is missing, is no ONNX, or its inputs or outputs are not those of the contract."""
    if not graph.is_file():
        raise ValueError(f"{graph}: got no such file, wanted the exported graph; run `dvc repro export`")
    try:
        content = onnx.load(graph, load_external_data=False).graph
    except DecodeError as error:
        raise ValueError(f"{graph}: got a file that is no ONNX ({error}); run `dvc repro export` again") from error
    for side, values, wanted in (("inputs", content.input, INPUTS), ("outputs", content.output, OUTPUTS)):
        got = [_spec_of(value) for value in values]
        if got != list(wanted):
            raise ValueError(f"{graph}: got {side} {_spell(got)}, wanted {_spell(wanted)}; see hubs/contract.py")


def _spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)  # -1: dynamic
    return TensorSpec(value.name, str(dtype), shape)


def _spell(specs: list[TensorSpec] | tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs) or "none"
