"""An inference against the bench in a process of its own, to be killed or measured.

    python -m tests.aihub_driver GRAPH COMPILED CACHE PREDICTIONS SAMPLES CHUNK_MB KIND

Writes predictions as the stage does and prints the peak of the resident memory in bytes.
"""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from promptseg.datasets.preprocess import CANVAS
from promptseg.datasets.records import write_predictions
from promptseg.hubs.aihub.hub import AiHub
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import TEXT_INPUT
from promptseg.hubs.fidelity import infer
from tests.aihub_helpers import forget_sleep, hub_config
from tests.graphs import split_picture


def flat_pictures(count: int) -> Iterator[HubInput]:
    """Pictures of two grey values: quick to compress, each with a mask of its own."""
    for number in range(count):
        yield split_picture(f"s{number}", dark=number % 60, bright=70 + number, first_id=number)


def photo_like_pictures(count: int) -> Iterator[HubInput]:
    """One picture of smooth noise with a grain, as large, compressed, as a photograph; each sample shifts it."""
    random = np.random.default_rng(0)
    coarse = random.uniform(0, 255, (3, 65, 65)).astype(np.float32)
    cell, weight = np.arange(CANVAS) // 16, (np.arange(CANVAS) % 16 / 16).astype(np.float32)
    rows = coarse[:, cell] * (1 - weight)[None, :, None] + coarse[:, cell + 1] * weight[None, :, None]
    smooth = rows[:, :, cell] * (1 - weight) + rows[:, :, cell + 1] * weight
    picture = np.clip(np.rint(smooth + random.integers(-3, 4, smooth.shape)), 0, 255).astype(np.float32)[None]
    for number in range(count):
        yield HubInput(f"s{number}", np.roll(picture, number, axis=3), np.ones(TEXT_INPUT.shape, np.int32))


def main(graph: str, compiled: str, cache: str, predictions: str, samples: str, chunk_mb: str, kind: str) -> None:
    forget_sleep(setattr)
    hub = AiHub(hub_config(chunk_mb=int(chunk_mb), jobs_in_flight=4), Path(cache))
    inputs = (flat_pictures if kind == "flat" else photo_like_pictures)(int(samples))
    write_predictions(Path(predictions), infer(hub, Path(graph), Path(compiled), inputs))
    sys.stdout.write(f"{_peak_bytes()}\n")


def _peak_bytes() -> int:
    """Peak resident memory of this program alone; getrusage counts what its parent held when it was started, too."""
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
