"""Export the deployment graph to ONNX with a record of what it is, check it against torch, and count its parts."""

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from promptseg.datasets.preprocess import CANVAS
from promptseg.datasets.tokenizer import CONTEXT_LENGTH, END_OF_TEXT
from promptseg.export.deployed_graph import DecoderGraph, DeployedNetwork, PhraseGraph, PictureGraph, deployed
from promptseg.files import atomic_path, write_table
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import (
    DECODER,
    IMAGE_INPUT,
    MASK_LOGITS,
    OUTPUTS,
    PHRASE,
    PICTURE,
    PRESENCE,
    RECORDED_AS,
    SIMILARITY,
    TEXT_INPUT,
    ChallengeGraphs,
    GraphRecord,
    read_graphs,
)
from promptseg.hubs.host import HostSession
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.model import resize_canvas
from promptseg.params import ExportConfig, check_res

PRECISION = "fp16"  # of the arithmetic that the compiler chooses for a float32 file
FLOAT = "fp32"  # of a graph that is not deployed, but made integers of: export/quantize.py
MOST_DIFFERING_PIXELS = 1e-3  # share of the canvas; float32 against float32 flips pixels only at a mask's very border

OP_COLUMNS = ["op", "count"]
FEATURES = "features_"  # how the names of the tensors begin that the app's picture graph hands to its decoder
_SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's key for a node's modules, outermost first
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """What was exported. `differing_pixels` is a share of the canvas: mean and worst over `parity_samples` samples."""

    contract: str
    res: int
    parameters: int
    model_mb: float  # 1 MB = 1e6 bytes
    gflops: float  # 1e9 multiplications and additions, of convolutions and matrix products; of all graphs once
    nodes: int
    differing_pixels: float
    differing_pixels_worst: float
    parity_samples: int
    opset: int  # of the file

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dictionary for a metrics file."""
        return asdict(self)


def export_graphs(
    network: Network,
    res: int,
    config: ExportConfig,
    samples: Iterable[HubInput],
    folder: Path,
    *,
    model: str,
    checkpoint_sha256: str,
) -> ExportReport:
    """Write `network` at `res` to `folder` as the ONNX files of `config.contract`; compare both on `samples`.

    Where `config.precision` is one of integers, the graphs have the forms that they want, in float, and quantize.py
    takes them on. No sample is traced. model, checkpoint_sha256: the name and the digest of what `network` was read
    from; they go into the files' record. Raises ValueError, and leaves no folder, when the exporter cannot write the
    opset that `config` asks for, or when more than MOST_DIFFERING_PIXELS differ on any sample.
    """
    check_res("res", res)
    network.check_res("res", res)
    rules = {**network.rules, "canvas_rule": network.canvas_rule}
    precision = FLOAT if config.integers else PRECISION
    record = GraphRecord(model, res, precision, checkpoint_sha256, **rules, contract=RECORDED_AS[config.contract])
    graph = deployed(network, res, config.integers)
    parts = app_parts(graph) if config.contract == "app" else [challenge_part(graph)]
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for part in parts:
            trace_graph(part.module, config.opset, temporary / f"{part.name}.onnx", record, part)
        session = HostSession(temporary)
        shares = [_differing_share(network, session, sample) for sample in samples]
        if not max(shares) <= MOST_DIFFERING_PIXELS:
            raise ValueError(
                f"{folder}: up to {max(shares):.2%} of pixels differ from torch, wanted at most "
                f"{MOST_DIFFERING_PIXELS:.2%}; a rewrite in export/rewrites is wrong at this res"
            )
        files = [temporary / f"{part.name}.onnx" for part in parts]
        for file in files if config.contract == "app" else ():
            hand_over_in_half(file)
        contents = [onnx.load(file) for file in files]
        model_mb = sum(file.stat().st_size for file in files) / 1e6
    return ExportReport(
        contract=config.contract,
        res=res,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        model_mb=round(model_mb, 3),
        gflops=round(sum(count_flops(part.module, part) for part in parts) / 1e9, 3),
        nodes=sum(len(content.graph.node) for content in contents),
        differing_pixels=round(float(np.mean(shares)), 7),
        differing_pixels_worst=round(max(shares), 7),
        parity_samples=len(shares),
        opset=opset_of(contents[0]),
    )


@dataclass(frozen=True)
class Part:
    """What one ONNX file is traced from: a module, and its inputs, drawn, and outputs by name."""

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: tuple[str, ...]


def challenge_part(graph: nn.Module) -> Part:
    """Return a graph of the challenge's contract with a random picture and phrase."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(IMAGE_INPUT.shape, generator=generator) * 255
    text = torch.randint(1, END_OF_TEXT, TEXT_INPUT.shape, generator=generator, dtype=torch.int32)
    text[..., 8:] = END_OF_TEXT
    inputs = {IMAGE_INPUT.name: image, TEXT_INPUT.name: text}
    return Part(ChallengeGraphs.names[0], graph, inputs, tuple(spec.name for spec in OUTPUTS))


@torch.inference_mode()
def app_parts(graph: DeployedNetwork) -> list[Part]:
    """Cut a network's deployed form into the graphs of the app's contract, with a random picture and phrase."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (1, graph.res, graph.res, 3), generator=generator, dtype=torch.uint8)
    phrase = torch.randint(1, END_OF_TEXT, (1, CONTEXT_LENGTH), generator=generator, dtype=torch.int32)
    phrase[:, 8:] = END_OF_TEXT
    encode_picture, encode_phrase, decode = PictureGraph(graph), PhraseGraph(graph), DecoderGraph(graph)
    features = {f"{FEATURES}{index}": each for index, each in enumerate(encode_picture(picture))}
    handed = {"embedding": encode_phrase(phrase)} | features
    says = (MASK_LOGITS, SIMILARITY, PRESENCE)[: len(decode(*handed.values()))]
    return [
        Part(PICTURE, encode_picture, {"picture": picture}, tuple(features)),
        Part(PHRASE, encode_phrase, {"phrase": phrase}, ("embedding",)),
        Part(DECODER, decode, handed, says),
    ]


def hand_over_in_half(file: Path) -> None:
    """Let an app's features cross the border of its ONNX file as float16, which is what the NPU computes them in.

    They are megabytes, which every further phrase reads again.
    """
    content = onnx.load(file)
    graph, casts = content.graph, {True: list[onnx.NodeProto](), False: list[onnx.NodeProto]()}
    inner = {}
    for values, inwards in ((graph.input, True), (graph.output, False)):
        for value in values:
            if value.name.startswith(FEATURES):
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
                inner[value.name] = f"{value.name}/float"
                source, target = (value.name, inner[value.name])[:: 1 if inwards else -1]
                to = onnx.TensorProto.FLOAT if inwards else onnx.TensorProto.FLOAT16
                casts[inwards].append(onnx.helper.make_node("Cast", [source], [target], f"graph/{value.name}", to=to))
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    nodes = [*casts[True], *graph.node, *casts[False]]
    graph.ClearField("node")
    graph.node.extend(nodes)
    for value in graph.value_info:
        value.name = inner.get(value.name, value.name)
    onnx.checker.check_model(content)
    onnx.save(content, file)


def write_ops(graphs: Path, path: Path) -> None:
    """Write how many operations of each kind the ONNX files have, as CSV with OP_COLUMNS, the most frequent first."""
    counts = Counter(
        node.op_type
        for graph in read_graphs(graphs)
        for node in onnx.load(graph.path, load_external_data=False).graph.node
    )
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    write_table(path, pd.DataFrame(rows, columns=OP_COLUMNS))


def trace_graph(
    graph: nn.Module, opset: int, path: Path, record: GraphRecord | None = None, part: Part | None = None
) -> None:
    """Write `graph` as ONNX, traced on random input: nothing in it may depend on the values.

    `part` says what its inputs and outputs are; without one they are the challenge's. Raises ValueError, before
    anything is written, when the exporter makes a graph of another opset than the one asked for: it converts where it
    can, and otherwise hands back its own.
    """
    part = part or challenge_part(graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            graph, tuple(each.clone() for each in part.inputs.values()), dynamo=True, opset_version=opset,
            verbose=False, input_names=list(part.inputs), output_names=list(part.outputs),
        )  # fmt: skip
    assert program is not None
    program.optimize()
    content = _dequantized(_without_traces(program.model_proto))
    if opset_of(content) != opset:
        raise ValueError(
            f"export.opset: got {opset}, for which the exporter wrote a graph of opset {opset_of(content)}: it cannot "
            f"convert this graph; set export.opset to {opset_of(content)}"
        )
    if record is not None:
        record.write_into(content)
    onnx.save(content, path)


def _dequantized(content: onnx.ModelProto) -> onnx.ModelProto:
    """Read uint8 inputs by DequantizeLinear, of scale 1: the NPU's Cast makes 1 of all but 0 (docs/compiler.md)."""
    graph = content.graph
    inputs = {each.name for each in graph.input if each.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in inputs:
            scale, zero = f"{node.input[0]}_scale", f"{node.input[0]}_zero_point"
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), scale))
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.uint8), zero))
            node.op_type = "DequantizeLinear"
            node.ClearField("attribute")
            node.input.extend([scale, zero])
    return content


def opset_of(content: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a graph is written in."""
    return next(entry.version for entry in content.opset_import if entry.domain in ("", "ai.onnx"))


def _without_traces(content: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the exporter's notes: with stack traces, a comment or another folder would change the graph's bytes.

    Each node's name keeps where it comes from: "network.backbone.stages.0.blocks.1/Conv_12".
    """
    graph = content.graph
    scope = ""
    for index, node in enumerate(graph.node):
        scope = next((_module_of(note.value) for note in node.metadata_props if note.key == _SCOPES), scope)
        node.name = f"{scope or 'graph'}/{node.op_type}_{index}"
    parts = (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in (content, graph, *parts):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return content


def _module_of(scopes: str) -> str:
    """Return the innermost module of the exporter's list of scopes, whose last entry is the node itself."""
    path = ast.literal_eval(scopes)
    return str(path[-2]).removeprefix("deployed.") if len(path) > 1 else ""


def _differing_share(network: Network, session: HostSession, sample: HubInput) -> float:
    """Compare a sample's mask with the network's on the picture as the graphs get it: share of the canvas."""
    graphs, res = session.graphs, session.graphs.record.res
    picture = torch.from_numpy(graphs.picture_tensor(sample.image_input))
    square = resize_canvas(picture, res) if picture.is_floating_point() else picture.float().permute(0, 3, 1, 2)
    from_onnx = session.run(sample)
    with torch.inference_mode():
        ids = torch.from_numpy(sample.text_input[0])
        from_torch = network.predict(square, ids, CANVAS).mask_logits[0] > 0
    share = float(np.mean(from_onnx != from_torch.numpy()))
    _log.info("%s: %.4f%% of pixels differ between ONNX and torch", sample.sample_id, 100 * share)
    return share


def count_flops(graph: nn.Module, part: Part | None = None) -> int:
    """Multiplications and additions of the convolutions and matrix products of one inference; `part`: as above."""
    inputs = (part or challenge_part(graph)).inputs
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        graph(*inputs.values())
    return int(counter.get_total_flops())
