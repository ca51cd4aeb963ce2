"""The samples that a graph is run on, and ONNX Runtime's CPU provider: its masks, and this machine's time for one."""

import logging
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import picture_to_canvas, read_picture
from promptseg.datasets.records import Sample, Split, read_samples
from promptseg.datasets.tokenizer import read_tokens
from promptseg.hubs.base import HostLatency, HubInput, HubOutput
from promptseg.hubs.contract import IMAGE_INPUT, PRED_MASK, TEXT_INPUT, mask_of

_LOG = logging.getLogger(__name__)


class HostSession:
    """One graph, loaded once, on all of this machine's cores; float32 as exported."""

    def __init__(self, graph: Path) -> None:
        self.threads = os.cpu_count() or 1
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(self, sample: HubInput) -> NDArray[np.bool_]:
        """Return the decided mask, bool [CANVAS, CANVAS]. Raises ValueError when the graph hands back another shape."""
        feed = {IMAGE_INPUT.name: sample.image_input, TEXT_INPUT.name: sample.text_input}
        pred_mask = self._session.run([PRED_MASK.name], feed)[0]
        PRED_MASK.check(pred_mask, sample.sample_id)
        return mask_of(pred_mask)


def masks_on_host(graph: Path, inputs: Iterable[HubInput]) -> Iterator[HubOutput]:
    """Yield one mask per input, in order; one sample in memory at a time."""
    session = HostSession(graph)
    for sample in inputs:
        yield HubOutput(sample.sample_id, session.run(sample))


def measure_on_host(graph: Path, runs: int) -> HostLatency:
    """Time `runs` inferences of one fixed random picture, after one that is not timed; loading is not counted."""
    session = HostSession(graph)
    sample = _random_input()
    session.run(sample)
    latencies_ms = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(sample)
        latencies_ms.append((time.perf_counter() - start) * 1e3)
    _LOG.info("ONNX Runtime, CPU, %d threads: median of %d runs %.0f ms", session.threads, runs, _median(latencies_ms))
    return HostLatency(
        latency_ms_cpu=_median(latencies_ms),
        latency_ms_cpu_low=round(min(latencies_ms), 3),
        latency_ms_cpu_high=round(max(latencies_ms), 3),
        runs=runs,
        threads=session.threads,
        cpu=cpu_name(),
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


class GraphInputs:
    """The inputs of a split's samples, or of `limit` of them spread evenly over it; iterating decodes, nothing is held.

    Raises ValueError when there is no such sample, or tokens and samples do not belong together.
    """

    def __init__(self, images: Path, samples: Path, tokens: Path, split: Split, limit: int | None) -> None:
        everything = read_samples(samples)
        self._tokens = read_tokens(tokens, len(everything))
        rows = [row for row, sample in enumerate(everything) if sample.split == split]
        if not rows:
            raise ValueError(f"{samples}: has no sample of the split {split!r}; choose another one for hub.split")
        count = len(rows) if limit is None else min(limit, len(rows))
        self._rows = [rows[index * len(rows) // count] for index in range(count)]
        self._samples: Sequence[Sample] = everything
        self._archives = PictureArchives(images)

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
