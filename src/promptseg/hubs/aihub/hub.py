"""The hub in Qualcomm's cloud: AI Hub compiles, measures and runs the graph on real devices.

What is asked of it is written to a journal below `cache`, outside any experiment's copy of the project: a job is paid
for once, whatever crashes.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from promptseg.files import atomic_path, sha256_of
from promptseg.hubs.aihub.client import CLIENT_VERSION, service_address
from promptseg.hubs.aihub.errors import JobFailedError, RefusedError
from promptseg.hubs.aihub.inference import InferenceJobs
from promptseg.hubs.aihub.jobs import Submissions
from promptseg.hubs.aihub.journal import Journal, folder_of
from promptseg.hubs.aihub.latency import latency_of
from promptseg.hubs.aihub.masks import MaskStore
from promptseg.hubs.aihub.names import Work
from promptseg.hubs.aihub.patience import patiently
from promptseg.hubs.aihub.preflight import check_account, check_device, check_graph, check_qairt_version
from promptseg.hubs.aihub.service import Service
from promptseg.hubs.aihub.waiting import wait_for
from promptseg.hubs.base import CompiledGraph, HubInput, HubOutput, LatencyProfile, read_compiled
from promptseg.params import HubConfig

BACKEND = "aihub"
BINARY = "model.bin"
_LOG = logging.getLogger(__name__)


class AiHub:
    """A `Hub` with real devices. Nothing is asked of the service before there is something to ask."""

    emulates = False

    def __init__(self, config: HubConfig, cache: Path) -> None:
        self._config = config
        self.runner = config.device
        self._folder = folder_of(cache, service_address())
        self._journal = Journal(self._folder)
        self._opened: tuple[Service, Submissions] | None = None

    def check(self) -> None:
        """Sign in and ask for the device and the tools' version, so that nothing that needs time runs in vain."""
        service, _ = self._open()
        check_qairt_version(service, self._config.aihub.qairt_version)

    def compile(self, graph: Path, folder: Path) -> CompiledGraph:
        """Compile on the service; write the binary, whole, and the manifest with the job's id and address."""
        check_graph(graph)
        work = self._work(sha256_of(graph))
        service, submissions = self._open()

        def upload() -> str:
            check_qairt_version(service, work.qairt_version)
            return submissions.asset(work.graph_sha256, service.has_graph, send)

        def send() -> tuple[str, float | None]:
            _LOG.info("uploading %s, %.1f MB", graph.name, graph.stat().st_size / 1e6)
            return service.upload_graph(graph, work.compile_name), None

        def submit(model_id: str) -> str:
            return service.submit_compile(model_id, work.device, work.compile_name, work.compile_options)

        job_id = submissions.job(work.compile_name, upload, submit)
        self._wait(work.compile_name, job_id, f"compiling for {work.device}", work.graph_sha256)
        self._share(job_id)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            patiently(lambda: service.download_model(job_id, temporary / BINARY))
            compiled = self._manifest(work, job_id, temporary / BINARY)
            compiled.write(temporary)
        return compiled

    def profile(self, graph: Path, compiled: Path) -> LatencyProfile:
        """Measure on the device, over `hub.aihub.max_profiler_iterations` runs."""
        manifest = read_compiled(graph, compiled, BACKEND)
        work, iterations = self._work(manifest.graph_sha256), self._config.aihub.max_profiler_iterations
        name, options = work.profile_name(iterations), work.profile_options(iterations)
        service, submissions = self._open()

        def submit(compile_job_id: str) -> str:
            return service.submit_run(compile_job_id, work.device, name, options, dataset_id=None)

        job_id = submissions.job(name, lambda: _job_of(manifest), submit)
        self._wait(name, job_id, f"profiling on {work.device}", None)
        profile = patiently(lambda: service.profile(job_id))
        return latency_of(profile, manifest.device, manifest.binary_bytes, service.address(job_id))

    def run(self, graph: Path, compiled: Path, inputs: Iterable[HubInput]) -> Iterator[HubOutput]:
        """Yield the device's masks, in order; what was inferred before, by any run, comes from the store."""
        jobs = self._inference(read_compiled(graph, compiled, BACKEND))
        return jobs.run(inputs, self._config.aihub.chunk_mb, self._config.aihub.jobs_in_flight)

    def _inference(self, manifest: CompiledGraph) -> InferenceJobs:
        work = self._work(manifest.graph_sha256)
        return InferenceJobs(
            open_service=self._open,
            masks=MaskStore(self._folder / "masks" / work.compile_name),
            compile_job_id=_job_of(manifest),
            device=work.device,
            options=work.run_options,
            name_of=work.infer_name,
            wait=self._wait,
        )

    def _work(self, graph_sha256: str) -> Work:
        return Work(graph_sha256, self._config.device, self._config.aihub.qairt_version)

    def _open(self) -> tuple[Service, Submissions]:
        """Sign in, and check the device, before the first thing that is asked."""
        if self._opened is None:
            service = Service()
            check_account(service)
            with self._journal.lock("devices"):
                check_device(service, self._config.device, self._folder / "devices.json")
            self._opened = service, Submissions(service, self._journal)
        return self._opened

    def _wait(self, name: str, job_id: str, what: str, content_sha256: str | None) -> None:
        service, submissions = self._open()
        try:
            wait_for(service, job_id, what, self._config.aihub.wait_hours * 3600, self._folder / "logs")
        except JobFailedError:
            submissions.failed(name, job_id, content_sha256)
            raise

    def _share(self, job_id: str) -> None:
        emails = list(self._config.aihub.share_with)
        if not emails:
            return
        service, _ = self._open()
        missing = set(emails) - set(patiently(lambda: service.share(job_id, emails)))
        if missing:
            raise RefusedError(f"job {job_id}: shared, and yet AI Hub does not list {', '.join(sorted(missing))}")
        _LOG.info("shared %s with %s", service.address(job_id), ", ".join(emails))

    def _manifest(self, work: Work, job_id: str, binary: Path) -> CompiledGraph:
        service, _ = self._open()
        versions = patiently(lambda: service.tool_versions(job_id))
        return CompiledGraph(
            backend=BACKEND,
            device=work.device,
            runtime="QNN context binary",
            precision="float16",
            placed_on_npu=True,
            graph_sha256=work.graph_sha256,
            binary_file=binary.name,
            binary_bytes=binary.stat().st_size,
            binary_sha256=sha256_of(binary),
            wrapper_file=None,
            job_id=job_id,
            job_address=service.address(job_id),
            tool_versions={"qai_hub": CLIENT_VERSION, "qairt_asked_for": work.qairt_version, **versions},
            note="",
        )


def _job_of(manifest: CompiledGraph) -> str:
    assert manifest.job_id is not None, "this backend compiles by jobs"
    return manifest.job_id
