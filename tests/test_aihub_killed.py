"""kill -9 in the middle, again and again: every mask is right in the end, and every job was paid for once."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from promptseg.datasets.records import read_predictions
from promptseg.hubs.host import masks_on_host
from tests.aihub_bench import Bench
from tests.aihub_driver import flat_pictures
from tests.aihub_helpers import ONE_SAMPLE_MB, forget_sleep, open_bench_hub
from tests.graphs import write_bright_graph
from tests.imports import ROOT

CHUNKS, KILLS = 40, 10
STEPS = ("list", "new dataset", "post dataset", "dataset complete", "submit", "job", "result", "get outputs")


def driver(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.aihub_driver", *map(str, arguments), str(ONE_SAMPLE_MB), "flat"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}/src"}


class Killer:
    """Ends the client at one point of the protocol: before, or a moment after, its n-th request of a step."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self._random = random.Random(seed)
        self._process: subprocess.Popen[bytes] | None = None
        self.points: list[str] = []
        bench.on_request = self._seen

    def aim(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._step = self._random.choice(STEPS[1:]) if self.points else self._random.choice(STEPS)
        self._count = 1 if self._step == "list" else self._random.randint(1, 5)
        self._delay_s = self._random.choice((0.0, 0.002, 0.01, 0.05))

    def rest(self) -> None:
        self._process = None

    def _seen(self, step: str) -> None:
        """Called by the bench before it does what it is asked: the answer goes nowhere, the job is made."""
        if self._process is None or step != self._step:
            return
        self._count -= 1
        if self._count == 0:
            self.points.append(f"{step} +{self._delay_s}")
            process = self._process
            if self._delay_s:
                threading.Timer(self._delay_s, lambda: process.send_signal(signal.SIGKILL)).start()
            else:
                process.send_signal(signal.SIGKILL)
                process.wait()


@pytest.mark.slow
def test_ten_kills_cost_no_job_and_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_sleep(monkeypatch.setattr)
    graph, mine = write_bright_graph(tmp_path / "model.onnx"), tmp_path / "mine"
    with Bench(tmp_path / "bench") as bench:
        open_bench_hub(bench, mine, monkeypatch).compile(graph, mine / "compiled")
        killer = Killer(bench, seed=20261124)
        paths = (graph, mine / "compiled", mine / "cache", mine / "predictions.jsonl")
        command = driver(*paths, CHUNKS)
        for number in range(KILLS):
            process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
            killer.aim(process)
            assert process.wait() == -signal.SIGKILL, f"run {number} came to its end"
            assert not (mine / "predictions.jsonl").exists()
        killer.rest()
        assert len(killer.points) == KILLS
        subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)
        names = bench.state.names("infer")
        assert len(names) == len(set(names)) == CHUNKS, killer.points
        assert bench.requests["submit"] == 1 + CHUNKS, "one for the compilation"
    predictions = read_predictions(mine / "predictions.jsonl")
    for wanted in masks_on_host(graph, flat_pictures(CHUNKS)):
        assert (predictions[wanted.sample_id].to_mask() == wanted.pred_mask).all(), wanted.sample_id


@pytest.mark.slow
def test_two_runs_at_once_share_their_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two queued experiments do: one journal, two processes."""
    forget_sleep(monkeypatch.setattr)
    graph, mine, samples = write_bright_graph(tmp_path / "model.onnx"), tmp_path / "mine", 6
    with Bench(tmp_path / "bench") as bench:
        open_bench_hub(bench, mine, monkeypatch).compile(graph, mine / "compiled")
        runs = [
            subprocess.Popen(
                driver(graph, mine / "compiled", mine / "cache", mine / name, samples),
                cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for name in ("first.jsonl", "second.jsonl")
        ]  # fmt: skip
        assert [run.wait() for run in runs] == [0, 0]
        assert len(bench.state.names("infer")) == samples
        assert bench.requests["new dataset"] == samples
    assert read_predictions(mine / "first.jsonl") == read_predictions(mine / "second.jsonl")
    assert len(read_predictions(mine / "first.jsonl")) == samples
