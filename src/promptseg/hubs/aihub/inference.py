"""Any number of samples through inference jobs of bounded size, each job once, each mask paid for once."""

import logging
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from promptseg.datasets.records import Rle
from promptseg.hubs.aihub.chunks import Chunk, chunks_of, read_masks, write_dataset
from promptseg.hubs.aihub.errors import JobFailedError
from promptseg.hubs.aihub.jobs import Submissions
from promptseg.hubs.aihub.masks import MaskStore
from promptseg.hubs.aihub.patience import patiently
from promptseg.hubs.aihub.service import Service
from promptseg.hubs.base import HubInput, HubOutput

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Started:
    """A chunk whose masks are stored (`job_id` None) or computed by a job; its tensors are let go of."""

    name: str
    job_id: str | None
    chunk_sha256: str
    digests: tuple[str, ...]
    order: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class InferenceJobs:
    """The jobs of one compiled graph. `name_of` names a job after its chunk's hash; `wait` returns when one is done.

    `service` and `submissions` are asked for only when there is something to submit or to collect.
    """

    open_service: Callable[[], tuple[Service, Submissions]]
    masks: MaskStore
    compile_job_id: str
    device: str
    options: str
    name_of: Callable[[str], str]
    wait: Callable[[str, str, str, str | None], None]

    def run(self, inputs: Iterable[HubInput], chunk_mb: int, jobs_in_flight: int) -> Iterator[HubOutput]:
        """Yield one mask per input, in order; a sample whose mask is stored goes into no job.

        One chunk of samples is in memory at a time, at most `jobs_in_flight` jobs are submitted and not collected, and
        only one chunk's file is on the disk. A chunk's masks are stored before its first is yielded, so that a run that
        is killed goes on from there.
        """
        started: deque[_Started] = deque()
        for chunk in chunks_of(inputs, chunk_mb, self.masks):
            while len(started) >= jobs_in_flight:
                yield from self._collect(started.popleft())
            started.append(self._start(chunk))
            chunk.release()
        while started:
            yield from self._collect(started.popleft())

    def _start(self, chunk: Chunk) -> _Started:
        name, job_id = self.name_of(chunk.sha256), None
        if chunk.samples:
            service, submissions = self.open_service()

            def submit(dataset_id: str) -> str:
                return service.submit_run(self.compile_job_id, self.device, name, self.options, dataset_id)

            job_id = submissions.job(name, lambda: self._uploaded(chunk, name), submit)
        return _Started(name, job_id, chunk.sha256, chunk.digests, chunk.order)

    def _uploaded(self, chunk: Chunk, name: str) -> str:
        service, submissions = self.open_service()

        def upload() -> tuple[str, float | None]:
            with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
                path = Path(scratch) / "samples.h5"
                write_dataset(path, chunk.samples)
                size_mb = path.stat().st_size / 1e6
                _LOG.info("uploading %d samples, %.1f MB", len(chunk.samples), size_mb)
                return service.upload_samples(path, name)

        return submissions.asset(chunk.sha256, service.has_samples, upload)

    def _collect(self, started: _Started) -> Iterator[HubOutput]:
        if started.job_id is not None:
            what = f"inference on {len(started.digests)} samples"
            self.wait(started.name, started.job_id, what, started.chunk_sha256)
            try:
                patiently(lambda: self._store(started))
            except JobFailedError:
                self.open_service()[1].failed(started.name, started.job_id, None)
                raise
        for sample_id, digest in started.order:
            yield HubOutput(sample_id, self.masks[digest].to_mask())

    def _store(self, started: _Started) -> None:
        assert started.job_id is not None
        service, _ = self.open_service()
        with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
            path = Path(scratch) / f"job {started.job_id}.h5"  # errors name the file
            service.download_outputs(started.job_id, path)
            masks = map(Rle.from_mask, read_masks(path, len(started.digests)))
            self.masks.add(started.name, zip(started.digests, masks, strict=True))
