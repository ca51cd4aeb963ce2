"""Masks of the NPU's emulator (fp16) against those of ONNX Runtime (fp32), and what makes them differ.

    python -m benchmarks.emulated_masks --res 320 256 --samples 64
    python -m benchmarks.emulated_masks --res 320 --samples 64 --explain 5

A row per phrase in docs/data/emulated_masks.csv, written as it comes; rows that the table has are left. With --explain,
the phrases with the lowest IoU are emulated again with the chosen query given as ONNX Runtime chose it, with the
thresholded masks that limit attention given as ONNX Runtime thresholded them, and with both: what brings the IoU back
is the cause. Takes 10 s of two cores per phrase and variant.
"""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
from numpy.typing import NDArray

from benchmarks.graphs import ROOT
from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.export.deployed_graph import deployed
from promptseg.export.onnx_export import trace_graph
from promptseg.files import sha256_of
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import IMAGE_INPUT, PRED_MASK, TEXT_INPUT, mask_of
from promptseg.hubs.devices import devices
from promptseg.hubs.host import GraphInputs
from promptseg.hubs.local.session import session_options

OPSET = 18
TABLE = ROOT / "docs" / "data" / "emulated_masks.csv"
KEY = ["checkpoint", "res", "sample_id"]
CHIP = devices()[0].chip


@dataclass(frozen=True)
class Row:
    """One phrase; `inside` counts ONNX Runtime's pixels inside, `iou_given_...` are empty unless explained."""

    checkpoint: str
    res: int
    sample_id: str
    iou: float
    differing: int
    inside: int
    same_query: bool
    iou_given_query: float | None = None
    iou_given_attention: float | None = None
    iou_given_both: float | None = None


class Decisions:
    """The deployed graph with its decisions as outputs or inputs: the likeness that chooses, the thresholded masks."""

    def __init__(self, content: onnx.ModelProto) -> None:
        self._content = onnx.shape_inference.infer_shapes(content)
        makers = {name: node for node in self._content.graph.node for name in node.output}
        chosen = next(node for node in self._content.graph.node if node.op_type == "ArgMax")
        self.likeness = chosen.input[0]
        self.thresholded = [  # clamp(clamp(logits * STEEP) * STEEP + 1): the outer one reads a sum
            node.output[0]
            for node in self._content.graph.node
            if node.op_type == "Clip" and makers[node.input[0]].op_type == "Add"
        ]

    def shown(self) -> onnx.ModelProto:
        """Return the graph with every decision as an output, too."""
        content = onnx.ModelProto()
        content.CopyFrom(self._content)
        content.graph.output.extend(self._values([self.likeness, *self.thresholded]))
        return content

    def given(self, names: Sequence[str]) -> onnx.ModelProto:
        """Return the graph with the decisions `names` as inputs."""
        content = onnx.ModelProto()
        content.CopyFrom(self._content)
        kept = [node for node in content.graph.node if not set(node.output) & set(names)]
        content.graph.ClearField("node")
        content.graph.node.extend(kept)
        content.graph.input.extend(self._values(names))
        return content

    def _values(self, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        values = {value.name: value for value in self._content.graph.value_info}
        return [values[name] for name in names]


def main() -> None:
    """Fill the table; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "finetuned.safetensors")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="images, samples.jsonl and tokens.npy")
    parser.add_argument("--res", type=int, nargs="+", required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--explain", type=int, default=0, help="how many phrases to explain, the worst first")
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    data = arguments.data
    inputs = GraphInputs(data / "images", data / "samples.jsonl", data / "tokens.npy", "val", arguments.samples)
    network, _ = load_checkpoint(arguments.checkpoint)
    digest = sha256_of(arguments.checkpoint)[:12]
    library_options = session_options(CHIP)  # registers the compiler, which a process does once
    for res in arguments.res:
        with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
            path = Path(scratch) / "graph.onnx"
            trace_graph(deployed(network, res), OPSET, path)
            decisions = Decisions(onnx.load(path))
        compare(decisions, digest, res, inputs, arguments.table, library_options)
        explain(decisions, digest, res, inputs, arguments.table, library_options, arguments.explain)
        print(summary(pd.read_csv(arguments.table).query("checkpoint == @digest and res == @res")), flush=True)


def compare(
    decisions: Decisions, digest: str, res: int, inputs: GraphInputs, table: Path, options: ort.SessionOptions
) -> None:
    """Add a row for every sample that `table` lacks."""
    content = decisions.shown().SerializeToString()
    host, emulated = _host(content), ort.InferenceSession(content, options)
    for sample in inputs:
        if not _rows(table, digest, res, sample.sample_id).empty:
            continue
        wanted, got = _run(host, sample), _run(emulated, sample)
        row = Row(
            checkpoint=digest,
            res=res,
            sample_id=sample.sample_id,
            iou=round(_iou(_mask(got), _mask(wanted)), 5),
            differing=int((_mask(got) != _mask(wanted)).sum()),
            inside=int(_mask(wanted).sum()),
            same_query=bool(got[decisions.likeness].argmax() == wanted[decisions.likeness].argmax()),
        )
        _write(table, row)
        print(row, flush=True)


def explain(
    decisions: Decisions,
    digest: str,
    res: int,
    inputs: GraphInputs,
    table: Path,
    options: ort.SessionOptions,
    count: int,
) -> None:
    """Fill in what brings back the IoU of the `count` worst phrases."""
    rows = _rows(table, digest, res, None)
    worst = {str(name) for name in rows.nsmallest(count, "iou")["sample_id"]} if count else set()
    samples = [sample for sample in inputs if sample.sample_id in worst]
    host = _host(decisions.shown().SerializeToString())
    wanted = {sample.sample_id: _run(host, sample) for sample in samples}
    both = [decisions.likeness, *decisions.thresholded]
    variants = {"query": both[:1], "attention": both[1:], "both": both}
    ious: dict[str, dict[str, float]] = {sample.sample_id: {} for sample in samples}
    for name, given in variants.items() if samples else ():
        emulated = ort.InferenceSession(decisions.given(given).SerializeToString(), options)
        for sample in samples:
            right = wanted[sample.sample_id]
            got = _run(emulated, sample, {tensor: right[tensor] for tensor in given})
            ious[sample.sample_id][f"iou_given_{name}"] = round(_iou(_mask(got), _mask(right)), 5)
    for sample_id, found in ious.items():
        row = _rows(table, digest, res, sample_id).iloc[0].to_dict()
        _write(table, Row(**{**row, **found}))


def summary(rows: pd.DataFrame) -> str:
    """Say how far the masks are apart."""
    iou, differing = rows["iou"], rows["differing"]
    return (
        f"{rows['res'].iloc[0]} px, {len(rows)} phrases: IoU {iou.mean():.4f} on average, worst {iou.min():.4f}, "
        f"{(iou < 0.9).sum()} below 0.9; {differing.median():.0f} pixels differ in the median, {differing.max()} at "
        f"most; another query is chosen in {(~rows['same_query']).sum()}"
    )


def _host(content: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"])


def _run(
    session: ort.InferenceSession, sample: HubInput, given: dict[str, NDArray[np.float32]] | None = None
) -> dict[str, NDArray[np.float32]]:
    feed = {IMAGE_INPUT.name: sample.image_input, TEXT_INPUT.name: sample.text_input, **(given or {})}
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    return dict(zip(names, session.run(names, {name: feed[name] for name in wanted}), strict=True))


def _mask(outputs: dict[str, NDArray[np.float32]]) -> NDArray[np.bool_]:
    return mask_of(outputs[PRED_MASK.name])


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def _rows(table: Path, digest: str, res: int, sample_id: str | None) -> pd.DataFrame:
    """The table's rows of a checkpoint and a size, of one sample or of all."""
    if not table.is_file():
        return pd.DataFrame(columns=list(Row.__annotations__))
    rows = pd.read_csv(table, dtype={"sample_id": str})
    rows = rows[(rows["checkpoint"] == digest) & (rows["res"] == res)]
    return rows if sample_id is None else rows[rows["sample_id"] == sample_id]


def _write(table: Path, row: Row) -> None:
    """Add a row, or put it in the place of one with the same key."""
    new = pd.DataFrame([asdict(row)])
    if table.is_file():
        old = pd.read_csv(table, dtype={"sample_id": str})
        same = (old[KEY].astype(str) == new[KEY].astype(str).iloc[0]).all(axis=1)
        new = pd.concat([old[~same].dropna(axis=1, how="all"), new])
    table.parent.mkdir(parents=True, exist_ok=True)
    new.sort_values(KEY).reindex(columns=list(Row.__annotations__)).to_csv(table, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
