"""One account at one address: what this project asks of the service, as plain data."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptseg.hubs.aihub.client import OneTryClient, asking, device_of, read_configuration
from promptseg.hubs.aihub.errors import BusyError, JobFailedError, RefusedError, UnreachableError
from promptseg.hubs.contract import INPUTS

PAGE = 50  # jobs per page of the service's list
_NOT_FOUND = 404


@dataclass(frozen=True)
class JobState:
    """Where a job stands: `state` as the service spells it, and its reason where it failed."""

    state: str
    done: bool
    failed: bool
    reason: str


@dataclass(frozen=True)
class ListedJob:
    """One line of the service's list of jobs; `created_at` in seconds since the epoch, by the service's clock."""

    name: str
    job_id: str
    created_at: float


class Service:
    """The service under the client's own configuration.

    Every method raises one of `errors` for what goes wrong there, and another OSError for this machine's disk.
    """

    def __init__(self) -> None:
        self._config = read_configuration()
        self._client = OneTryClient(config=self._config)
        self._jobs: dict[str, Any] = {}

    def whoami(self) -> str:
        """Return the account's e-mail address; one try, 12 seconds at most."""
        with self._asking("sign in"):
            return self._client.whoami()

    def devices(self) -> list[str]:
        """Return the names of all devices."""
        with self._asking("list devices"):
            return sorted({device.name for device in self._client.get_devices()})

    def qairt_versions(self) -> list[str]:
        """Return the versions of Qualcomm's runtime that may be asked for; none where the service names none."""
        with self._asking("list frameworks"):
            known = [framework for framework in self._client.get_frameworks() if "QAIRT" in framework.name.upper()]
            return sorted({text for framework in known for text in (framework.api_version, *framework.api_tags)})

    def upload_graph(self, graph: Path, name: str) -> str:
        """Upload an ONNX file; return the model's id."""
        with self._asking("upload the graph"):
            return str(self._client.upload_model(str(graph), name).model_id)

    def has_graph(self, model_id: str) -> bool:
        """Whether the service still has a model."""
        return self._exists("find the graph", lambda: self._client.get_model(model_id))

    def upload_samples(self, dataset: Path, name: str) -> tuple[str, float | None]:
        """Upload an HDF5 file; return the data set's id and when it expires (seconds since the epoch; None: never)."""
        with self._asking("upload samples"):
            uploaded = self._client.upload_dataset(str(dataset), name)
            expires = uploaded.expiration_time
            return uploaded.dataset_id, None if expires is None else expires.timestamp()

    def has_samples(self, dataset_id: str) -> bool:
        """Whether the service still has a data set."""
        return self._exists("find samples", lambda: self._client.get_dataset(dataset_id))

    def submit_compile(self, model_id: str, device: str, name: str, options: str) -> str:
        """Submit a compile job with one POST; return its id."""
        specs = {spec.name: (spec.shape, spec.dtype) for spec in INPUTS}

        def submit() -> Any:
            model = self._client.get_model(model_id)
            return self._client.submit_compile_job(
                model, device_of(device), name=name, input_specs=specs, options=options, retry=False
            )

        return self._submit(name, submit)

    def submit_run(self, compile_job_id: str, device: str, name: str, options: str, dataset_id: str | None) -> str:
        """Submit, with one POST, an inference on a data set, or (None) a profile; return the job's id."""

        def submit() -> Any:
            inputs = None if dataset_id is None else self._client.get_dataset(dataset_id)
            model = self._compiled_model(compile_job_id)
            return self._client.submit_inference_job(
                model, device_of(device), inputs, name=name, options=options, retry=False, profile=inputs is None
            )

        return self._submit(name, submit)

    def listed_jobs(self, since: float, most: int) -> Iterator[ListedJob]:
        """Yield jobs created after `since`, the newest first; `most` at most, in whole pages."""
        for offset in range(0, most, PAGE):
            with self._asking("list jobs"):
                page = self._client.get_job_summaries(offset, PAGE)
            for job in page:
                yield ListedJob(job.name, job.job_id, job.date.timestamp())
            if len(page) < PAGE or page[-1].date.timestamp() < since:
                return

    def has_job(self, job_id: str) -> bool:
        """Whether the service knows a job."""
        return self._exists(f"find job {job_id}", lambda: self._job(job_id))

    def state(self, job_id: str) -> JobState:
        """Return where a job stands."""
        with self._asking(f"see job {job_id}"):
            status = self._job(job_id).get_status()
            return JobState(status.code, status.success, status.failure, " ".join((status.message or "").split()))

    def address(self, job_id: str) -> str:
        """Return the address of a job's page."""
        return self._client.address_of(job_id)

    def tool_versions(self, compile_job_id: str) -> dict[str, str]:
        """Return the versions that made a compiled model, as the service recorded them."""
        with self._asking("read the compiled model's versions"):
            metadata = self._client.get_model(self._compiled_model(compile_job_id).model_id).metadata
            return {key.name.lower(): text for key, text in metadata.items() if key.name.endswith("VERSION")}

    def download_model(self, compile_job_id: str, path: Path) -> None:
        """Write the compiled model to `path`, whole: its size is held to what the storage states."""
        with self._asking("download the compiled model"):
            model = self._compiled_model(compile_job_id)
            wanted = self._client.stated_bytes(model.model_id)
            got = Path(model.download(str(path))).replace(path).stat().st_size
        if wanted is not None and got != wanted:
            path.unlink()
            raise UnreachableError(f"job {compile_job_id}: got {got} bytes of a compiled model of {wanted}")

    def profile(self, job_id: str) -> dict[str, Any]:
        """Return the profile of a job that is done, as the client arranges it. UnreachableError when it is empty."""
        with self._asking(f"download the profile of job {job_id}"):
            profile = self._job(job_id).download_profile()
        if not profile:
            raise UnreachableError(
                f"job {job_id}: got an empty profile; run again to ask for it again, or change "
                "hub.aihub.max_profiler_iterations to measure anew"
            )
        return dict(profile)

    def download_outputs(self, job_id: str, path: Path) -> None:
        """Write the outputs of an inference that is done to `path` (HDF5).

        Raises UnreachableError when there are none, JobFailedError when the service has thrown them away.
        """
        with self._asking(f"download the outputs of job {job_id}"):
            outputs = self._job(job_id).get_output_dataset()
            expired = outputs is not None and outputs.is_expired()
            if outputs is not None and not expired:
                Path(outputs.download(str(path))).replace(path)
        if outputs is None:
            raise UnreachableError(f"job {job_id}: got no outputs")
        if expired:
            raise JobFailedError(f"job {job_id}: its outputs expired before they were collected; run again to redo it")

    def download_logs(self, job_id: str, folder: Path) -> list[Path]:
        """Write a job's logs into `folder`; return their paths."""
        with self._asking(f"download the logs of job {job_id}"):
            return [Path(path) for path in self._job(job_id).download_job_logs(str(folder))]

    def share(self, job_id: str, emails: list[str]) -> list[str]:
        """Share a job; return with whom it is shared by now, as the service lists them."""
        with self._asking(f"share job {job_id}"):
            job = self._job(job_id)
            if not set(emails) <= set(job.get_sharing()):
                job.modify_sharing(add_emails=emails)
            return list(job.get_sharing())

    def _submit(self, name: str, submit: Callable[[], Any]) -> str:
        self._client.accepted_id = None
        try:
            with self._asking(f"submit {name}"):
                return self._remember(submit())
        except (RefusedError, BusyError, UnreachableError):
            if self._client.accepted_id is None:
                raise
            return self._client.accepted_id  # what failed came after

    def _asking(self, what: str) -> AbstractContextManager[None]:
        return asking(self._config, what)

    def _exists(self, what: str, look: Callable[[], object]) -> bool:
        try:
            with self._asking(what):
                look()
        except RefusedError as refusal:
            if refusal.status != _NOT_FOUND:
                raise
            return False
        return True

    def _job(self, job_id: str) -> Any:
        if job_id not in self._jobs:
            self._remember(self._client.get_job(job_id))
        return self._jobs[job_id]

    def _remember(self, job: Any) -> str:
        self._jobs[job.job_id] = job
        return str(job.job_id)

    def _compiled_model(self, compile_job_id: str) -> Any:
        model = self._job(compile_job_id).get_target_model()
        if model is None:
            raise UnreachableError(f"job {compile_job_id}: got no compiled model")
        return model
