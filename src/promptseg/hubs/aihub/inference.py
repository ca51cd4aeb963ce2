"""Any number of samples through inference jobs of bounded size: each job once, each mask paid for once."""

import hashlib
import json
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
from filelock import FileLock
from numpy.typing import NDArray

from promptseg.datasets.records import Rle
from promptseg.files import atomic_path
from promptseg.hubs.aihub.jobs import Jobs
from promptseg.hubs.aihub.journal import SampleHasher, Work, job_name
from promptseg.hubs.aihub.service import SAMPLES, UnreachableError
from promptseg.hubs.base import HubInput, HubOutput
from promptseg.hubs.contract import Graph, Graphs, TensorSpec

MB = 1_000_000
Tensors = Mapping[str, NDArray[Any]]  # by name
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


def row_bytes(graph: Graph) -> int:
    """Return how many bytes of tensors a graph takes for one sample."""
    return sum(spec.size_bytes for spec in graph.inputs)


def samples_per_chunk(chunk_mb: int, graphs: Graphs) -> int:
    """Return for how many samples `chunk_mb` (1 MB = 1e6 bytes) has room in every graph's tensors, at least one."""
    return max(1, chunk_mb * MB // max(map(row_bytes, graphs)))


def chunks_of(inputs: Iterable[HubInput], most: int, known: Container[str]) -> Iterator[Chunk]:
    """Cut samples into chunks of `most` at most, in order; one is in memory at a time, if released before the next.

    A sample goes into a job once, and not at all if its mask is `known` (by its digest). Masks are stored chunk by
    chunk, so that after a crash the samples that are left are cut at the same places, and their jobs are found again.
    """
    hasher = SampleHasher()
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


def write_dataset(path: Path, rows: Iterable[Tensors], specs: Sequence[TensorSpec]) -> None:
    """Write rows of tensors the way the client stores them, one at a time: data/<input>/batch_<row>, gzip."""
    count = 0
    with h5py.File(path, "w") as store:
        for row in rows:
            for order, spec in enumerate(specs):
                store.create_dataset(f"data/{order}/batch_{count}", data=row[spec.name], compression="gzip")
            count += 1
        for order, spec in enumerate(specs):
            store[f"data/{order}"].attrs.update({"order": order, "name": spec.name, "batch_count": count})


def read_outputs(path: Path, count: int, specs: Sequence[TensorSpec]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the `count` rows of an inference's outputs, in the inputs' order: tensors by name.

    Raises UnreachableError when the file is cut short, ValueError when it holds something else than `specs` says.
    """
    try:
        store = h5py.File(path, "r")
    except OSError as error:
        raise UnreachableError(f"{path.name}: got outputs that are cut short ({error})") from None
    with store:
        outputs = {str(each.attrs["name"]): each for each in (store["data"].values() if "data" in store else ())}
        wanted = [spec.name for spec in specs]
        if sorted(outputs) != sorted(wanted):
            raise ValueError(f"AI Hub: got outputs {list(outputs)}, wanted {wanted}; compile with --output_names")
        got = int(outputs[wanted[0]].attrs["batch_count"])
        if got != count:
            raise ValueError(f"AI Hub: got outputs of {got} samples, wanted {count}")
        for number in range(count):
            row = {name: outputs[name][f"batch_{number}"][()] for name in wanted}
            for spec in specs:
                spec.check(row[spec.name], f"AI Hub, output {number}")
            yield row


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
class Step:
    """One graph of the chain as the service has it."""

    graph: Graph
    work: Work
    compile_job_id: str


def masks_name(steps: Sequence[Step]) -> str:
    """Name what keeps the masks of compiled graphs: of one, as its compile job."""
    names = [step.work.compile_name for step in steps]
    return names[0] if len(names) == 1 else job_name("compile", {"graphs": " ".join(names)})


@dataclass(frozen=True)
class Started:
    """A chunk, and the jobs that were submitted for it: the graph's name -> its job.

    `keys`: for each graph what tells apart the rows of each of the chunk's samples, such as its picture.
    """

    chunk: Chunk
    keys: dict[str, list[Any]]
    jobs: dict[str, "Job"]


@dataclass(frozen=True)
class Job:
    """One submitted inference on the rows of `keys`, each once; `sha256` is that of its tensors."""

    name: str
    job_id: str
    keys: list[Any]
    sha256: str


@dataclass(frozen=True)
class InferenceJobs:
    """The inference jobs of compiled graphs; `open_jobs` is called only if there is something to ask.

    Graphs that take what others put out are submitted when that is there: what is handed over is downloaded and
    uploaded again. A picture and a phrase go through their graphs once for each chunk.
    """

    open_jobs: Callable[[], Jobs]
    masks: MaskStore
    graphs: Graphs
    steps: tuple[Step, ...]
    wait_s: float  # for one job

    def run(self, inputs: Iterable[HubInput], chunk_mb: int, jobs_in_flight: int) -> Iterator[HubOutput]:
        """Yield one mask per input, in order; a sample whose mask is stored goes into no job.

        One chunk of samples is in memory at a time, at most `jobs_in_flight` jobs are submitted and not collected, and
        only one chunk's file is on the disk. A chunk's masks are stored before its first is yielded, so that a run that
        is killed goes on from there.
        """
        begun: deque[Started] = deque()
        most = samples_per_chunk(chunk_mb, self.graphs)
        for chunk in chunks_of(inputs, most, self.masks):
            while begun and sum(len(started.jobs) for started in begun) + len(self.steps) > jobs_in_flight:
                yield from self._collect(begun.popleft())
            begun.append(self._start(chunk))
            chunk.release()
        while begun:
            yield from self._collect(begun.popleft())

    def _start(self, chunk: Chunk) -> Started:
        """Submit what needs nothing but the samples."""
        hasher, (picture, phrase) = SampleHasher(), self.graphs.sources
        told = [
            {picture.name: hasher.picture_digest(sample), phrase.name: sample.text_input.tobytes()}
            for sample in chunk.samples
        ]
        keys = {name: [tuple(map(each.get, sorted(of))) for each in told] for name, of in self.graphs.made_from.items()}
        started = Started(chunk, keys, {})
        for step in self.steps if chunk.samples else ():
            if {spec.name for spec in step.graph.inputs} <= {picture.name, phrase.name}:
                samples = dict(zip(reversed(keys[step.graph.name]), reversed(chunk.samples), strict=True))
                rows = {
                    key: {
                        picture.name: self.graphs.picture_tensor(samples[key].image_input),
                        phrase.name: self.graphs.phrase_tensor(samples[key].text_input),
                    }
                    for key in dict.fromkeys(keys[step.graph.name])
                }
                started.jobs[step.graph.name] = self._submit(step, chunk, rows)
        return started

    def _submit(self, step: Step, chunk: Chunk, rows: Mapping[Any, Tensors]) -> Job:
        specs = step.graph.inputs
        sha256 = chunk.sha256 if len(self.steps) == 1 else _hash_of(rows.values(), specs)
        name, jobs = step.work.infer_name(sha256), self.open_jobs()

        def upload() -> tuple[str, float | None]:
            with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
                path = Path(scratch) / "samples.h5"
                write_dataset(path, rows.values(), specs)
                _LOG.info("uploading %d samples, %.1f MB", len(rows), path.stat().st_size / MB)
                return jobs.service.upload_samples(path, name)

        def prepare() -> str:
            return jobs.upload_once(SAMPLES, sha256, upload)

        def submit(dataset_id: str) -> str:
            work = step.work
            return jobs.service.submit_run(step.compile_job_id, work.device, name, work.run_options, dataset_id)

        return Job(name, jobs.submit_once(name, prepare, submit), list(rows), sha256)

    def _collect(self, started: Started) -> Iterator[HubOutput]:
        chunk, made = started.chunk, dict[str, dict[Any, Tensors]]()
        for step in self.steps if started.jobs else ():
            name = step.graph.name
            if name not in started.jobs:
                rows: dict[Any, Tensors] = {}
                for index, key in enumerate(started.keys[name]):
                    put_out = (made[before][started.keys[before][index]] for before in made)
                    rows.setdefault(key, {tensor: value for each in put_out for tensor, value in each.items()})
                started.jobs[name] = self._submit(step, chunk, rows)
            made[name] = self._finish(step, started.jobs[name], chunk if step is self.steps[-1] else None)
        for sample_id, digest in chunk.order:
            yield self.masks.output(sample_id, digest)

    def _finish(self, step: Step, job: Job, chunk: Chunk | None) -> dict[Any, Tensors]:
        """Wait for a job; store the masks if it is a `chunk`'s last one, else return what it put out."""
        jobs, rows, specs = self.open_jobs(), dict[Any, Tensors](), step.graph.outputs
        jobs.wait(job.name, job.job_id, f"inference on {len(job.keys)} samples", self.wait_s, job.sha256)

        def store() -> None:
            with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
                path = Path(scratch) / f"job {job.job_id}.h5"  # errors name the file
                jobs.service.download_outputs(job.job_id, path)
                outputs = read_outputs(path, len(job.keys), specs)
                if chunk is None:
                    rows.update(zip(job.keys, outputs, strict=True))
                else:
                    decided = (
                        HubOutput.decide(self.graphs, f"AI Hub, output {n}", row) for n, row in enumerate(outputs)
                    )
                    self.masks.add(job.name, zip(chunk.digests, decided, strict=True))

        jobs.collect(job.name, job.job_id, store)
        return rows


def _hash_of(rows: Iterable[Tensors], specs: Sequence[TensorSpec]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        for spec in specs:
            digest.update(row[spec.name].tobytes())
    return digest.hexdigest()
