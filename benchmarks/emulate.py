"""The NPU's emulator against ONNX Runtime: every part of the deployed graphs, and single operations with their options.

    python -m benchmarks.emulate parts --model nano --res 150 256 320     # which tensors stray, if any
    python -m benchmarks.emulate parts --model focal_t vit_b --res 256    # minutes and 6 GB each
    python -m benchmarks.emulate operations                               # docs/data/compiler_operations.csv

`parts` compares the last tensor of every part and exits with 1, naming the first node that strays, when one does.
`operations` compiles a small graph for each operation that our graphs use, or might, with its options; docs/compiler.md
has what came out. A second or two each.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.graphs import MODELS, ROOT, make_inputs, make_network
from promptseg.export.deployed_graph import deployed
from promptseg.export.onnx_export import trace_graph
from promptseg.hubs.contract import IMAGE_INPUT, TEXT_INPUT
from promptseg.hubs.devices import devices
from promptseg.hubs.local.tensors import TOLERANCE, ComparedTensor, compare_borders, first_straying_tensor

OPSET = 21
TABLE = ROOT / "docs" / "data" / "compiler_operations.csv"
Array = NDArray[Any]
Node = tuple[str, dict[str, Any], Sequence[Array]]  # an operation, its attributes, its inputs after the first

DEVICE = devices()[0]


@dataclass(frozen=True)
class Probe:
    """A chain of nodes on one input."""

    operation: str
    options: str
    x: Array
    nodes: Sequence[Node]


def main() -> None:
    """Compare; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parts", "operations"))
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["nano"])
    parser.add_argument("--res", type=int, nargs="+", default=[320])
    parser.add_argument("--only", default="", help="operations whose name holds this text")
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    if arguments.what == "operations":
        compare_operations(arguments.only, arguments.table)
    else:
        graphs = [(model, res) for model in arguments.model for res in arguments.res]
        sys.exit(0 if all([compare_parts(*graph) for graph in graphs]) else 1)


def compare_parts(model: str, res: int) -> bool:
    """Print every part's error, and the first node that strays; tell whether none does."""
    sample = make_inputs()[0]
    inputs = {IMAGE_INPUT.name: sample.image_input, TEXT_INPUT.name: sample.text_input}
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        path = Path(scratch) / "graph.onnx"
        trace_graph(deployed(make_network(model), res), 18, path)
        parts = compare_borders(path, inputs, DEVICE)
        for part in parts:
            print(f"{model} {res} px: {part}")
        worst = max(part.error for part in parts)
        print(f"{model} {res} px: {len(parts)} parts, worst relative error {worst:.3g}, tolerance {TOLERANCE}")
        straying = None if worst <= TOLERANCE else first_straying_tensor(path, inputs, DEVICE)
    if straying is not None:
        print(f"{model} {res} px: the first that strays is {straying}")
    return straying is None


def compare_operations(only: str, table: Path) -> None:
    """Write a row per probe to `table`, and print it."""
    rows = []
    for probe in probes():
        if only in f"{probe.operation} {probe.options}":
            rows.append({"operation": probe.operation, "options": probe.options, "relative_error": _error_of(probe)})
            print(*rows[-1].values(), sep=" | ", flush=True)
    table.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(table, index=False, lineterminator="\n")


def _error_of(probe: Probe) -> str:
    """The relative error of what a probe puts out, or the word for a graph that is not placed on the NPU."""
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        path = Path(scratch) / "probe.onnx"
        _write(probe, path)
        try:
            compared: list[ComparedTensor] = compare_borders(path, {"x": probe.x}, DEVICE)
        except RuntimeError as error:
            logging.debug("%s", error)
            return "refused"
        return f"{compared[-1].error:.2g}"


def _write(probe: Probe, path: Path) -> None:
    names = ["x", *[f"t{index}" for index in range(len(probe.nodes) + 1)]]
    nodes, constants = [], []
    for index, (operation, attributes, arrays) in enumerate(probe.nodes):
        inputs = [f"c{index}_{place}" for place in range(len(arrays))]
        present = [(name, array) for name, array in zip(inputs, arrays, strict=True) if array.size]
        constants += [numpy_helper.from_array(array, name) for name, array in present]
        named = {name for name, _ in present}
        inputs = [name if name in named else "" for name in inputs]  # an empty array stands for an input left out
        outputs = [names[index + 1]]
        nodes.append(helper.make_node(operation, [names[index], *inputs], outputs, f"probe/{index}", **attributes))
    nodes.append(
        helper.make_node("Identity", [names[len(probe.nodes)]], ["y"], "probe/y")
    )  # compared whatever it reads
    x = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(probe.x.dtype), probe.x.shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "probe", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), path)


def draw(*shape: int) -> Array:
    """Float32, normal."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def probes() -> Iterator[Probe]:
    """All probes; the odd-looking ones are what our graphs contain or what was suspected."""
    for make in (_pools, _convolutions, _resizes, _pads, _reductions, _shapes, _numbers, _decisions):
        yield from make()


def _one(operation: str, options: str, x: Array, *arrays: Array, name: str = "", **attributes: Any) -> Probe:
    return Probe(name or operation, options, x, [(operation, attributes, arrays)])


def _pools() -> Iterator[Probe]:
    x = draw(1, 8, 16, 16)
    two: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    three: dict[str, Any] = {"kernel_shape": [3, 3]}
    yield _one("AveragePool", "2x2, stride 2", x, **two)
    yield _one("AveragePool", "2x2, stride 1", x, kernel_shape=[2, 2])
    for include in (0, 1):
        counted = f"count_include_pad {include}"
        for pads in ([1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]):
            yield _one(
                "AveragePool", f"2x2, stride 2, pads {pads}, {counted}", x, **two, pads=pads, count_include_pad=include
            )
        for pads in ([1, 1, 0, 0], [0, 0, 1, 1]):
            padded = draw(1, 8, 15, 15)
            yield _one(
                "AveragePool",
                f"2x2, stride 2, pads {pads}, {counted}",
                padded,
                **two,
                pads=pads,
                count_include_pad=include,
            )
        for stride in (1, 2):
            options = three | {"strides": [stride, stride], "pads": [1, 1, 1, 1], "count_include_pad": include}
            yield _one("AveragePool", f"3x3, stride {stride}, pads [1, 1, 1, 1], {counted}", x, **options)
    pad: Node = ("Pad", {}, (_amounts([1, 1, 1, 1]),))
    yield Probe("AveragePool", "2x2, stride 2, after a Pad node of [1, 1, 1, 1]", x, [pad, ("AveragePool", two, ())])
    yield _one("AveragePool", "2x2, stride 2, ceil_mode 1, of 15x15", draw(1, 8, 15, 15), **two, ceil_mode=1)
    yield _one(
        "AveragePool", "2x2, stride 2, auto_pad SAME_UPPER, of 15x15", draw(1, 8, 15, 15), **two, auto_pad="SAME_UPPER"
    )
    yield _one("AveragePool", "2x2, stride 1, dilations [2, 2]", x, kernel_shape=[2, 2], dilations=[2, 2])
    yield _one("GlobalAveragePool", "", x)
    yield _one("MaxPool", "2x2, stride 2", x, **two)
    yield _one("MaxPool", "3x3, stride 2, pads [1, 1, 1, 1]", x, **three, strides=[2, 2], pads=[1, 1, 1, 1])
    yield _one(
        "MaxPool",
        "3x3, stride 2, pads [1, 1, 1, 1], of negative values",
        -np.abs(x) - 1,
        **three,
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    )
    yield _one("MaxPool", "2x2, stride 2, pads [0, 0, 1, 1]", draw(1, 8, 15, 15), **two, pads=[0, 0, 1, 1])
    yield _one("MaxPool", "2x2, stride 2, ceil_mode 1, of 15x15", draw(1, 8, 15, 15), **two, ceil_mode=1)


def _convolutions() -> Iterator[Probe]:
    x, conv = draw(1, 16, 17, 17), partial(_one, "Conv")
    full, deep, bias = draw(8, 16, 3, 3), draw(16, 1, 3, 3), draw(8)
    for pads in ([1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 2]):
        for stride in (1, 2, 4):
            yield conv(f"3x3, stride {stride}, pads {pads}", x, full, bias, pads=pads, strides=[stride, stride])
    yield conv("7x7, stride 4, pads 3", x, draw(8, 16, 7, 7), bias, pads=[3] * 4, strides=[4, 4])
    yield conv("3x3, pads 2, dilations 2", x, full, bias, pads=[2] * 4, dilations=[2, 2])
    yield conv("3x3, stride 2, pads 2, dilations 2", x, full, bias, pads=[2] * 4, dilations=[2, 2], strides=[2, 2])
    yield conv(
        "3x3, auto_pad SAME_UPPER, stride 2, of 16x16",
        draw(1, 16, 16, 16),
        full,
        bias,
        auto_pad="SAME_UPPER",
        strides=[2, 2],
    )
    yield conv("1x1", x, draw(8, 16, 1, 1), bias)
    yield conv("1x2", x, draw(8, 16, 1, 2), bias)
    yield conv("3x3, groups 2", x, draw(8, 8, 3, 3), bias, pads=[1] * 4, group=2)
    for stride in (1, 2):
        for pads in ([1, 1, 1, 1], [0, 0, 1, 1]):
            yield conv(
                f"3x3, depth-wise, stride {stride}, pads {pads}", x, deep, pads=pads, strides=[stride, stride], group=16
            )
    for size in (5, 7, 9):
        yield conv(
            f"{size}x{size}, depth-wise, pads {size // 2}", x, draw(16, 1, size, size), pads=[size // 2] * 4, group=16
        )
    yield conv("3x3, depth-wise, pads 2, dilations 2", x, deep, pads=[2] * 4, dilations=[2, 2], group=16)
    means = np.full((16, 1, 2, 2), 0.25, np.float32)
    for pads in ([1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]):
        yield conv(
            f"2x2 means, depth-wise, stride 2, pads {pads}",
            draw(1, 16, 16, 16),
            means,
            pads=pads,
            strides=[2, 2],
            group=16,
        )
    pad: Node = ("Pad", {}, (_amounts([0, 0, 3, 3]),))
    yield Probe(
        "Conv", "3x3, stride 4, after a Pad node of [0, 0, 3, 3]", x, [pad, ("Conv", {"strides": [4, 4]}, (full,))]
    )
    yield conv("3x3 of 1,024 channels", draw(1, 1024, 9, 9), draw(8, 1024, 3, 3) / 96, bias, pads=[1] * 4)
    turned = partial(_one, "ConvTranspose")
    yield turned("2x2, stride 2", x, draw(16, 8, 2, 2), bias, strides=[2, 2])
    yield turned(
        "3x3, stride 2, pads 1, output_padding 1",
        x,
        draw(16, 8, 3, 3),
        bias,
        strides=[2, 2],
        pads=[1] * 4,
        output_padding=[1, 1],
    )


def _resizes() -> Iterator[Probe]:
    empty = np.zeros(0, np.float32)

    def resize(options: str, before: int, after: int, **attributes: Any) -> Probe:
        sizes = np.array([1, 8, after, after], np.int64)
        return _one(
            "Resize", f"{options}, {before} to {after}", draw(1, 8, before, before), empty, empty, sizes, **attributes
        )

    for before, after in ((16, 32), (16, 8), (16, 23), (16, 11), (16, 4), (40, 13)):
        for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
            yield resize(
                f"linear, {coordinates}", before, after, mode="linear", coordinate_transformation_mode=coordinates
            )
    for before, after in ((16, 32), (16, 23), (16, 11)):
        for coordinates, rounding in (
            ("asymmetric", "floor"),
            ("half_pixel", "round_prefer_floor"),
            ("half_pixel", "round_prefer_ceil"),
            ("half_pixel", "floor"),
        ):
            options = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
            yield resize(f"nearest, {coordinates}, {rounding}", before, after, mode="nearest", **options)
    yield resize("linear, antialias", 16, 8, mode="linear", antialias=1)
    yield resize("cubic", 16, 32, mode="cubic")
    yield resize("cubic, antialias", 16, 8, mode="cubic", antialias=1)


def _pads() -> Iterator[Probe]:
    x = draw(1, 8, 9, 9)
    for mode in ("constant", "reflect", "edge"):
        for pads in ([1, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 2, 1], [2, 0, 0, 1]):
            yield _one("Pad", f"{mode}, {pads}", x, _amounts(pads), mode=mode)
    yield _one("Pad", "constant 1.5, [1, 1, 1, 1]", x, _amounts([1, 1, 1, 1]), np.array(1.5, np.float32))
    yield _one("Pad", "constant, channels last, [0, 0, 2, 1]", x, np.array([0, 0, 0, 0, 0, 2, 1, 0], np.int64))
    yield _one("Pad", "constant, one channel before, two behind", x, np.array([0, 1, 0, 0, 0, 2, 0, 0], np.int64))


def _amounts(pads: Sequence[int]) -> Array:
    """Top, left, bottom, right, as Pad has them for four axes."""
    top, left, bottom, right = pads
    return np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)


def _reductions() -> Iterator[Probe]:
    x = draw(1, 8, 12, 10)
    for operation in ("ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"):
        for axes in ([1], [2], [3], [1, 2], [2, 3]):
            for keepdims in (0, 1):
                yield _one(
                    operation, f"axes {axes}, keepdims {keepdims}", x, np.array(axes, np.int64), keepdims=keepdims
                )
    yield _one("ReduceMean", "axes [2, 3], of 148x148", draw(1, 4, 148, 148) + 1, np.array([2, 3], np.int64))
    yield _one(
        "ReduceSum", "axes [2, 3], of 148x148 ones", np.ones((1, 4, 148, 148), np.float32), np.array([2, 3], np.int64)
    )
    for axis in (-1, 1, 2):
        yield _one("Softmax", f"axis {axis}", x, axis=axis)
    blocked = np.where(np.random.default_rng(1).random((12, 300)) < 0.9, -10_000, 0).astype(np.float32)
    yield Probe(
        "Softmax",
        "axis -1, with -10,000 added to nine tenths",
        draw(12, 300),
        [("Add", {}, (blocked,)), ("Softmax", {"axis": -1}, ())],
    )
    yield _one("Softmax", "axis -1, all the same, far from zero", np.full((12, 300), -10_000, np.float32), axis=-1)
    yield _one("Softmax", "axis -1, 5,476 long", draw(12, 5476), axis=-1)
    for dim in (24, 96, 512):
        yield _one("LayerNormalization", f"of {dim}", draw(1, 50, dim), draw(dim), draw(dim), axis=-1)
    for scale, offset in ((1e-3, 0.0), (1e-2, 0.0), (1.0, 100.0), (1000.0, 0.0)):
        x = (draw(1, 50, 96) * scale + offset).astype(np.float32)
        yield _one("LayerNormalization", f"of 96, values {offset:g} +- {scale:g}", x, draw(96), draw(96), axis=-1)
    yield _one("GroupNormalization", "of 8 channels in 2 groups", draw(1, 8, 12, 10), draw(8), draw(8), num_groups=2)
    yield _one("InstanceNormalization", "of 8 channels", draw(1, 8, 12, 10), draw(8), draw(8))


def _shapes() -> Iterator[Probe]:
    x = draw(1, 8, 12, 10)
    table = draw(500, 16)
    ids = np.random.default_rng(0).integers(0, 500, (1, 77)).astype(np.int32)
    look_up = [("Gather", {"axis": 0}, (ids,))]
    yield Probe("Gather", "rows of a map, constant ids", table, look_up)
    yield _one("Gather", "axis 2", x, np.array([0, 5, 11], np.int64), axis=2)
    yield _one(
        "Slice",
        "step 2",
        x,
        np.array([1], np.int64),
        np.array([11], np.int64),
        np.array([2], np.int64),
        np.array([2], np.int64),
    )
    yield _one(
        "Slice",
        "step -1",
        x,
        np.array([-1], np.int64),
        np.array([-100], np.int64),
        np.array([3], np.int64),
        np.array([-1], np.int64),
    )
    yield _one("Tile", "2 x 3 in the last axes", x, np.array([1, 1, 2, 3], np.int64))
    yield _one("Expand", "1 to 8 channels", draw(1, 1, 12, 10), np.array([1, 8, 12, 10], np.int64))
    for perm in ([0, 2, 3, 1], [0, 3, 1, 2], [1, 0, 3, 2], [3, 2, 1, 0]):
        yield _one("Transpose", f"perm {perm}", x, perm=perm)
    yield _one("Reshape", "to [8, 120]", x, np.array([8, 120], np.int64))
    yield _one("DepthToSpace", "DCR, blocks of 2", x, blocksize=2)
    yield _one("SpaceToDepth", "blocks of 2", x, blocksize=2)
    yield _one("Concat", "axis 1, with a constant", x, draw(1, 3, 12, 10), axis=1)


def _numbers() -> Iterator[Probe]:
    ramp = np.linspace(-12, 12, 4096, dtype=np.float32).reshape(1, 4096)
    root = np.array(np.sqrt(2), np.float32)
    yield _one("Gelu", "-12 to 12", ramp)
    yield _one("Gelu", "tanh, -12 to 12", ramp, approximate="tanh")
    for operation in ("Erf", "Sigmoid", "Tanh", "Exp", "HardSwish"):
        yield _one(operation, "-12 to 12", ramp)
    yield Probe(
        "Erf",
        "x / sqrt(2), then + 1",
        ramp,
        [("Div", {}, (root,)), ("Erf", {}, ()), ("Add", {}, (np.array(1, np.float32),))],
    )
    for low, high in ((1e-8, 1e-6), (1e-6, 1e-4), (1e-4, 1e-2), (1e-2, 1e4)):
        x = np.geomspace(low, high, 4096, dtype=np.float32).reshape(1, 4096)
        yield _one("Sqrt", f"{low:g} to {high:g}", x)
        yield _one("Reciprocal", f"{low:g} to {high:g}", x)
    large = np.geomspace(1e4, 1e6, 4096, dtype=np.float32).reshape(1, 4096)
    yield Probe("Mul", "by 1; 1e4 to 6.5e4", np.minimum(large, 65_000), [("Mul", {}, (np.array(1.0001, np.float32),))])
    yield Probe(
        "Mul", "by 1; 6.5e4 to 1.3e5", np.clip(large, 65_600, 131_000), [("Mul", {}, (np.array(1.0001, np.float32),))]
    )
    yield Probe("Mul", "by 1; 1.4e5 to 1e6", np.maximum(large, 140_000), [("Mul", {}, (np.array(1.0001, np.float32),))])
    one = np.array(1, np.float32)
    yield Probe(
        "Sub",
        "x + 1 - 1, of 1e-3",
        draw(1, 4096) * np.float32(1e-3),
        [("Add", {}, (one,)), ("Relu", {}, ()), ("Sub", {}, (one,))],
    )
    for size in (512, 5476):
        yield _one("MatMul", f"sums of {size}, constant on the right", draw(16, size), draw(size, 32))
    yield _one("MatMul", "sums of 5,476 of one sign", np.abs(draw(16, 5476)), np.abs(draw(5476, 32)))
    yield _one("Gemm", "transB, bias", draw(16, 64), draw(32, 64), draw(32), transB=1)
    yield _one("Pow", "of 2", ramp, np.array(2, np.float32))
    yield _one("Div", "by a constant", ramp, np.array(3, np.float32))


def _decisions() -> Iterator[Probe]:
    cast = ("Cast", {"to": TensorProto.FLOAT}, ())
    zero, steep = np.array(0, np.float32), np.array(30_000, np.float32)
    one, minus = np.array(1, np.float32), np.array(-1, np.float32)
    sign: list[Node] = [
        ("Mul", {}, (steep,)),
        ("Clip", {}, (minus, one)),
        ("Mul", {}, (steep,)),
        ("Add", {}, (one,)),
        ("Clip", {}, (zero, one)),
    ]
    for low, high in ((1e-9, 1e-7), (1e-7, 1e-4), (1e-4, 1e2)):
        x = np.geomspace(low, high, 2048, dtype=np.float32)
        signed = np.concatenate((-x, x))[None]
        yield Probe("Clip", f"twice times 30,000, +-{low:g} to {high:g}", signed, sign)
        yield Probe("GreaterOrEqual", f"0, +-{low:g} to {high:g}", signed, [("GreaterOrEqual", {}, (zero,)), cast])
        yield Probe(
            "Sigmoid",
            f"times 1,000, +-{low:g} to {high:g}",
            signed,
            [("Mul", {}, (np.array(1000, np.float32),)), ("Sigmoid", {}, ())],
        )
    for axis in (0, 1):
        yield Probe("ArgMax", f"axis {axis}", draw(64, 48), [("ArgMax", {"axis": axis, "keepdims": 1}, ()), cast])
    yield Probe(
        "ArgMax",
        "all the same: the first",
        np.ones((48, 16), np.float32),
        [("ArgMax", {"axis": 0, "keepdims": 1}, ()), ("Cast", {"to": TensorProto.FLOAT}, ()), ("Add", {}, (one,))],
    )
    ids = np.random.default_rng(0).integers(0, 4, (1, 77)).astype(np.int32)
    yield Probe("Equal", "int32, a constant", ids, [("Equal", {}, (np.array(2, np.int32),)), cast])
    yield Probe("Where", "negative values to zero", draw(4, 64), [("Max", {}, (zero,))])


if __name__ == "__main__":
    main()
