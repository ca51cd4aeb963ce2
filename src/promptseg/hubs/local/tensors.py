"""The NPU's emulator held to ONNX Runtime, tensor by tensor: which node of a graph is the first that strays.

Masks hide a wrong operation: with one pool wrong by 60 %, 99.98 % of pixels were decided alike. Run by itself as
`python -m promptseg.hubs.local.tensors <request as JSON>`, in a fresh process as `session` is.
"""

import json
import logging
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from promptseg.hubs.devices import Chip, Device
from promptseg.hubs.local.process import last_error, run_with_a_plan
from promptseg.hubs.local.session import session_options

# Relative error (L2). Right parts of float graphs stay below 0.01 in fp16; the padded pools were off by 0.55 to 0.73.
TOLERANCE = 0.05
INTEGER_TOLERANCE = (
    0.5  # rounding every tensor to 8 bits takes small values of GELUs to 0.25; a wrong product is off by 1
)
SHOWN = "/shown"  # behind a quantized tensor's name: its values, see `_with_values`
MOST_TENSORS = 100  # compared at once: each is one more output of the compiled graph
# What these read may exceed fp16, the largest value having the same result: where nothing else reads it, it is not
# compared, and neither is the decision that they make of it, which turns rounding into whole ones.
DECIDING = frozenset({"Clip", "Sigmoid"})
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedTensor:
    """One tensor of a graph in both arithmetics.

    `error` is the L2 norm of the difference over that of ONNX Runtime's tensor; infinite where the emulator's holds a
    value that is not finite. `largest` is ONNX Runtime's largest magnitude.
    """

    node: str
    op_type: str
    tensor: str
    shape: tuple[int, ...]
    error: float
    largest: float

    def __str__(self) -> str:
        return f"{self.op_type} {self.node} {list(self.shape)}: relative error {self.error:.3g}"


@dataclass(frozen=True)
class CompareRequest:
    """Compare all outputs of `graph` on `inputs` (.npz, one array per input); write {output: [error, largest]}."""

    graph: str
    chip: Chip
    inputs: str
    output: str
    plan: int = 0


def first_straying_tensor(
    graph: Path, inputs: Mapping[str, NDArray[Any]], device: Device, tolerance: float | None = None
) -> ComparedTensor | None:
    """Return the first tensor of an ONNX file that the emulator computes otherwise than ONNX Runtime, or None.

    inputs: one array per input of the graph. tolerance: of the relative error; None for TOLERANCE, or, of a quantized
    graph, INTEGER_TOLERANCE. Looks at the last tensor of every part first (see `compare_borders`), then
    at every node between the first that strays and those before it that agree. Raises RuntimeError when the emulator
    fails.
    """
    content = _with_values(onnx.shape_inference.infer_shapes(onnx.load(graph)))
    if tolerance is None:
        tolerance = INTEGER_TOLERANCE if _shown(content) else TOLERANCE
    borders = _compare(content, _borders(content), inputs, device)
    straying = next((tensor for tensor in borders if not tensor.error <= tolerance), None)
    if straying is None:
        return None
    agreed = {tensor.tensor for tensor in borders if tensor.error <= tolerance}
    nodes = _nodes_behind(content, straying.tensor, agreed)
    try:
        closer = _compare(content, nodes[-MOST_TENSORS:], inputs, device)
    except RuntimeError as error:  # the compiler may fuse nodes that it refuses one by one
        _LOG.info("%s: cannot look closer: %s", straying.node, error)
        return straying
    return next((tensor for tensor in closer if not tensor.error <= tolerance), straying)


def compare_borders(graph: Path, inputs: Mapping[str, NDArray[Any]], device: Device) -> list[ComparedTensor]:
    """Compare the last float tensor of every part of an ONNX file, and its outputs, in the graph's order.

    A part is the module that the exporter names a node after ("network.backbone.stages.0/Conv_3"); of more than
    MOST_TENSORS, that many are taken, spread over the graph. Raises RuntimeError when the emulator fails.
    """
    content = _with_values(onnx.shape_inference.infer_shapes(onnx.load(graph)))
    return _compare(content, _borders(content), inputs, device)


def _with_values(content: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph with one more tensor, its values as floats, for each result that is quantized.

    Asked for a result before its QuantizeLinear, the NPU would compute the operation in float, or not at all.
    """
    graph = content.graph
    makers = {name: node for node in graph.node for name in node.output}
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in makers]:
        name, maker = f"{node.output[0]}{SHOWN}", makers[node.input[0]]
        graph.node.append(
            onnx.helper.make_node("DequantizeLinear", [node.output[0], *node.input[1:]], [name], f"{maker.name}/{name}")
        )
        value = graph.value_info.add()
        value.CopyFrom(known.get(node.input[0], known[node.output[0]]))
        value.name, value.type.tensor_type.elem_type = name, onnx.TensorProto.FLOAT
    return content


def _shown(content: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in content.graph.node if node.output[0].endswith(SHOWN)]


def _borders(content: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The node that makes the last float tensor of each part, and those that make the graph's outputs."""
    nodes = _comparable(content)
    last = {node.name.partition("/")[0]: index for index, node in enumerate(nodes)}  # a later node replaces an earlier
    picked = sorted(last.values())
    picked = picked[:: max(1, -(-len(picked) // MOST_TENSORS))]
    outputs = {value.name for value in content.graph.output}
    ends = [index for index, node in enumerate(nodes) if node.output[0] in outputs]
    return [nodes[index] for index in sorted({*picked, *ends})]


def _comparable(content: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes whose first output is a float tensor, without decisions (see DECIDING); of integers, what shows values."""
    if shown := _shown(content):
        return shown
    values = (*content.graph.value_info, *content.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    readers = defaultdict(set)
    for node in content.graph.node:
        for name in node.input:
            readers[name].add(node.op_type)
    decided = {name for name, kinds in readers.items() if kinds <= DECIDING}
    wanted = floats - decided - _inside_gelus(content)
    return [
        node
        for node in content.graph.node
        if node.output[0] in wanted and not (node.op_type in DECIDING and node.input[0] in decided)
    ]


def _inside_gelus(content: onnx.ModelProto) -> set[str]:
    """Tensors between the nodes that the compiler fuses to one Gelu: asked for one, it would have to compute an Erf."""
    readers = defaultdict(list)
    for node in content.graph.node:
        for name in node.input:
            readers[name].append(node)
    inside = set[str]()
    for erf in content.graph.node:
        if erf.op_type == "Erf":  # x * (erf(x / sqrt(2)) + 1) * 0.5
            inside |= {erf.input[0], erf.output[0]}
            for add in readers[erf.output[0]]:
                muls = (
                    [node for node in readers[add.output[0]] if node.op_type == "Mul"] if add.op_type == "Add" else []
                )
                inside.update(node.output[0] for node in (add, *muls) if muls)
    return inside


def _nodes_behind(content: onnx.ModelProto, tensor: str, agreed: set[str]) -> list[onnx.NodeProto]:
    """The comparable nodes that `tensor` is computed by, back to the tensors in `agreed`; in the graph's order."""
    makers = {name: node for node in content.graph.node for name in node.output}
    agreed = {name.removesuffix(SHOWN) for name in agreed}
    found, open_names = set[str](), [tensor.removesuffix(SHOWN)]
    while open_names:
        name = open_names.pop()
        if name in makers and name not in found and name not in agreed:
            found.add(name)
            open_names.extend(makers[name].input)
    return [node for node in _comparable(content) if node.output[0].removesuffix(SHOWN) in found]


def _compare(
    content: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, NDArray[Any]], device: Device
) -> list[ComparedTensor]:
    changed = onnx.ModelProto()
    changed.CopyFrom(content)
    known = {value.name: value for value in (*content.graph.value_info, *content.graph.output)}
    changed.graph.ClearField("output")
    changed.graph.output.extend(known[node.output[0]] for node in nodes)
    with tempfile.TemporaryDirectory(prefix="promptseg-") as name:
        folder = Path(name)
        onnx.save(changed, folder / "graph.onnx")
        np.savez(folder / "inputs.npz", allow_pickle=False, **inputs)
        chip = device.chip
        request = CompareRequest("graph.onnx", chip, "inputs.npz", "errors.json")
        done = run_with_a_plan(__name__, request, folder)
        if done.returncode != 0:
            cause = last_error(done.stderr)
            raise RuntimeError(f"got exit code {done.returncode} from the HTP emulator, comparing tensors: {cause}")
        errors = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    return [_compared(node, known[node.output[0]], *errors[node.output[0]]) for node in nodes]


def _compared(node: onnx.NodeProto, value: onnx.ValueInfoProto, error: float, largest: float) -> ComparedTensor:
    shape = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
    return ComparedTensor(node.name or node.output[0], node.op_type, node.output[0], shape, error, largest)


def relative_error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """L2 norm of the difference over that of `wanted`; infinite when `got` holds a value that is not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    first, second = got.astype(np.float64), wanted.astype(np.float64)
    return float(np.linalg.norm(first - second) / max(float(np.linalg.norm(second)), 1e-12))


def compare(request: CompareRequest) -> None:
    """Run both arithmetics and write the errors; the emulator compiles the graph as it loads it."""
    with np.load(request.inputs) as arrays:
        inputs = dict(arrays)
    options = session_options(request.chip, plan=request.plan)
    got = _run(ort.InferenceSession(request.graph, options), inputs)
    wanted = _run(ort.InferenceSession(request.graph, providers=["CPUExecutionProvider"]), inputs)
    errors = {
        name: (relative_error(got[name], array), float(np.abs(array).max(initial=0))) for name, array in wanted.items()
    }
    Path(request.output).write_text(json.dumps(errors), encoding="utf-8")


def _run(session: ort.InferenceSession, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    wanted = [value.name for value in session.get_inputs()]
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: inputs[name] for name in wanted}), strict=True))


def main(arguments: Iterable[str]) -> None:
    """Carry out the one request given as a JSON object."""
    fields = json.loads(next(iter(arguments)))
    compare(CompareRequest(**{**fields, "chip": Chip(**fields["chip"])}))


if __name__ == "__main__":
    main(sys.argv[1:])
