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

from promptseg.datasets.tokenizer import END_OF_TEXT
from promptseg.export.deployed_graph import deployed, plain_mask
from promptseg.files import atomic_path, write_table
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import IMAGE_INPUT, INPUTS, OUTPUTS, TEXT_INPUT, GraphRecord, check_border
from promptseg.hubs.host import HostSession
from promptseg.networks.network import Network
from promptseg.params import ExportConfig, check_res

PRECISION = "fp16"  # of the arithmetic that the compiler chooses for a float32 file
MOST_DIFFERING_PIXELS = 1e-3  # share of the canvas; float32 against float32 flips pixels only at a mask's very border

OP_COLUMNS = ["op", "count"]
_SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's key for a node's modules, outermost first
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """What was exported. `differing_pixels` is a share of the canvas: mean and worst over `parity_samples` samples."""

    res: int
    parameters: int
    model_mb: float  # 1 MB = 1e6 bytes
    gflops: float  # 1e9 multiplications and additions, of convolutions and matrix products
    nodes: int
    differing_pixels: float
    differing_pixels_worst: float
    parity_samples: int
    opset: int  # of the file

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dictionary for a metrics file."""
        return asdict(self)


def export_graph(
    network: Network,
    res: int,
    config: ExportConfig,
    samples: Iterable[HubInput],
    path: Path,
    *,
    model: str,
    checkpoint_sha256: str,
) -> ExportReport:
    """Write `network` at `res` to `path` as ONNX; compare both on `samples`, none of which is traced.

    model, checkpoint_sha256: the name and the digest of what `network` was read from; they go into the file's record.
    Raises ValueError, and leaves no file, when the exporter cannot write the opset that `config` asks for, or when more
    than MOST_DIFFERING_PIXELS differ on any sample.
    """
    check_res("res", res)
    network.check_res("res", res)
    rules = {**network.rules, "canvas_rule": network.canvas_rule}
    record = GraphRecord(model, res, PRECISION, checkpoint_sha256, **rules)
    graph = deployed(network, res)
    with atomic_path(path) as temporary:
        trace_graph(graph, config.opset, temporary, record)
        check_border(temporary)
        session = HostSession(temporary)
        shares = [_differing_share(network, res, session, sample) for sample in samples]
        if not max(shares) <= MOST_DIFFERING_PIXELS:
            raise ValueError(
                f"{path}: up to {max(shares):.2%} of pixels differ from torch, wanted at most "
                f"{MOST_DIFFERING_PIXELS:.2%}; a rewrite in export/rewrites is wrong at this res"
            )
        content = onnx.load(temporary)
        model_mb = temporary.stat().st_size / 1e6
    return ExportReport(
        res=res,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        model_mb=round(model_mb, 3),
        gflops=round(count_flops(graph) / 1e9, 3),
        nodes=len(content.graph.node),
        differing_pixels=round(float(np.mean(shares)), 7),
        differing_pixels_worst=round(max(shares), 7),
        parity_samples=len(shares),
        opset=opset_of(content),
    )


def write_ops(graph: Path, path: Path) -> None:
    """Write how many operations of each kind an ONNX file has, as CSV with OP_COLUMNS, the most frequent first."""
    counts = Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    write_table(path, pd.DataFrame(rows, columns=OP_COLUMNS))


def trace_graph(graph: nn.Module, opset: int, path: Path, record: GraphRecord | None = None) -> None:
    """Write `graph` as ONNX, traced on random input: nothing in it may depend on the values.

    Raises ValueError, before anything is written, when the exporter makes a graph of another opset than the one asked
    for: it converts where it can, and otherwise hands back its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            graph, _random_inputs(), dynamo=True, opset_version=opset, verbose=False,
            input_names=[spec.name for spec in INPUTS], output_names=[spec.name for spec in OUTPUTS],
        )  # fmt: skip
    assert program is not None
    program.optimize()
    content = _without_traces(program.model_proto)
    if opset_of(content) != opset:
        raise ValueError(
            f"export.opset: got {opset}, for which the exporter wrote a graph of opset {opset_of(content)}: it cannot "
            f"convert this graph; set export.opset to {opset_of(content)}"
        )
    if record is not None:
        record.write_into(content)
    onnx.save(content, path)


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
    return str(path[-2]) if len(path) > 1 else ""


def _random_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(IMAGE_INPUT.shape, generator=generator) * 255
    text = torch.randint(1, END_OF_TEXT, TEXT_INPUT.shape, generator=generator, dtype=torch.int32)
    text[..., 8:] = END_OF_TEXT
    return image, text


def _differing_share(network: Network, res: int, session: HostSession, sample: HubInput) -> float:
    from_onnx = session.run(sample)
    with torch.inference_mode():
        from_torch = plain_mask(network, torch.from_numpy(sample.image_input), torch.from_numpy(sample.text_input), res)
    share = float(np.mean(from_onnx != from_torch.numpy()))
    _log.info("%s: %.4f%% of pixels differ between ONNX and torch", sample.sample_id, 100 * share)
    return share


def count_flops(graph: nn.Module) -> int:
    """Multiplications and additions of the convolutions and matrix products of one inference."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        graph(*_random_inputs())
    return int(counter.get_total_flops())
