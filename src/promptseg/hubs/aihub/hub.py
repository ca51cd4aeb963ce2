"""The hub in Qualcomm's cloud: AI Hub compiles, measures and runs the graph on real devices.

What is asked of it is written to a journal below `cache`, outside any experiment's copy of the project: a job is paid
for once, whatever crashes. Each account at each service has a folder of its own there.
"""

import logging
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from promptseg.files import atomic_path, sha256_of
from promptseg.hubs.aihub.inference import MB, InferenceJobs, MaskStore, Step, masks_name
from promptseg.hubs.aihub.jobs import Jobs, patiently
from promptseg.hubs.aihub.journal import Journal, Work, folder_of
from promptseg.hubs.aihub.preflight import check_graph, check_target, remembered_account, sign_in
from promptseg.hubs.aihub.service import (
    CLIENT_VERSION,
    GRAPH,
    RefusedError,
    Service,
    public_address,
    read_configuration,
)
from promptseg.hubs.base import (
    SLOWEST,
    Binary,
    CompiledGraphs,
    HubInput,
    HubOutput,
    LatencyProfile,
    Layer,
    profile_of_all,
    read_compiled,
)
from promptseg.hubs.contract import Graph, Graphs, read_graphs
from promptseg.params import HubConfig

BACKEND = "aihub"
_UNITS = ("NPU", "GPU", "CPU")
_LOG = logging.getLogger(__name__)


class AiHub:
    """A `Hub` with real devices. Nothing is asked of the service before there is something to ask."""

    emulates = False

    def __init__(self, config: HubConfig, cache: Path) -> None:
        self.runner = config.device
        self._config = config
        self._cache = cache
        self._address = public_address(read_configuration().api_url)
        self._account: str | None = None
        self._jobs: Jobs | None = None

    def compile(self, graphs: Path, folder: Path) -> CompiledGraphs:
        """Compile on the service; write the binaries, whole, and the manifest with the jobs' ids and addresses."""
        exported = read_graphs(graphs)
        check_graph(graphs)
        jobs = self._open()
        service, record = jobs.service, exported.record
        job_ids = [self._submit_compile(jobs, graph) for graph in exported]
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            binaries = [
                self._binary(jobs, graph, job_id, temporary) for graph, job_id in zip(exported, job_ids, strict=True)
            ]
            compiled = CompiledGraphs(
                backend=BACKEND,
                device=self._config.device,
                contract=record.contract,
                model=record.model,
                res=record.res,
                runtime="QNN context binary",
                precision=record.precision,
                placed_on_npu=True,
                graph_sha256=exported.sha256,
                binaries=tuple(binaries),
                chip=None,
                service=self._address,
                account=self._account,
                tool_versions={
                    "qai_hub": CLIENT_VERSION,
                    "qairt_asked_for": self._config.aihub.qairt_version,
                    **patiently(lambda: service.tool_versions(job_ids[0])),
                },
                note="",
            )
            compiled.write(temporary)
        return compiled

    def _submit_compile(self, jobs: Jobs, graph: Graph) -> str:
        """Return the id of a graph's compile job, which is uploaded and submitted if there is none."""
        service, path, work = jobs.service, graph.path, self._work(graph)

        def send() -> tuple[str, float | None]:
            _LOG.info("uploading %s, %.1f MB", path.name, path.stat().st_size / MB)
            return service.upload_graph(path, work.compile_name), None

        def upload() -> str:
            check_target(service, self._config, work.precision)
            return jobs.upload_once(GRAPH, graph.sha256, send)

        def submit(model_id: str) -> str:
            return service.submit_compile(model_id, work.device, work.compile_name, work.compile_options, graph.inputs)

        return jobs.submit_once(work.compile_name, upload, submit)

    def _binary(self, jobs: Jobs, graph: Graph, job_id: str, folder: Path) -> Binary:
        """Wait for a compile job and download what it made."""
        path, service, work = folder / f"{graph.name}.bin", jobs.service, self._work(graph)
        what = f"compiling {graph.path.name} for {work.device}"
        jobs.wait(work.compile_name, job_id, what, self._wait_s, graph.sha256)
        self._share(job_id)
        jobs.collect(work.compile_name, job_id, lambda: service.download_model(job_id, path))
        return Binary(
            graph=graph.name,
            graph_sha256=graph.sha256,
            binary_file=path.name,
            binary_bytes=path.stat().st_size,
            binary_sha256=sha256_of(path),
            job_id=job_id,
            job_address=service.address(job_id),
        )

    def profile(self, graphs: Path, compiled: Path) -> LatencyProfile:
        """Measure each graph on the device, over `hub.aihub.max_profiler_iterations` runs."""
        exported = read_graphs(graphs)
        manifest, steps = self._read(exported, compiled)
        iterations, jobs = self._config.aihub.max_profiler_iterations, self._open()
        names = [step.work.profile_name(iterations) for step in steps]
        job_ids = [self._submit_profile(jobs, step, name) for step, name in zip(steps, names, strict=True)]
        profiles = {}
        for step, name, job_id, binary in zip(steps, names, job_ids, manifest.binaries, strict=True):
            jobs.wait(name, job_id, f"profiling {step.graph.name} on {step.work.device}", self._wait_s, None)
            measured = jobs.collect(name, job_id, partial(jobs.service.profile, job_id))
            address = jobs.service.address(job_id)
            profiles[step.graph.name] = latency_of(measured, manifest.device, binary.binary_bytes, address)
        return profile_of_all(profiles)

    def _submit_profile(self, jobs: Jobs, step: Step, name: str) -> str:
        options = step.work.profile_options(self._config.aihub.max_profiler_iterations)

        def submit(compile_job_id: str) -> str:
            return jobs.service.submit_run(compile_job_id, step.work.device, name, options, dataset_id=None)

        return jobs.submit_once(name, lambda: step.compile_job_id, submit)

    def run(self, graphs: Path, compiled: Path, inputs: Iterable[HubInput]) -> Iterator[HubOutput]:
        """Yield the device's masks, in order; what this account inferred before, by any run, comes from the store."""
        exported = read_graphs(graphs)
        _, steps = self._read(exported, compiled)
        masks = MaskStore(self._folder() / "masks" / masks_name(steps))
        jobs = InferenceJobs(self._open, masks, exported, steps, self._wait_s)
        return jobs.run(inputs, self._config.aihub.chunk_mb, self._config.aihub.jobs_in_flight)

    def explain(self, graphs: Path, sample: HubInput) -> str:  # noqa: ARG002
        """A device hands out masks only: what strays inside is not known."""
        return ""

    @property
    def _wait_s(self) -> float:
        return self._config.aihub.wait_hours * 3600

    def _work(self, graph: Graph) -> Work:
        return Work.of(graph, self._config.device, self._config.aihub.qairt_version)

    def _open(self) -> Jobs:
        """Sign in before the first thing that is asked."""
        if self._jobs is None:
            service = Service()
            self._account = sign_in(service, self._cache)
            self._jobs = Jobs(service, Journal(self._folder()))
        return self._jobs

    def _folder(self) -> Path:
        """Return the account's folder; the service is asked for the account only if it never was from here."""
        self._account = self._account or remembered_account(self._cache)
        if self._account is None:
            self._open()
        assert self._account is not None, "signed in"
        return folder_of(self._cache, self._address, self._account)

    def _read(self, graphs: Graphs, compiled: Path) -> tuple[CompiledGraphs, tuple[Step, ...]]:
        """Return the manifest and its compile jobs. ValueError if another account or service compiled them."""
        manifest = read_compiled(graphs, compiled, self._config)
        self._folder()
        if (manifest.service, manifest.account) != (self._address, self._account):
            theirs = "another account" if manifest.service == self._address else f"the service at {manifest.service}"
            raise ValueError(
                f"{compiled}: got a graph that {theirs} compiled, wanted this account's at {self._address}; sign in "
                "as before, or compile again with `dvc repro --force --single-item hub-compile`"
            )
        steps = zip(graphs, (str(binary.job_id) for binary in manifest.binaries), strict=True)
        return manifest, tuple(Step(graph, self._work(graph), job_id) for graph, job_id in steps)

    def _share(self, job_id: str) -> None:
        emails = list(self._config.aihub.share_with)
        if not emails:
            return
        service = self._open().service
        missing = set(emails) - set(patiently(lambda: service.share(job_id, emails)))
        if missing:
            raise RefusedError(f"job {job_id}: shared, and yet AI Hub does not list {', '.join(sorted(missing))}")
        _LOG.info("shared %s with %s", service.address(job_id), ", ".join(emails))


def latency_of(profile: Mapping[str, Any], device: str, binary_bytes: int | None, note: str) -> LatencyProfile:
    """Turn the client's profile (microseconds, bytes) into milliseconds and megabytes.

    The latency is the median over all runs; if the service names no runs it is the one time it gives, and the spread
    is not known.
    """
    summary, layers = profile["execution_summary"], profile["execution_detail"]
    runs_us = summary.get("all_inference_times") or []
    units = Counter(layer["compute_unit"] for layer in layers)
    peak = summary.get("inference_memory_peak_range")
    peak_bytes = peak[1] if peak else summary.get("estimated_inference_peak_memory")
    return LatencyProfile(
        device=device,
        placed_on_npu=bool(layers) and set(units) == {"NPU"},
        latency_ms_device=_ms(statistics.median(runs_us) if runs_us else summary["estimated_inference_time"]),
        latency_ms_device_low=_ms(min(runs_us)) if runs_us else None,
        latency_ms_device_high=_ms(max(runs_us)) if runs_us else None,
        device_runs=len(runs_us) or None,
        first_load_ms=_ms(summary["first_load_time"]) if summary.get("first_load_time") else None,
        warm_load_ms=_ms(summary["warm_load_time"]) if summary.get("warm_load_time") else None,
        peak_memory_mb=_mb(peak_bytes) if peak_bytes else None,
        layers_npu=units["NPU"],
        layers_gpu=units["GPU"],
        layers_cpu=units["CPU"],
        layers_unknown=sum(count for unit, count in units.items() if unit not in _UNITS),
        layers=_slowest(layers),
        binary_mb=None if binary_bytes is None else _mb(binary_bytes),
        note=note,
    )


def _slowest(layers: list[Mapping[str, Any]]) -> list[Layer]:
    """Return the slowest layers by time or, where the service gives none, by cycles."""
    for key in ("execution_time", "execution_cycles"):
        timed = sorted((layer for layer in layers if layer.get(key)), key=lambda layer: -layer[key])[:SLOWEST]
        if timed and key == "execution_time":
            return [Layer(layer["name"], layer["compute_unit"], ms=_ms(layer[key])) for layer in timed]
        if timed:
            return [Layer(layer["name"], layer["compute_unit"], cycles=layer[key]) for layer in timed]
    return []


def _ms(microseconds: float) -> float:
    return round(microseconds / 1e3, 3)


def _mb(size_bytes: int) -> float:
    return round(size_bytes / MB, 3)
