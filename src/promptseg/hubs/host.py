"""The samples that graphs are run on, and ONNX Runtime's CPU provider: its masks, and this machine's time for one."""

import logging
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import picture_to_canvas, read_picture
from promptseg.datasets.records import Sample, Split, read_samples
from promptseg.datasets.tokenizer import read_tokens
from promptseg.hubs.base import Chain, HostLatency, HubInput, HubOutput
from promptseg.hubs.contract import IMAGE_INPUT, TEXT_INPUT, Graph, read_graphs

HALF = "fp16"
# Operations that hand on values as they are, or choose among them and 0: what goes in is rounded already.
_MOVES = frozenset(
    (
        *("Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile"),
        *("Transpose", "Unsqueeze"),
        *("Abs", "Clip", "Max", "MaxPool", "Min", "Neg", "ReduceMax", "ReduceMin", "Relu", "Where"),
    )
)
_FIT_IN_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.BOOL)
_LOG = logging.getLogger(__name__)


class HostSession:
    """An export's graphs, each loaded once, on all of this machine's cores; `graphs` is their folder, or the one file.

    `precision`: "fp16" rounds as `rounded_to_half` says; with any other the files are run as they are.
    """

    def __init__(self, graphs: Path, precision: str = "fp32") -> None:
        self.threads = os.cpu_count() or 1
        self.graphs = read_graphs(graphs)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        # Products of unsigned with signed 8-bit integers overflow 16 bits on processors without VNNI, unless asked.
        options.add_session_config_entry("session.x64quantprecision", "1")
        self._sessions = {
            graph.name: ort.InferenceSession(
                rounded_to_half(onnx.load(graph.path)).SerializeToString() if precision == HALF else graph.path,
                options,
                providers=["CPUExecutionProvider"],
            )
            for graph in self.graphs
        }
        self.chain = Chain(self.graphs, self.run_graph)

    def run_graph(self, graph: Graph, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one of the graphs: tensors by name, in and out."""
        names = [spec.name for spec in graph.outputs]
        return dict(zip(names, self._sessions[graph.name].run(names, dict(feed)), strict=True))

    def decide(self, sample: HubInput) -> HubOutput:
        """Run one sample; see `Chain`. Raises ValueError when a graph hands back another shape or type."""
        return self.chain.decide(sample)

    def run(self, sample: HubInput) -> NDArray[np.bool_]:
        """Return the decided mask, bool [CANVAS, CANVAS]. Raises as `finite`."""
        return self.finite(sample).pred_mask

    def finite(self, sample: HubInput) -> HubOutput:
        """Run one sample. Raises as `decide`, and FloatingPointError for NaN."""
        output = self.decide(sample)
        if output.non_finite:
            raise FloatingPointError(not_finite(sample.sample_id, output.non_finite))
        return output


def not_finite(owner: str, values: int) -> str:
    """Say that so many values of an output of `owner` are no numbers."""
    return (
        f"{owner}: got {values} pixels that are NaN or infinite, wanted a mask; the graph's weights or its arithmetic "
        "overflow"
    )


def masks_on_host(graphs: Path, inputs: Iterable[HubInput], precision: str = "fp32") -> Iterator[HubOutput]:
    """Yield one mask per input, in order; one sample in memory at a time."""
    session = HostSession(graphs, precision)
    for sample in inputs:
        yield session.decide(sample)


def rounded_to_half(content: onnx.ModelProto) -> onnx.ModelProto:
    """Change a float32 graph so that every constant and every result of an operation is rounded to float16.

    Values beyond 65504 become infinite, as in float16 tensors; within one operation ONNX Runtime computes in float32.
    (A graph of float16 tensors would not do: ONNX Runtime has no float16 arithmetic on x86, computes it in float32, and
    keeps that precision, and what would have overflowed, from one operation to the next.)
    """
    inferred = onnx.shape_inference.infer_shapes(content).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    for constant in content.graph.initializer:
        if constant.data_type == onnx.TensorProto.FLOAT:
            with np.errstate(over="ignore"):
                rounded = numpy_helper.to_array(constant).astype(np.float16).astype(np.float32)
            constant.CopyFrom(numpy_helper.from_array(rounded, constant.name))
    nodes = []
    for node in content.graph.node:
        nodes.append(node)
        exact_already = node.op_type in _MOVES or (node.op_type == "Cast" and kinds.get(node.input[0]) in _FIT_IN_HALF)
        for index, name in enumerate(node.output):
            if kinds.get(name) == onnx.TensorProto.FLOAT and not exact_already:
                exact, half = f"{name}/exact", f"{name}/half"
                node.output[index] = exact
                nodes.append(onnx.helper.make_node("Cast", [exact], [half], to=onnx.TensorProto.FLOAT16))
                nodes.append(onnx.helper.make_node("Cast", [half], [name], to=onnx.TensorProto.FLOAT))
    content.graph.ClearField("node")
    content.graph.node.extend(nodes)
    return content


def measure_on_host(graphs: Path, runs: int) -> HostLatency:
    """Time `runs` inferences of one fixed random picture, after one that is not timed; loading is not counted.

    Several graphs are timed apart and added up: each once is what the first phrase about a picture takes.
    """
    session = HostSession(graphs)
    taken_ms: dict[str, list[float]] = {}
    for graph, feed, _ in session.chain.steps(_random_input()):
        for _ in range(runs):
            start = time.perf_counter()
            session.run_graph(graph, feed)
            taken_ms.setdefault(graph.name, []).append((time.perf_counter() - start) * 1e3)
    medians = {name: _median(taken) for name, taken in taken_ms.items()}
    total = round(sum(medians.values()), 3)
    _LOG.info("ONNX Runtime, CPU, %d threads: median of %d runs %.0f ms", session.threads, runs, total)
    return HostLatency(
        latency_ms_cpu=total,
        latency_ms_cpu_low=round(sum(map(min, taken_ms.values())), 3),
        latency_ms_cpu_high=round(sum(map(max, taken_ms.values())), 3),
        runs=runs,
        threads=session.threads,
        cpu=cpu_name(),
        graphs=medians if len(medians) > 1 else None,
    )


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def _random_input() -> HubInput:
    generator = np.random.default_rng(0)
    image_input = generator.uniform(0, 255, IMAGE_INPUT.shape).astype(np.float32)
    text_input = np.ones(TEXT_INPUT.shape, np.int32)  # token 1 and a full attention mask: every row of the table exists
    return HubInput("random picture", image_input, text_input)


def cpu_name() -> str:
    """Return the processor's name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _spread(rows: Sequence[int], count: int, part: int = 0, parts: int = 1) -> list[int]:
    """Take `count` of `rows` at even distances, beginning `part` of `parts` of such a distance from the first."""
    return [rows[(index * parts + part) * len(rows) // (count * parts)] for index in range(count)]


class GraphInputs:
    """The inputs of a split's samples, or of `limit` of them spread evenly over it; iterating decodes, nothing is held.

    Phrases of what a picture does not show are left out: the graph's border has no way to say so. Raises ValueError
    when there is no such sample, or tokens and samples do not belong together.
    """

    def __init__(self, images: Path, samples: Path, tokens: Path, split: Split, limit: int | None) -> None:
        everything = read_samples(samples)
        self._tokens = read_tokens(tokens, len(everything))
        rows = [row for row, sample in enumerate(everything) if sample.split == split and sample.means_something]
        if not rows:
            raise ValueError(f"{samples}: has no sample of the split {split!r}; choose another one for hub.split")
        count = len(rows) if limit is None else min(limit, len(rows))
        self._rows = _spread(rows, count)
        self._samples: Sequence[Sample] = everything
        self._archives = PictureArchives(images)

    @property
    def samples(self) -> list[Sample]:
        """The samples themselves, in the order of the inputs."""
        return [self._samples[row] for row in self._rows]

    def few(self, count: int) -> "GraphInputs":
        """Return `count` of these inputs, or all, spread over the kinds of phrase and, of each, over the split."""
        kinds: dict[str, list[int]] = {}
        for row in self._rows:
            kinds.setdefault(self._samples[row].phrase_kind, []).append(row)
        quotas = dict.fromkeys(kinds, 0)
        for _ in range(min(count, len(self._rows))):
            quotas[min((kind for kind in kinds if quotas[kind] < len(kinds[kind])), key=lambda kind: quotas[kind])] += 1
        chosen = copy(self)
        spread = (_spread(kinds[kind], quotas[kind], part, len(kinds)) for part, kind in enumerate(kinds))
        chosen._rows = sorted(row for rows in spread for row in rows)
        return chosen

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
