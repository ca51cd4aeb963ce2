"""Data sets larger than memory and disk: both stay bounded, measured from outside the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from promptseg.datasets.records import read_predictions
from promptseg.hubs.aihub.chunks import SAMPLE_BYTES
from tests.aihub_bench import Bench
from tests.aihub_helpers import forget_sleep, open_bench_hub
from tests.graphs import write_bright_graph
from tests.imports import ROOT

# `PROMPTSEG_STREAMED_SAMPLES=1000` makes the run that docs/aihub.md reports.
SAMPLES = int(os.environ.get("PROMPTSEG_STREAMED_SAMPLES", "24"))
CHUNK_MB = 1000 if SAMPLES > 200 else 101  # 79 or 8 samples
MEMORY_LIMIT = 3 * 2**30 if SAMPLES > 200 else 1.2 * 2**30
DISK_LIMIT = 3 * 2**30 if SAMPLES > 200 else 101e6


def bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # a file that came and went
            continue
    return total


@pytest.mark.slow
def test_neither_memory_nor_disk_grows_with_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_sleep(monkeypatch.setattr)
    graph, mine = write_bright_graph(tmp_path / "model.onnx"), tmp_path / "mine"
    with Bench(tmp_path / "bench") as bench:
        bench.state.keep_files = False  # the service's disk is not ours
        open_bench_hub(bench, mine, monkeypatch).compile(graph, mine / "compiled")
        disk: list[int] = []
        bench.on_request = lambda _: disk.append(bytes_below(mine))
        paths = (graph, mine / "compiled", mine / "cache", mine / "predictions.jsonl")
        done = subprocess.run(
            [sys.executable, "-m", "tests.aihub_driver", *map(str, paths), str(SAMPLES), str(CHUNK_MB), "photo"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}/src", "TMPDIR": str(mine)},
            capture_output=True,
            text=True,
            check=True,
        )
        memory = int(done.stdout)
        figures = f"peak {memory / 2**20:.0f} MiB of memory, {max(disk) / 2**20:.0f} MiB of disk"
        jobs = bench.state.names("infer")
        sys.stdout.write(f"{SAMPLES} samples, {SAMPLES * SAMPLE_BYTES / 1e9:.2f} GB, {len(jobs)} jobs: {figures}\n")
        assert len(read_predictions(mine / "predictions.jsonl")) == SAMPLES
        assert len(jobs) == -(-SAMPLES // (CHUNK_MB * 1_000_000 // SAMPLE_BYTES))
        assert memory < MEMORY_LIMIT
        assert max(disk) < DISK_LIMIT
