"""The app's three graphs beside the challenge's one: what they cost, how much they agree, how fast they score.

    python -m benchmarks.app npu --model nano --res 320       # simulated: minutes with Focal-T
    python -m benchmarks.app npu --model focal_t --res 590
    python -m benchmarks.app agree                            # nano at 320 px on `shapes`: data/ of the default run
    python -m benchmarks.app host                             # 480 phrases of 80 pictures, both ways in turn
    python -m benchmarks.app memory --phrases 10000           # what hub-infer holds, the val split again and again

Figures of the NPU are simulated (see hubs/local/profile.py) and the same on every machine; the host's are this
machine's. Each prints one line of JSON.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any, Literal, get_args
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.graphs import MODELS, ROOT, make_inputs, make_network
from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import mask_from_canvas, read_picture
from promptseg.datasets.records import read_samples, write_records
from promptseg.datasets.tokenizer import write_tokens
from promptseg.export.onnx_export import export_graphs
from promptseg.hubs.backends import open_hub
from promptseg.hubs.base import Binary, CompiledGraphs, HubInput
from promptseg.hubs.contract import read_graphs
from promptseg.hubs.devices import devices
from promptseg.hubs.fidelity import infer
from promptseg.hubs.host import GraphInputs, HostSession, masks_on_host
from promptseg.hubs.local.profile import simulate
from promptseg.inference.runners import OnnxRunner
from promptseg.metrics import overlap
from promptseg.params import CalibrationConfig, ExportConfig, HubConfig, read_params

AGREE_ON, SCORED = 64, 480
Contract = Literal["challenge", "app"]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("npu", "agree", "host", "memory"))
    parser.add_argument("--model", choices=MODELS, default="nano")
    parser.add_argument("--res", type=int, default=320)
    parser.add_argument("--phrases", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of `host`'s graphs")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "simulations")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        folders = {each: export(options.model, options.res, each, Path(scratch)) for each in get_args(Contract)}
        measure = {"npu": npu, "agree": agree, "host": host, "memory": memory}[options.what]
        sys.stdout.write(json.dumps({"model": options.model, "res": options.res, **measure(folders, options)}) + "\n")


def export(model: str, res: int, contract: Contract, scratch: Path) -> Path:
    """Write the graphs of a contract, held to the network on two samples."""
    config = ExportConfig(
        contract=contract,
        opset=18,
        parity_samples=2,
        precision="fp16",
        calibration=CalibrationConfig(samples=1, method="minmax"),
        keep=None,
    )
    folder = scratch / contract
    export_graphs(make_network(model), res, config, make_inputs(), folder, model=model, checkpoint_sha256="00" * 32)
    return folder


def npu(folders: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Simulated milliseconds of each graph on the first device's chip, and what is handed over between them."""
    figures: dict[str, Any] = {}
    chip = devices()[0].simulated_chip
    for graph in (graph for folder in folders.values() for graph in read_graphs(folder)):
        cost = simulate(graph.path, chip, options.cache).cost
        figures |= {f"{graph.name}_ms": cost.bounds_ms[0], f"{graph.name}_costless": cost.ops_without_cost}
    picture, *_ = read_graphs(folders["app"])
    features_mb = sum(spec.size_bytes for spec in picture.outputs) / 1e6
    further_ms = figures["phrase_ms"] + figures["decoder_ms"]
    return {**figures, "further_phrase_ms": round(further_ms, 3), "features_mb": round(features_mb, 1)}


def inputs(limit: int | None) -> GraphInputs:
    """Samples of the default run's val split."""
    data = ROOT / "data"
    return GraphInputs(data / "images", data / "samples.jsonl", data / "tokens.npy", "val", limit)


def agree(folders: dict[str, Path], _: argparse.Namespace) -> dict[str, Any]:
    """IoU of the app's masks with the challenge's on AGREE_ON phrases: as they are scored, and as `segment` answers.

    `segment` makes no canvas, so that some values of its square are rounded otherwise.
    """
    few, runner = inputs(None).few(AGREE_ON), OnnxRunner(folders["app"])
    archives = PictureArchives(ROOT / "data" / "images")
    figures: dict[str, float] = {}
    ious: dict[str, list[float]] = {"scored": [], "segment": []}
    every = zip(few.samples, few, *(masks_on_host(folder, few) for folder in folders.values()), strict=True)
    for sample, given, challenge, app in every:
        picture = read_picture(archives.read(sample.image), sample.image)
        (answer,) = runner.answer(picture, given.text_input[None, :, 0])
        wanted = mask_from_canvas(challenge.pred_mask, *picture.shape[:2])
        ious["scored"].append(overlap(challenge.pred_mask, app.pred_mask).iou)
        ious["segment"].append(overlap(wanted, answer.mask).iou)
    for name, each in ious.items():
        figures |= {f"{name}_iou_mean": round(float(np.mean(each)), 5), f"{name}_iou_worst": round(min(each), 5)}
    return {"phrases": len(few), **figures}


def host(folders: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to decide the masks of all phrases, each picture's one way after the other; a warm-up before.

    Both ways take the same pictures, read once: their reading is told apart. A clock, and this process' time on a
    processor, which with `--threads 1` is hurt less by whatever else the machine does: with more, threads wait for each
    other, and count that as work.
    """
    chosen = inputs(SCORED)
    with mock.patch("os.cpu_count", return_value=options.threads):
        sessions = {name: HostSession(folder, "fp16") for name, folder in folders.items()}
    names = [sample.image for sample in chosen.samples]
    for session in sessions.values():
        session.decide(next(iter(chosen)))
    spent = dict.fromkeys((*sessions, "pictures"), np.zeros(2))
    started = clocks()
    for _, given in groupby(zip(names, chosen, strict=True), key=lambda pair: pair[0]):
        samples = [sample for _, sample in given]
        spent["pictures"] = spent["pictures"] + clocks() - started
        for name, session in sessions.items():
            started = clocks()
            for sample in samples:
                session.decide(sample)
            spent[name] = spent[name] + clocks() - started
        started = clocks()
    both = {name: spent[name] + spent["pictures"] for name in sessions}
    faster = both["challenge"] / both["app"]
    figures = {name: [round(float(each), 1) for each in seconds] for name, seconds in (spent | both).items()}
    counted = {"phrases": len(chosen), "pictures": len(set(names))}
    return {**counted, "seconds_by_clock_and_processor": figures, "faster": [round(float(each), 2) for each in faster]}


def clocks() -> NDArray[np.float64]:
    """Seconds of the clock, and of this process on processors."""
    return np.array([time.perf_counter(), time.process_time()])


def memory(folders: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of hub-infer on so many phrases, and after the first tenth of them."""
    folder, data = folders["app"].parent / "data", ROOT / "data"
    count = options.phrases
    rows = [(row, each) for row, each in enumerate(read_samples(data / "samples.jsonl")) if each.split == "val"]
    chosen = [
        (row, replace(each, sample_id=f"{number}-{each.sample_id}")) for number, (row, each) in again(rows, count)
    ]
    folder.mkdir()
    write_records(folder / "samples.jsonl", (sample for _, sample in chosen))
    tokens = np.load(data / "tokens.npy")
    write_tokens(folder / "tokens.npy", tokens[[row for row, _ in chosen]])
    taken: list[int] = []

    class Watched(GraphInputs):
        """Takes the memory's peak after a tenth."""

        def __iter__(self) -> Iterator[HubInput]:
            for number, sample in enumerate(super().__iter__()):
                if number == count // 10:
                    taken.append(peak_mb())
                yield sample

    config = replace(read_params(ROOT).hub, emulator_samples=0)
    compile_nothing(folders["app"], folder, config)
    inputs = Watched(data / "images", folder / "samples.jsonl", folder / "tokens.npy", "val", None)
    start = time.perf_counter()
    forget_peak()
    before = peak_mb()
    made = infer(open_hub(config, options.cache), config, folders["app"], folder, inputs, folder / "predictions.jsonl")
    seconds = round(time.perf_counter() - start)
    figures = {"peak_mb_before": before, "peak_mb_after_a_tenth": taken[-1], "peak_mb": peak_mb()}
    return {"phrases": made.phrases, **figures, "seconds": seconds}


def again(rows: list[Any], count: int) -> Iterator[tuple[int, Any]]:
    """Yield the rows again and again, numbered, until there are so many."""
    return islice(enumerate(cycle(rows)), count)


def compile_nothing(graphs: Path, folder: Path, config: HubConfig) -> None:
    """Write a manifest that says that the graphs run as they are, in half precision, with no binary to compare."""
    found = read_graphs(graphs)
    CompiledGraphs(
        **{name: getattr(found.record, name) for name in ("contract", "model", "res", "precision")},
        **{name: getattr(config, name) for name in ("backend", "device")},
        runtime="ONNX Runtime, CPU",
        placed_on_npu=False,
        graph_sha256=found.sha256,
        binaries=tuple(Binary(graph.name, graph.sha256) for graph in found),
        chip=None,
        service=None,
        account=None,
        tool_versions={},
        note="",
    ).write(folder)


def forget_peak() -> None:
    """Let the largest resident memory count from now: the export before needed more."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> int:
    """The largest resident memory of this process since `forget_peak`, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return round(int(kilobytes) * 1024 / 1e6)


if __name__ == "__main__":
    main()
