"""Any number of samples through inference jobs of bounded size: each job once, each mask paid for once."""

import hashlib
import json
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
from filelock import FileLock

from promptseg.datasets.records import Rle
from promptseg.files import atomic_path
from promptseg.hubs.aihub.jobs import Jobs
from promptseg.hubs.aihub.journal import SampleHasher, Work
from promptseg.hubs.aihub.service import SAMPLES, UnreachableError
from promptseg.hubs.base import HubInput, HubOutput
from promptseg.hubs.contract import INPUTS, PRED_MASK

MB = 1_000_000
SAMPLE_BYTES = sum(int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in INPUTS)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """`samples` go through one job, or there are none; `digests` are the hashes of their tensors.

    `order` is (sample id, digest) of all samples that were met since the chunk before: of these, and of those whose
    masks are known or come with an earlier chunk.
    """

    samples: list[HubInput]
    digests: tuple[str, ...]
    order: tuple[tuple[str, str], ...]

    def release(self) -> None:
        """Free the tensors at once: a caller's frames may live on in the traceback of an error that was retried."""
        self.samples.clear()

    @property
    def sha256(self) -> str:
        """Hash of all the tensors that go through the job, in order."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()


def samples_per_chunk(chunk_mb: int) -> int:
    """Return how many samples fit into `chunk_mb` (1 MB = 1e6 bytes) of tensors, at least one."""
    return max(1, chunk_mb * MB // SAMPLE_BYTES)


def chunks_of(inputs: Iterable[HubInput], chunk_mb: int, known: Container[str]) -> Iterator[Chunk]:
    """Cut samples into chunks, in order; one is in memory at a time, if the caller releases each before the next.

    A sample goes into a job once, and not at all if its mask is `known` (by its digest). Masks are stored chunk by
    chunk, so that after a crash the samples that are left are cut at the same places, and their jobs are found again.
    """
    most, hasher = samples_per_chunk(chunk_mb), SampleHasher()
    sent: set[str] = set()
    held: dict[str, HubInput] = {}
    order: list[tuple[str, str]] = []
    for sample in inputs:
        digest = hasher.digest(sample)
        order.append((sample.sample_id, digest))
        if digest not in sent and digest not in known:
            sent.add(digest)
            held[digest] = sample
        if len(held) == most or (not held and len(order) == most):
            yield _taken(held, order)
    if order:
        yield _taken(held, order)


def _taken(held: dict[str, HubInput], order: list[tuple[str, str]]) -> Chunk:
    chunk = Chunk(list(held.values()), tuple(held), tuple(order))
    held.clear()
    order.clear()
    return chunk


def write_dataset(path: Path, samples: Iterable[HubInput]) -> None:
    """Write samples the way the client stores them, one at a time: data/<input>/batch_<sample>, gzip."""
    count = 0
    with h5py.File(path, "w") as store:
        for sample in samples:
            for order, tensor in enumerate((sample.image_input, sample.text_input)):
                store.create_dataset(f"data/{order}/batch_{count}", data=tensor, compression="gzip")
            count += 1
        for order, spec in enumerate(INPUTS):
            store[f"data/{order}"].attrs.update({"order": order, "name": spec.name, "batch_count": count})


def read_outputs(path: Path, count: int) -> Iterator[HubOutput]:
    """Yield the `count` decided masks of an inference's outputs, in the samples' order, under their numbers.

    Raises UnreachableError when the file is cut short, ValueError when it holds something else than the contract says.
    """
    try:
        store = h5py.File(path, "r")
    except OSError as error:
        raise UnreachableError(f"{path.name}: got outputs that are cut short ({error})") from None
    with store:
        outputs = list(store["data"].values()) if "data" in store else []
        names = [str(output.attrs["name"]) for output in outputs]
        if names != [PRED_MASK.name]:
            raise ValueError(f"AI Hub: got outputs {names}, wanted {[PRED_MASK.name]}; compile with --output_names")
        got = int(outputs[0].attrs["batch_count"])
        if got != count:
            raise ValueError(f"AI Hub: got outputs of {got} samples, wanted {count}")
        for number in range(count):
            yield HubOutput.decide(f"AI Hub, output {number}", outputs[0][f"batch_{number}"][()])


class MaskStore:
    """Masks that were paid for, by their samples' digests; one file per chunk below `folder`, whole or not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._masks: dict[str, tuple[Rle, int]] = {}  # with the count of values that were no numbers
        for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else []:
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self._masks[entry["sample"]] = Rle(**entry["mask"]), entry["non_finite"]

    def __contains__(self, digest: object) -> bool:
        return digest in self._masks

    def output(self, sample_id: str, digest: str) -> HubOutput:
        """Return the stored mask of a sample. KeyError if there is none."""
        mask, non_finite = self._masks[digest]
        return HubOutput(sample_id, mask.to_mask(), non_finite)

    def add(self, chunk_name: str, outputs: Iterable[tuple[str, HubOutput]]) -> None:
        """Store one chunk's outputs, each with its sample's digest, as they come; other processes may do the same."""
        new: dict[str, tuple[Rle, int]] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(self._folder / "lock"),
            atomic_path(self._folder / f"{chunk_name}.jsonl") as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for digest, output in outputs:
                mask, non_finite = new[digest] = Rle.from_mask(output.pred_mask), output.non_finite
                file.write(json.dumps({"sample": digest, "mask": asdict(mask), "non_finite": non_finite}) + "\n")
        self._masks.update(new)


@dataclass(frozen=True)
class InferenceJobs:
    """The inference jobs of one compiled graph; `open_jobs` is called only if there is something to ask."""

    open_jobs: Callable[[], Jobs]
    masks: MaskStore
    work: Work
    compile_job_id: str
    wait_s: float  # for one job

    def run(self, inputs: Iterable[HubInput], chunk_mb: int, jobs_in_flight: int) -> Iterator[HubOutput]:
        """Yield one mask per input, in order; a sample whose mask is stored goes into no job.

        One chunk of samples is in memory at a time, at most `jobs_in_flight` jobs are submitted and not collected, and
        only one chunk's file is on the disk. A chunk's masks are stored before its first is yielded, so that a run that
        is killed goes on from there.
        """
        started: deque[tuple[Chunk, str | None]] = deque()  # with the job's id; None: its masks are stored
        for chunk in chunks_of(inputs, chunk_mb, self.masks):
            while len(started) >= jobs_in_flight:
                yield from self._collect(*started.popleft())
            started.append((chunk, self._start(chunk) if chunk.samples else None))
            chunk.release()
        while started:
            yield from self._collect(*started.popleft())

    def _start(self, chunk: Chunk) -> str:
        name, jobs = self.work.infer_name(chunk.sha256), self.open_jobs()

        def upload() -> tuple[str, float | None]:
            with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
                path = Path(scratch) / "samples.h5"
                write_dataset(path, chunk.samples)
                _LOG.info("uploading %d samples, %.1f MB", len(chunk.samples), path.stat().st_size / MB)
                return jobs.service.upload_samples(path, name)

        def prepare() -> str:
            return jobs.upload_once(SAMPLES, chunk.sha256, upload)

        def submit(dataset_id: str) -> str:
            work = self.work
            return jobs.service.submit_run(self.compile_job_id, work.device, name, work.run_options, dataset_id)

        return jobs.submit_once(name, prepare, submit)

    def _collect(self, chunk: Chunk, job_id: str | None) -> Iterator[HubOutput]:
        if job_id is not None:
            name, jobs = self.work.infer_name(chunk.sha256), self.open_jobs()
            jobs.wait(name, job_id, f"inference on {len(chunk.digests)} samples", self.wait_s, chunk.sha256)

            def store() -> None:
                with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
                    path = Path(scratch) / f"job {job_id}.h5"  # errors name the file
                    jobs.service.download_outputs(job_id, path)
                    outputs = read_outputs(path, len(chunk.digests))
                    self.masks.add(name, zip(chunk.digests, outputs, strict=True))

            jobs.collect(name, job_id, store)
        for sample_id, digest in chunk.order:
            yield self.masks.output(sample_id, digest)
