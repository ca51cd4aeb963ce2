"""What `segment` adds to the time of the graphs themselves: the picture's size, tokens, the mask and its box.

    python -m benchmarks.segment --model models/graphs --size 640 480 --runs 30

The graphs' own calls are timed from within, and taken off. Reading a JPEG file of that size is told apart. All
that is left runs on one thread; its processor time is hurt less by whatever else a machine does, and stands
beside the clock's.
"""

import argparse
import io
import statistics
import time
from typing import Any

import numpy as np
import torch
from PIL import Image

import promptseg
from benchmarks.machine import machine
from promptseg.datasets.preprocess import read_picture
from promptseg.inference.runners import OnnxRunner

PHRASE = "the orange shape to the left of the red star"


class Timed:
    """Stands in for a session of ONNX Runtime, and adds up what its calls take, in seconds of both clocks."""

    def __init__(self, session: Any) -> None:
        self._session, self.wall, self.processor = session, 0.0, 0.0

    def run(self, *arguments: Any) -> Any:
        """Run the session."""
        wall, processor = time.perf_counter(), time.thread_time()
        try:
            return self._session.run(*arguments)
        finally:
            self.wall += time.perf_counter() - wall
            self.processor += time.thread_time() - processor


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/graphs", help="exported graphs")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--runs", type=int, default=30)
    options = parser.parse_args()
    model = promptseg.load(options.model)
    runner = model._runner
    assert isinstance(runner, OnnxRunner), "a checkpoint has no graph to time"
    sessions = runner._session._sessions
    timed = {name: Timed(session) for name, session in sessions.items()}
    sessions.update(timed)
    width, height = options.size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    model.segment(picture, PHRASE)
    added_ms: list[tuple[float, float]] = []
    for _ in range(options.runs):
        before = [sum(getattr(each, clock) for each in timed.values()) for clock in ("wall", "processor")]
        wall, processor = time.perf_counter(), time.thread_time()
        model.segment(picture, PHRASE)
        spent = time.perf_counter() - wall, time.thread_time() - processor
        after = [sum(getattr(each, clock) for each in timed.values()) for clock in ("wall", "processor")]
        graphs = [late - early for early, late in zip(before, after, strict=True)]
        added_ms.append((1e3 * (spent[0] - graphs[0]), 1e3 * (spent[1] - graphs[1])))
    by_clock, by_processor = (statistics.median(each) for each in zip(*added_ms, strict=True))
    least = min(each for _, each in added_ms)
    encoded = io.BytesIO()
    Image.fromarray(picture).resize((64, 48)).resize((width, height)).save(encoded, "JPEG", quality=90)
    reading_ms = []
    for _ in range(options.runs):
        processor = time.thread_time()
        read_picture(encoded.getvalue(), "picture")
        reading_ms.append(1e3 * (time.thread_time() - processor))
    print(f"{machine(torch.device('cpu'))}; {width}x{height} px, one phrase, median of {options.runs}")
    print(
        f"segment adds {by_processor:.1f} ms of processor time ({least:.1f} at least), {by_clock:.1f} ms by the clock"
    )
    print(f"reading a JPEG of that size: {statistics.median(reading_ms):.1f} ms of processor time")


if __name__ == "__main__":
    main()
