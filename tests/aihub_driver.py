"""An inference against the bench in a process of its own, to be killed or measured.

    python -m tests.aihub_driver GRAPH COMPILED CACHE PREDICTIONS SAMPLES CHUNK_MB KIND

Writes predictions as the stage does and prints the resident memory in bytes, before the first sample and at its peak.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from promptseg.datasets.preprocess import CANVAS
from promptseg.datasets.records import Prediction, Rle, write_predictions
from promptseg.hubs.aihub.hub import AiHub
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import TEXT_INPUT
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
    before = _resident_bytes("VmRSS")
    inputs = (flat_pictures if kind == "flat" else photo_like_pictures)(int(samples))
    outputs = hub.run(Path(graph), Path(compiled), inputs)
    write_predictions(Path(predictions), (Prediction(out.sample_id, Rle.from_mask(out.pred_mask)) for out in outputs))
    sys.stdout.write(f"{before} {_resident_bytes('VmHWM')}\n")


def _resident_bytes(line: str) -> int:
    """Resident memory of this program alone, now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(text for text in status if text.startswith(f"{line}:")).split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
