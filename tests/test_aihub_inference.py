"""Samples in chunks, masks kept, and both through kill -9, two runs at once, and more data than memory."""

import os
import random
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from promptseg.datasets.records import read_predictions
from promptseg.hubs.aihub.inference import MaskStore, chunks_of, read_outputs, row_bytes, samples_per_chunk
from promptseg.hubs.aihub.journal import SampleHasher
from promptseg.hubs.aihub.service import UnreachableError
from promptseg.hubs.base import HubInput, HubOutput
from promptseg.hubs.contract import OUTPUTS, ChallengeGraphs, read_graphs
from promptseg.hubs.host import masks_on_host
from tests.aihub_bench import Bench
from tests.aihub_driver import flat_pictures
from tests.aihub_helpers import ONE_SAMPLE_MB, forget_sleep, open_bench_hub
from tests.graphs import RECORD, split_picture, write_bright_graph
from tests.imports import ROOT

SAMPLE_BYTES = 3 * 1024 * 1024 * 4 + 2 * 77 * 4
pytest_plugins = ("tests.aihub_fixtures",)


def samples(count: int) -> list[HubInput]:
    return [split_picture(f"s{number}", number, 9, first_id=number) for number in range(count)]


@pytest.mark.parametrize(("chunk_mb", "count"), [(1, 1), (13, 1), (26, 2), (1000, 79)])
def test_chunks_are_cut_by_bytes_and_hold_one_sample_at_least(chunk_mb: int, count: int, graph: Path) -> None:
    assert samples_per_chunk(chunk_mb, read_graphs(graph)) == count
    assert row_bytes(read_graphs(graph).graphs[0]) == SAMPLE_BYTES


def test_a_chunk_lets_its_tensors_go_whoever_holds_it() -> None:
    (chunk,) = chunks_of(samples(1), most=2, known=())
    tensor = weakref.ref(chunk.samples[0])
    chunk.release()
    assert tensor() is None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_chunks_are_all_of_the_samples_in_order(count: int) -> None:
    chunks = list(chunks_of(samples(count), most=2, known=()))
    assert [sample.sample_id for chunk in chunks for sample in chunk.samples] == [f"s{n}" for n in range(count)]
    assert all(len(chunk.samples) == 2 for chunk in chunks[:-1])
    assert len({chunk.sha256 for chunk in chunks}) == len(chunks)


def test_one_chunk_is_made_at_a_time() -> None:
    taken = []

    def watched() -> Iterator[HubInput]:
        for sample in samples(4):
            taken.append(sample.sample_id)
            yield sample

    chunks = chunks_of(watched(), most=2, known=())
    next(chunks)
    assert taken == ["s0", "s1"]


def spelled(pictures: list[HubInput], known: set[str]) -> list[tuple[list[str], list[str]]]:
    """The ids of what each chunk sends, and of what it answers."""
    return [
        ([sample.sample_id for sample in chunk.samples], [sample_id for sample_id, _ in chunk.order])
        for chunk in chunks_of(pictures, most=2, known=known)
    ]


def test_known_samples_are_answered_in_their_place_and_not_sent() -> None:
    pictures = samples(7)
    known = {SampleHasher().digest(pictures[number]) for number in (0, 1, 2, 4)}
    assert spelled(pictures, known) == [([], ["s0", "s1"]), (["s3", "s5"], ["s2", "s3", "s4", "s5"]), (["s6"], ["s6"])]
    assert spelled(pictures[:3], known) == [([], ["s0", "s1"]), ([], ["s2"])]


def test_a_sample_that_comes_again_is_sent_once() -> None:
    first, second, third = samples(3)
    again = HubInput("again", first.image_input, first.text_input)
    assert spelled([first, again, second, again, third], set()) == [
        (["s0", "s1"], ["s0", "again", "s1"]),
        (["s2"], ["again", "s2"]),
    ]


@pytest.mark.parametrize("seed", range(2))
def test_what_is_left_after_a_crash_is_cut_at_the_same_places(seed: int) -> None:
    """Masks are stored chunk by chunk, from the first: the later chunks, and so their jobs, stay what they were."""
    random, pictures = np.random.default_rng(seed), samples(6)
    drawn = [pictures[number] for number in random.integers(0, 6, 12)]
    known = {SampleHasher().digest(pictures[number]) for number in random.integers(0, 6, 2)}
    whole = [chunk for chunk in chunks_of(drawn, most=2, known=known) if chunk.samples]
    for stored in range(len(whole) + 1):
        there = known | {digest for chunk in whole[:stored] for digest in chunk.digests}
        left = [chunk.sha256 for chunk in chunks_of(drawn, most=2, known=there) if chunk.samples]
        assert left == [chunk.sha256 for chunk in whole[stored:]]


def write_outputs(path: Path, masks: list[np.ndarray], name: str = "pred_mask") -> Path:
    with h5py.File(path, "w") as store:
        for number, mask in enumerate(masks):
            store.create_dataset(f"data/0/batch_{number}", data=mask)
        store["data/0"].attrs.update({"order": 0, "name": name, "batch_count": len(masks)})
    return path


def test_outputs_become_masks(tmp_path: Path) -> None:
    broken = np.ones((1024, 1024), np.float32)
    broken[0, :3] = np.nan, np.inf, -np.inf
    path = write_outputs(tmp_path / "o.h5", [np.zeros_like(broken), np.ones_like(broken), broken])
    kind = ChallengeGraphs(RECORD, ())
    first, second, third = (HubOutput.decide(kind, "s", row) for row in read_outputs(path, 3, OUTPUTS))
    assert (first.pred_mask.mean(), second.pred_mask.mean()) == (0.0, 1.0)
    assert (first.non_finite, second.non_finite, third.non_finite) == (0, 0, 3)


@pytest.mark.parametrize(
    ("masks", "name", "message"),
    [
        ([np.zeros((1024, 1024), np.float32)], "output_0", r"got outputs \['output_0'\], wanted \['pred_mask'\]"),
        ([np.zeros((1024, 1024), np.float32)] * 2, "pred_mask", "got outputs of 2 samples, wanted 1"),
        ([np.zeros((1, 1024, 1024), np.float32)], "pred_mask", r"got pred_mask as float32 \[1, 1024, 1024\]"),
        ([np.zeros((1024, 1024), np.float16)], "pred_mask", "got pred_mask as float16"),
    ],
)
def test_outputs_that_are_not_the_contracts_are_refused(
    tmp_path: Path, masks: list[np.ndarray], name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(read_outputs(write_outputs(tmp_path / "o.h5", masks, name), 1, OUTPUTS))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_outputs_that_are_cut_short_are_told(tmp_path: Path, share: float) -> None:
    path = write_outputs(tmp_path / "o.h5", [np.ones((1024, 1024), np.float32)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreachableError, match="cut short"):
        list(read_outputs(path, 1, OUTPUTS))


def test_masks_are_kept_from_run_to_run_whole_or_not_at_all(tmp_path: Path) -> None:
    mask = np.zeros((1024, 1024), bool)
    mask[5:9, 3:7] = True
    output = HubOutput("as the job numbered it", mask, non_finite=2)
    MaskStore(tmp_path / "masks").add("chunk", [("a", output)])

    def broken() -> Iterator[tuple[str, HubOutput]]:
        yield "b", output
        raise UnreachableError("cut short")

    with pytest.raises(UnreachableError):
        MaskStore(tmp_path / "masks").add("other", broken())
    store = MaskStore(tmp_path / "masks")
    assert "a" in store
    assert "b" not in store
    stored = store.output("s7", "a")
    assert (stored.sample_id, stored.non_finite) == ("s7", 2)
    assert (stored.pred_mask == mask).all()


def driver(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.aihub_driver", *map(str, arguments), str(ONE_SAMPLE_MB), "flat"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}/src"}


KILLS = int(os.environ.get("PROMPTSEG_KILLS", "3"))  # 10 makes the run that docs/aihub.md reports
CHUNKS = 4 * KILLS
STEPS = ("list", "new dataset", "post dataset", "dataset complete", "submit", "job", "result", "get outputs")


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
def test_kills_cost_no_job_and_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    graph, mine, samples = write_bright_graph(tmp_path / "model.onnx"), tmp_path / "mine", 4
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


# `PROMPTSEG_STREAMED_SAMPLES=1000` makes the run that docs/aihub.md reports.
STREAMED = int(os.environ.get("PROMPTSEG_STREAMED_SAMPLES", "12"))
CHUNK_MB = 1000 if STREAMED > 200 else 26  # 79 or 2 samples


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
            [sys.executable, "-m", "tests.aihub_driver", *map(str, paths), str(STREAMED), str(CHUNK_MB), "photo"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}/src", "TMPDIR": str(mine)},
            capture_output=True,
            text=True,
            check=True,
        )
        before, peak = map(int, done.stdout.split())
        figures = (
            f"peak {peak / 2**20:.0f} MiB of memory ({before / 2**20:.0f} before), {max(disk) / 2**20:.0f} MiB of disk"
        )
        jobs = bench.state.names("infer")
        sys.stdout.write(f"{STREAMED} samples, {STREAMED * SAMPLE_BYTES / 1e9:.2f} GB, {len(jobs)} jobs: {figures}\n")
        assert len(read_predictions(mine / "predictions.jsonl")) == STREAMED
        assert len(jobs) == -(-STREAMED // (CHUNK_MB * 1_000_000 // SAMPLE_BYTES))
        assert peak - before < 0.7 * STREAMED * SAMPLE_BYTES, "some chunks, not all"
        assert max(disk) < CHUNK_MB * 1_000_000
