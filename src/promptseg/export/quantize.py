"""The exported float graph as integers: ONNX Runtime's quantizer, in its QNN configuration.

The result is the same graph with QuantizeLinear and DequantizeLinear around its operations (QDQ), which Qualcomm's
compiler, AI Hub and ONNX Runtime read alike. Weights have 8 bits, activations 8 or 16; see docs/precision.md.
"""

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model
from onnxruntime.quantization.execution_providers.qnn.preprocess import save_and_reload_optimize_model
from tqdm import tqdm

from promptseg.files import atomic_path
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import IMAGE_INPUT, PARTS, TEXT_INPUT, module_of, part_of, read_graphs, read_record
from promptseg.hubs.host import GraphInputs, HostSession
from promptseg.params import ExportConfig

Bits = Literal["8", "16", "float"]  # of a node's results
# What `mixed` keeps where export.keep is null, measured by `python -m promptseg sensitivity`: docs/precision.md.
KEPT: dict[str, tuple[str, ...]] = {"nano": ("mask",), "photo": ("decoder",)}
QDQ_OPSET = (
    21  # the first whose QuantizeLinear knows 16 bits; before it ONNX Runtime has operations of its own for them
)
MODULE_ALONE = "/"  # behind a module's name in export.keep: its own operations, and not those of modules below it
FLOAT_SUFFIX = ":float"  # behind a name of export.keep: in float, and not in 16 bits
HISTOGRAM_BINS = 2048
PERCENTILE = 99.99
SHOWN = 6
CHECKED = 4  # calibration samples on which a quantized graph must mark something
COARSE = 4096.0  # a range beyond it leaves steps of 16 in 8 bits
# A product's sum of whole numbers, times the product of its operands' steps over its result's: beyond 256 the NPU gives
# 0 (docs/compiler.md). At 1 a decision cut to 0 and 1 is as hard as rounding lets it be.
LARGEST_MULTIPLIER = 256.0
DECISION_MULTIPLIER = 1.0
PRODUCTS = ("MatMul", "Gemm", "Conv")
WIDE = 4.0  # range of a product's weights, by that of the usual output's: beyond it each output has a scale of its own
LEAST_RANGE = 1e-9  # of a result that is always the same
CHOICE_BEGINS = ("LayerNormalization", "Conv", "Add", "Softmax")  # whose results may have 8 bits
_TYPES = {"8": QuantType.QUInt8, "16": QuantType.QUInt16}
_ONNX_TYPES = {"tensor(float)": onnx.TensorProto.FLOAT, "tensor(int64)": onnx.TensorProto.INT64,
               "tensor(int32)": onnx.TensorProto.INT32, "tensor(bool)": onnx.TensorProto.BOOL}  # fmt: skip
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizeReport:
    """What was made of a float graph: how many of its operations have results in 8 bits, in 16 bits and in float."""

    precision: str
    method: str
    samples: int
    keep: tuple[str, ...]
    operations_8_bit: int
    operations_16_bit: int
    operations_float: int

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dictionary for a metrics file."""
        return asdict(self)


@dataclass(frozen=True)
class Calibrated:
    """A float graph in the form that the quantizer takes, and the range of each of its tensors."""

    content: onnx.ModelProto
    ranges: TensorsData

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """Its operations, in order."""
        return list(self.content.graph.node)


def calibration_inputs(images: Path, samples: Path, tokens: Path, count: int) -> GraphInputs:
    """Return `count` samples of the train split, spread over the kinds of phrase and, of each, over the pictures.

    Raises ValueError when the split has no samples, or fewer.
    """
    key = "export.calibration.samples"
    try:
        train = GraphInputs(images, samples, tokens, "train", None)
    except ValueError as error:
        raise ValueError(f"{key}: got {count}, and nothing to take them from: {error}") from error
    if count > len(train):
        raise ValueError(f"{key}: got {count}, wanted at most {len(train)}, which the split train of {samples} has")
    return train.few(count)


def quantize_graphs(floats: Path, config: ExportConfig, samples: GraphInputs, folder: Path) -> QuantizeReport:
    """Write the graph of `floats`, as export_graphs made it for integers, to `folder` in the precision of `config`.

    Ranges are from `samples`. Raises ValueError for an unknown name in export.keep, where samples give no ranges, and
    when the masks of the quantized graph are empty on calibration samples where those of the float graph are not.
    Warns of tensors that 8 bits flatten, or that are constant.
    """
    (float_graph,) = (graph.path for graph in read_graphs(floats))
    record = read_record(float_graph)
    keep = kept(config, record.model)
    plain = prepared(float_graph)
    bits = bits_of(plain.graph.node, config.precision, keep)  # a mistake in it shows before the calibration
    calibrated = calibrate(plain, samples, config.calibration.method)
    _warn(_tempered(calibrated, bits), bits)
    content = quantized(calibrated, bits)
    replace(record, precision=config.precision).write_into(content)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        onnx.save(content, temporary / float_graph.name)
        _check_masks(floats, temporary, samples.few(CHECKED))
    counts = {each: sum(1 for name in bits.values() if name == each) for each in ("8", "16", "float")}
    return QuantizeReport(
        precision=config.precision,
        method=config.calibration.method,
        samples=len(samples),
        keep=keep,
        operations_8_bit=counts["8"],
        operations_16_bit=counts["16"],
        operations_float=counts["float"],
    )


def kept(config: ExportConfig, model: str) -> tuple[str, ...]:
    """Return the names that `mixed` keeps in more than 8 bits: export.keep, or what was measured for the model."""
    if config.precision != "mixed":
        return ()
    if config.keep is None and model not in KEPT:
        raise ValueError(
            f"export.keep: got null, and nothing was measured for {model!r} ({', '.join(KEPT)} have a choice of their "
            "own); run `python -m promptseg sensitivity`, which writes it, or list parts, modules or operations"
        )
    return KEPT[model] if config.keep is None else config.keep


def bits_of(nodes: Iterable[onnx.NodeProto], precision: str, keep: Collection[str] = ()) -> dict[str, Bits]:
    """Say for each node by its name what its results are in: the precision's, or what `keep` says.

    What a choice (ArgMax) is made of has 16 bits in any case: among 256 steps, queries that fit alike would be equal.

    A name of `keep` is a part (see hubs/contract.py), the beginning of a module's path ("decoder.layers.2"), that of a
    module without what is below it ("decoder/"), or a kind of operation ("Softmax"); with FLOAT_SUFFIX behind it the
    operation stays in float, else it has 16 bits. Raises ValueError for a name that is none of them in this graph.
    """
    nodes = list(nodes)
    usual: Bits = "16" if precision == "w8a16" else "8"
    bits: dict[str, Bits] = dict.fromkeys((node.name for node in nodes), usual) | dict.fromkeys(_chosen_by(nodes), "16")
    for entry in keep:
        name = entry.removesuffix(FLOAT_SUFFIX)
        found = [node.name for node in nodes if is_named(node, name)]
        if not found:
            modules = sorted({module_of(node.name)[0] for node in nodes})
            kinds = sorted({node.op_type for node in nodes})
            raise ValueError(
                f"export.keep: got {entry!r}, wanted a part ({', '.join(PARTS)}), a module ({', '.join(modules)}, and "
                f"what is below them; with {MODULE_ALONE!r} behind it without that) or a kind of operation "
                f"({', '.join(kinds)}), with {FLOAT_SUFFIX!r} behind it for float"
            )
        bits |= dict.fromkeys(found, "float" if entry.endswith(FLOAT_SUFFIX) else "16")
    return bits


def _chosen_by(nodes: list[onnx.NodeProto]) -> Iterator[str]:
    """Yield the names of the nodes that a choice is made of, back to the norms that they stand on."""
    made = {name: node for node in nodes for name in node.output}
    waiting = [name for node in nodes if node.op_type == "ArgMax" for name in node.input]
    while waiting:
        node = made.get(waiting.pop())
        if node is not None and node.op_type not in CHOICE_BEGINS:
            yield node.name
            waiting += node.input


def is_named(node: onnx.NodeProto, name: str) -> bool:
    """Tell whether a node is of the part, below the module, in the module ("decoder/"), or of the kind `name`."""
    path = ".".join(module_of(node.name))
    if name.endswith(MODULE_ALONE):
        return path == name.removesuffix(MODULE_ALONE)
    return name in (part_of(node.name), node.op_type, path) or path.startswith(f"{name}.")


def calibrate(content: onnx.ModelProto, samples: Iterable[HubInput], method: str) -> Calibrated:
    """Find the range of each tensor of a graph that `prepared` made, on `samples`, at least one.

    Raises ValueError where a value is no number.
    """
    bar = tqdm(samples, desc="calibrate", unit="sample")
    return calibrate_on(content, (feed_of(sample) for sample in bar), method)


def calibrate_on(content: onnx.ModelProto, feeds: Iterable[Mapping[str, NDArray[Any]]], method: str) -> Calibrated:
    """Do the same for a graph with inputs of any names: `feeds` are what ONNX Runtime takes, input -> array."""
    with tempfile.TemporaryDirectory(prefix="promptseg-") as folder:
        path = Path(folder) / "prepared.onnx"
        onnx.save(content, path)
        ranges = (_bounds if method == "minmax" else _histograms)(path, feeds, method)
    for name, data in ranges.items():  # of a constant, histograms have ends in any order
        ranges[name] = TensorData(lowest=np.minimum(*data.range_value), highest=np.maximum(*data.range_value))
    broken = [name for name, data in ranges.items() if not np.isfinite(data.range_value).all()]
    if broken:
        raise ValueError(f"got values that are no numbers in {', '.join(broken[:SHOWN])}, wanted ranges to quantize by")
    return Calibrated(content, ranges)


def quantized(calibrated: Calibrated, bits: Mapping[str, Bits]) -> onnx.ModelProto:
    """Put QuantizeLinear and DequantizeLinear into a calibrated graph: `bits` by the names of its nodes."""
    calibrated = _tempered(calibrated, bits)
    content = calibrated.content
    usual: Bits = "16" if "8" not in bits.values() else "8"
    # Whole numbers from 0 to 255; beside 8 bits what 16 are made of must have 16.
    wide = usual == "8" and any(
        bits[node.name] == "16" for node in content.graph.node if IMAGE_INPUT.name in node.input
    )
    picture = (
        {"quant_type": QuantType.QUInt16, "zero_point": np.array(0, np.uint16)}
        if wide
        else {"zero_point": np.array(0, np.uint8)}
    )
    overrides: dict[str, list[dict[str, Any]]] = {}
    if any(value.name == IMAGE_INPUT.name for value in content.graph.input):
        overrides[IMAGE_INPUT.name] = [{"scale": np.array(1, np.float32), **picture}]
    for node in content.graph.node:
        for name in node.output if bits[node.name] == "16" and usual == "8" else ():
            overrides[name] = [{"quant_type": QuantType.QUInt16}]
    for name, axis in _weights_by_output(content, bits):
        overrides[name] = [{"quant_type": QuantType.QInt8, "axis": axis, "symmetric": True}]
    config = get_qnn_qdq_config(
        content, cast(Any, None), activation_type=_TYPES[usual], weight_type=QuantType.QUInt8,
        init_overrides=overrides, nodes_to_exclude=[name for name, each in bits.items() if each == "float"],
    )  # fmt: skip
    quantizer = QDQQuantizer(
        content, config.per_channel, config.reduce_range, config.weight_type, config.activation_type, calibrated.ranges,
        config.nodes_to_quantize, config.nodes_to_exclude, config.op_types_to_quantize, config.extra_options,
    )  # fmt: skip
    made = quantizer.quantize_model()
    _name_conversions(made)
    return made


def _weights_by_output(content: onnx.ModelProto, bits: Mapping[str, Bits]) -> Iterator[tuple[str, int]]:
    """Yield the weights of which each output gets a scale of its own, and the axis of the outputs.

    In 8 bits those whose range is wide for most outputs, as that of EfficientNet's depth-wise convolutions is: for the
    others one scale with a zero point is finer than symmetric ones. Beside results of 16 bits all that can: it is
    quicker. Weights that two operations read have one scale, for the NPU takes no others.
    """
    constants = {each.name: each for each in content.graph.initializer if len(each.dims) > 1}
    readers = _readers(content.graph)
    for node in content.graph.node:
        if node.op_type not in PRODUCTS or bits[node.name] == "float" or node.input[1] not in constants:
            continue
        weights = onnx.numpy_helper.to_array(constants[node.input[1]])
        turned = any(each.name == "transB" and each.i for each in node.attribute)
        axis = 0 if node.op_type == "Conv" or turned else weights.ndim - 1
        usual = np.median(np.abs(weights).max(tuple(each for each in range(weights.ndim) if each != axis)))
        wide = np.ptp(weights) > WIDE * 2 * usual
        if len(readers[node.input[1]]) == 1 and (wide or bits[node.name] == "16"):
            yield node.input[1], axis


def _tempered(calibrated: Calibrated, bits: Mapping[str, Bits]) -> Calibrated:
    """Return a copy whose decisions, products cut to 0 and 1, are as steep as their steps allow, and no steeper.

    A decision's left operand is a constant, or something times one: that constant is divided.
    """
    content, ranges = onnx.ModelProto(), TensorsData(CalibrationMethod.MinMax, dict(calibrated.ranges.items()))
    content.CopyFrom(calibrated.content)
    graph = content.graph
    made = {name: node for node in graph.node for name in node.output}
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    copy = Calibrated(content, ranges)
    for product, multiplier in _multipliers(copy, bits):
        scaled = product.input[0]
        maker = made.get(scaled)
        holder, slot = (maker, 1) if maker is not None and maker.op_type == "Mul" else (product, 0)
        divisor = np.float32(multiplier / DECISION_MULTIPLIER)
        cut = _cut_of(graph, product)
        if cut is None or cut.op_type != "Clip" or divisor <= 1 or holder.input[slot] not in constants:
            continue
        name = f"{product.name}/tempered"
        graph.initializer.append(onnx.numpy_helper.from_array(constants[holder.input[slot]] / divisor, name))
        holder.input[slot] = name
        if holder is not product:
            low, high = (np.asarray(each) / divisor for each in ranges[scaled].range_value)
            ranges[scaled] = TensorData(lowest=low, highest=high)
    return copy


def _cut_of(graph: onnx.GraphProto, product: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the Clip or Relu that alone reads a product: the quantizer makes the product's range of it."""
    readers = [node for node in graph.node if product.output[0] in node.input]
    return readers[0] if [node.op_type for node in readers] in (["Clip"], ["Relu"]) else None


def _multipliers(calibrated: Calibrated, bits: Mapping[str, Bits]) -> list[tuple[onnx.NodeProto, float]]:
    """Return, of each product of integers, how many steps of its result one is that its whole numbers add up to."""
    graph, ranges = calibrated.content.graph, calibrated.ranges
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}

    def step(name: str) -> float:
        ends = (constants[name].min(), constants[name].max()) if name in constants else ranges[name].range_value
        low, high = min(np.asarray(ends[0]).item(), 0.0), max(np.asarray(ends[1]).item(), 0.0)
        return max(high - low, LEAST_RANGE) / (65535 if name in made and bits[made[name].name] == "16" else 255)

    return [
        (node, step(node.input[0]) * step(node.input[1]) / step((_cut_of(graph, node) or node).output[0]))
        for node in graph.node
        if node.op_type in PRODUCTS and bits[node.name] != "float"
    ]


def prepared(float_graph: Path) -> onnx.ModelProto:
    """Return a float graph in the quantizer's form: operations fused, every tensor typed, every node named by module.

    ONNX Runtime's preparation fuses GELUs and norms, and also products with a computed bias, which the NPU would
    compute in float: those are cut. What it cannot type it would leave in float.
    """
    with tempfile.TemporaryDirectory(prefix="promptseg-") as folder:
        path = Path(folder) / "prepared.onnx"
        source = Path(folder) / "float.onnx"
        content = onnx.load(float_graph)
        record = list(content.metadata_props)
        content.ClearField("metadata_props")  # ONNX Runtime's preparation stumbles over them
        _fuse_blocks(content)
        own = next(entry for entry in content.opset_import if entry.domain in ("", "ai.onnx"))
        own.version = max(QDQ_OPSET, own.version)
        onnx.save(content, source)
        with redirect_stdout(StringIO()):
            changed = qnn_preprocess_model(source, path, fuse_layernorm=True)
            # What ONNX Runtime fused by itself counts for no change, and is not written: a plain GELU would stay open.
            content = onnx.load(path) if changed else save_and_reload_optimize_model(onnx.load(source), True)
    content.ClearField("metadata_props")
    content.metadata_props.extend(record)
    _type(content)
    _own_biases(content)
    _cut_biased_products(content)
    _name_by_module(content)
    return content


def _warn(calibrated: Calibrated, bits: Mapping[str, Bits]) -> None:
    """Name what one scale cannot hold: results that never change, and 8-bit ones whose range dwarfs the usual.

    Also products that are too steep for the NPU.
    """
    constant, coarse = [], []
    inputs = {name for node in calibrated.nodes for name in node.input}
    for node in calibrated.nodes:
        for name in node.output:
            if name not in calibrated.ranges or name not in inputs:
                continue
            low, high = (np.asarray(each).item() for each in calibrated.ranges[name].range_value)
            if low == high:
                constant.append(node.name)
            elif (
                bits[node.name] == "8" and max(-low, high) > COARSE and _cut_of(calibrated.content.graph, node) is None
            ):
                coarse.append(node.name)
    steep = [node.name for node, steps in _multipliers(calibrated, bits) if steps > LARGEST_MULTIPLIER]
    if steep:
        _log.warning(
            "%d products have steps beyond %g of their result's, of which the NPU makes 0: %s; more samples may widen "
            "their results", len(steep), LARGEST_MULTIPLIER, _first(steep),
        )  # fmt: skip
    if constant:
        _log.warning("%d operations gave one value on all calibration samples: %s", len(constant), _first(constant))
    if coarse:
        _log.warning(
            "%d operations have a range beyond %g, of which 8 bits keep steps of %.0f and more; a constant in it "
            "swallows the rest: %s", len(coarse), COARSE, COARSE / 255, _first(coarse),
        )  # fmt: skip


def _check_masks(floats: Path, graphs: Path, samples: Iterable[HubInput]) -> None:
    """Raise ValueError where a quantized graph marks nothing on samples, on some of which the float one does."""
    plain, integer = HostSession(floats), HostSession(graphs)
    masks = [(plain.decide(sample).pred_mask.any(), integer.decide(sample).pred_mask.any()) for sample in samples]
    if any(there for there, _ in masks) and not any(here for _, here in masks):
        raise ValueError(
            f"{graphs.name}: got empty masks on {len(masks)} calibration samples, where the float graph has some; "
            "wanted a graph that finds something: raise export.calibration.samples, take another method or "
            "export.precision=w8a16; `python -m promptseg sensitivity` says which part loses it"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def feed_of(sample: HubInput) -> dict[str, NDArray[Any]]:
    """Return a sample as ONNX Runtime takes it."""
    return {IMAGE_INPUT.name: sample.image_input, TEXT_INPUT.name: sample.text_input}


class _Reader:
    """Samples one at a time, as ONNX Runtime's calibrators ask for them."""

    def __init__(self, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> None:
        self._feeds: Iterator[Mapping[str, NDArray[Any]]] = iter(feeds)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def _bounds(path: Path, feeds: Iterable[Mapping[str, NDArray[Any]]], _: str) -> TensorsData:
    """Smallest and largest value of each tensor."""
    calibrator = create_calibrator(path, augmented_model_path=str(path.with_name("augmented.onnx")))
    calibrator.collect_data(cast(Any, _Reader(feeds)))
    return calibrator.compute_data()


def _histograms(path: Path, feeds: Iterable[Mapping[str, NDArray[Any]]], method: str) -> TensorsData:
    """Ranges by ONNX Runtime's histograms; one sample's tensors in memory at a time."""
    kind = CalibrationMethod.Entropy if method == "entropy" else CalibrationMethod.Percentile
    options = {"symmetric": False} | (
        {} if method == "entropy" else {"num_bins": HISTOGRAM_BINS, "percentile": PERCENTILE}
    )
    calibrator = create_calibrator(
        path, augmented_model_path=str(path.with_name("augmented.onnx")), calibrate_method=kind, extra_options=options
    )
    for feed in feeds:
        calibrator.collect_data(cast(Any, _Reader([feed])))
    if method != "mse":
        return calibrator.compute_data()
    histograms = calibrator.collector.get_histogram_dict()
    return TensorsData(
        CalibrationMethod.MinMax, {name: TensorData(lowest=low, highest=high) for name, (low, high) in
                                   ((name, least_squares(each[0], each[1])) for name, each in histograms.items())}
    )  # fmt: skip


def least_squares(counts: NDArray[Any], edges: NDArray[Any], steps: int = 255) -> tuple[np.float32, np.float32]:
    """Return the range around zero with the least error of those that are the histogram's shrunk at either end.

    The error is the sum of squares of what rounding to `steps` steps and cutting off at the ends do.
    """
    middles = (edges[:-1] + edges[1:]) / 2
    ends = [min(float(edges[0]), 0.0), max(float(edges[-1]), 0.0)]

    def error(low: float, high: float) -> float:
        cut = np.clip(middles, low, high)
        rounding = np.where(cut == middles, ((high - low) / steps) ** 2 / 12, 0)
        return float((counts * ((middles - cut) ** 2 + rounding)).sum())

    for end in (1, 0):  # one after the other: both at once would be a thousand ranges
        tried = [[*ends[:end], ends[end] * share, *ends[end + 1 :]] for share in np.linspace(1.0, 0.05, 39)]
        ends = min(tried, key=lambda pair: error(*pair))
    return np.float32(ends[0]), np.float32(ends[1])


def _fuse_blocks(content: onnx.ModelProto) -> None:
    """Make SpaceToDepth of Reshape, Transpose and Reshape that do the same: the NPU has no tensors of six axes."""
    graph = content.graph
    readers = _readers(graph)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer if each.dims}
    for node in [node for node in graph.node if node.op_type == "Transpose"]:
        if list(onnx.helper.get_attribute_value(node.attribute[0])) != [0, 3, 5, 1, 2, 4]:
            continue
        before = next(other for other in graph.node if node.input[0] in other.output)
        (after,) = readers[node.output[0]]
        block = int(constants[before.input[1]][3])
        fused = onnx.helper.make_node("SpaceToDepth", [before.input[0]], [after.output[0]], after.name, blocksize=block)
        graph.node[list(graph.node).index(after)].CopyFrom(fused)
        graph.node.remove(node)
        graph.node.remove(before)


def _type(content: onnx.ModelProto) -> None:
    """Add the type and shape of each tensor that has none, as ONNX Runtime infers them."""
    known = {value.name for value in (*content.graph.value_info, *content.graph.output)}
    missing = [name for node in content.graph.node for name in node.output if name and name not in known]
    probe = onnx.ModelProto()
    probe.CopyFrom(content)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = set(missing)
    content.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(value.name, _ONNX_TYPES[value.type], value.shape)
        for value in session.get_outputs()
        if value.name in wanted
    )


def _own_biases(content: onnx.ModelProto) -> None:
    """Give each product a bias of its own: one that another operation reads too would get 8 bits in place of 32."""
    graph = content.graph
    constants = {each.name: each for each in graph.initializer}
    readers = _readers(graph)
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        shared = constants.get(node.input[2])
        if shared is not None and len(readers[shared.name]) > 1:
            own = graph.initializer.add()
            own.CopyFrom(shared)
            own.name = node.input[2] = f"{node.name}/bias"
    for name in constants.keys() - _readers(graph).keys():  # all of whose readers have copies now
        graph.initializer.remove(constants[name])


def _cut_biased_products(content: onnx.ModelProto) -> None:
    """Make a product and a sum of each Gemm whose bias is computed."""
    graph = content.graph
    constants = {each.name for each in graph.initializer}
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.value_info}
    nodes: list[onnx.NodeProto] = []

    def added(op_type: str, inputs: list[str], name: str, shape: list[int], **attributes: Any) -> str:
        graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        nodes.append(onnx.helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    for node in graph.node:
        options = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type != "Gemm" or len(node.input) < 3 or node.input[2] in constants:
            nodes.append(node)
            continue
        assert not options.get("transA")
        assert options.get("alpha", 1) == options.get("beta", 1) == 1
        right = node.input[1]
        if options.get("transB"):
            right = added("Transpose", [right], f"{node.name}/right", shapes[right][::-1], perm=[1, 0])
        product = added("MatMul", [node.input[0], right], f"{node.name}/product", shapes[node.output[0]])
        nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], node.output, f"{node.name}/sum"))
    del graph.node[:]
    graph.node.extend(nodes)


def _name_by_module(content: onnx.ModelProto) -> None:
    """Give nodes that the preparation named the module of what they read, or of what reads them."""
    graph = content.graph
    made = {name: node for node in graph.node for name in node.output}
    readers = _readers(graph)
    for node in graph.node:
        if "/" not in node.name:
            near = [made[name] for name in node.input if name in made]
            near += [reader for name in node.output for reader in readers.get(name, [])]
            scope = next((other.name.partition("/")[0] for other in near if "/" in other.name), "graph")
            node.name = f"{scope}/{node.name}"


def _name_conversions(content: onnx.ModelProto) -> None:
    """Give each QuantizeLinear and DequantizeLinear the module of the operation whose result it converts."""
    made = {name: node for node in content.graph.node for name in node.output}
    for node in content.graph.node:
        if node.op_type in _QDQ and "/" not in node.name.partition("_QuantizeLinear")[0]:
            source = node
            while source.op_type in _QDQ and source.input[0] in made:
                source = made[source.input[0]]
            scope = source.name.partition("/")[0] if source.op_type not in _QDQ else "graph"
            node.name = f"{scope}/{node.name}"


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers
