"""One account at one address of AI Hub, through Qualcomm's own client: the only module that imports it.

Differences to calling the client directly, each for a reason that was measured: a job is submitted with one POST (the
client repeats one whose answer was lost, and two jobs run), the first request is bounded to seconds (a server that is
down costs the client minutes), a download is held to its stated length (the client takes half a file for the whole),
errors say what may be done next, and nothing that is said holds the token.
"""

import configparser
import hashlib
import os
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import qai_hub.public_rest_api as api
import requests
from botocore.exceptions import BotoCoreError, ClientError
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from qai_hub import api_utils, s3_transfer
from qai_hub import public_api_pb2 as messages
from qai_hub.client import Client, Device, JobStatus, RateLimitedError, UserError
from qai_hub.client import Error as HubError
from qai_hub.util.session import create_external_session, create_session
from s3transfer.exceptions import RetriesExceededError

from promptseg.download import explain_connection_error
from promptseg.hubs.contract import TensorSpec

CLIENT_VERSION = version("qai_hub")
TOKEN_VARIABLE = "QAIHUB_API_TOKEN"
SIGN_IN_TIMEOUT_S = (3.05, 8.0)  # to connect, and to wait for an answer
PAGE = 50  # jobs per page of the service's list
MOST_LISTED = 1000  # jobs of the list that are looked through
# Kinds of assets, and how to ask for their files.
GRAPH, SAMPLES = ("models", "download"), ("datasets", "download_data")
_SUBMISSIONS = {
    api.create_compile_job: ("compile_job", {"seed_target_model": "true"}),
    api.create_inference_job: ("inference_job", {}),
}
_NOT_FOUND = 404
_TRANSPORT = (
    *(HubError, api.APIException, requests.RequestException, DecodeError),
    *(BotoCoreError, ClientError, RetriesExceededError),  # a bucket's, with credentials of the service
    *(AssertionError, KeyError),  # the client's words for storage that leaves out an ETag or a length
)
_FRAMES = re.compile(r"[┌┐└┘─|\s]+")  # the client puts its messages into boxes


class RefusedError(ValueError):
    """The service, or the client before asking it, says no: asking the same again changes nothing.

    `status` is the HTTP status, if there was one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class BusyError(OSError):
    """The service took nothing in because of too many requests (429): ask again later."""


class UnreachableError(OSError):
    """No usable answer. What was asked for may have happened all the same: look before asking again."""


class JobFailedError(ValueError):
    """A job ended without a result, or its result is gone; the next run submits another."""


def read_configuration() -> api.ClientConfig:
    """Read the client's ini file; a token in QAIHUB_API_TOKEN counts before the file's, and needs no file.

    The token is "" if there is none. Raises RefusedError, without quoting the file, if the file cannot be read.
    """
    path, parser = Path(api_utils.get_config_path()), configparser.ConfigParser()
    try:
        parser.read(path)
        content = dict(parser["api"]) if parser.has_section("api") else {}
    except (configparser.Error, UnicodeDecodeError) as error:  # a parser's message may quote the token
        raise RefusedError(
            f"{path}: got a file that the client cannot read ({type(error).__name__}); run `qai-hub configure` again"
        ) from None
    address = content.get("api_url", api.DEFAULT_HUB_API_URL)
    return api.ClientConfig(
        api_token=(os.environ.get(TOKEN_VARIABLE) or content.get("api_token", "")).strip(),
        api_url=address,
        web_url=content.get("web_url", address),
        default_project=content.get("default_project"),
    )


def public_address(address: str) -> str:
    """Return an address without user, password and query: fit to be shown and stored."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")


class _OnePostClient(Client):
    """The client, except that a job is submitted with one POST.

    `accepted_id` is the id of the last job that was accepted; the client itself loses it when its next request fails.
    """

    accepted_id: str | None = None

    def _api_call(self, api_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if api_func not in _SUBMISSIONS:
            return super()._api_call(api_func, *args, **kwargs)
        accepted = super()._api_call(_post_job, *_SUBMISSIONS[api_func], *args, **kwargs)
        self.accepted_id = accepted.id
        return accepted


def _post_job(
    config: api.ClientConfig, kind: str, query: dict[str, str], job: Any, project_id: str | None = None
) -> Any:
    url = api_utils.api_url(config, *(("projects", project_id) if project_id else ()), "jobs")
    content, headers = messages.Job(**{kind: job}).SerializeToString(), api_utils.auth_header(config)
    answer = create_session(client_mode=config.client_mode).post(url, data=content, headers=headers, params=query)
    accepted = api_utils.response_as_protobuf(answer, messages.CreateUpdateResponse)
    if not accepted.id:
        raise UserError(f"the job was refused: {accepted.status}")
    return accepted


class Service:
    """The service under the client's own configuration.

    Every method raises RefusedError, BusyError, UnreachableError or JobFailedError, each of one line and without the
    token, for what goes wrong at the service or on the way to it, and another OSError for this machine's disk.
    """

    def __init__(self) -> None:
        self._config = read_configuration()
        if not self._config.api_token:
            raise RefusedError(
                f"got no token for AI Hub, wanted one in {api_utils.get_config_path()} (run `qai-hub configure "
                "--api_token TOKEN`; the token is on your account page) or in the environment variable "
                f"{TOKEN_VARIABLE}"
            )
        self._client = _OnePostClient(config=self._config)
        self._jobs: dict[str, Any] = {}
        self._email = ""

    def sign_in(self) -> tuple[str, str]:
        """Return the account, a hash of the service's address and the user's id, and the user's e-mail address.

        One try, 12 seconds at most.
        """
        session = create_session(internal_retries=False, client_mode=self._config.client_mode)

        def ask(config: api.ClientConfig) -> Any:
            url, headers = api_utils.api_url(config, "users", "auth", "user"), api_utils.auth_header(config)
            answer = session.get(url, headers=headers, timeout=SIGN_IN_TIMEOUT_S)
            return api_utils.response_as_protobuf(answer, messages.User)

        address = public_address(self._config.api_url)
        try:
            with self._asking("sign in"):
                user = self._client._api_call(ask)
        except RefusedError as refusal:
            if refusal.status != _NOT_FOUND:
                raise
            raise RefusedError(f"{address}: got no AI Hub at this address; {_correct_address()}") from None
        self._email = str(user.email)
        return hashlib.sha256(f"{address}\n{user.id or user.email}".encode()).hexdigest()[:16], self._email

    def devices(self) -> dict[str, set[str]]:
        """Return all devices by name, each with what the service says of it, such as `hexagon:v73`."""
        with self._asking("list devices"):
            devices: dict[str, set[str]] = {}
            for device in self._client.get_devices():  # of several systems of one name, the latest runs the job
                devices.setdefault(device.name, set()).update(device.attributes)
            return devices

    def qairt_versions(self) -> list[str]:
        """Return the versions of Qualcomm's runtime that may be asked for; empty if the service names none."""
        with self._asking("list frameworks"):
            known = [framework for framework in self._client.get_frameworks() if "QAIRT" in framework.name.upper()]
            return sorted({text for framework in known for text in (framework.api_version, *framework.api_tags)})

    def upload_graph(self, graph: Path, name: str) -> str:
        """Upload an ONNX file; return the model's id."""
        with self._asking("upload the graph"):
            return str(self._client.upload_model(str(graph), name).model_id)

    def upload_samples(self, dataset: Path, name: str) -> tuple[str, float | None]:
        """Upload an HDF5 file; return the data set's id and when it expires (seconds since the epoch; None: never)."""
        with self._asking("upload samples"):
            uploaded = self._client.upload_dataset(str(dataset), name)
            expires = uploaded.expiration_time
            return uploaded.dataset_id, None if expires is None else expires.timestamp()

    def has(self, kind: tuple[str, str], asset_id: str) -> bool:
        """Whether the service still has a model (GRAPH) or a data set (SAMPLES)."""
        look = self._client.get_model if kind == GRAPH else self._client.get_dataset
        return self._exists(lambda: look(asset_id)) or self._exists(lambda: self._place(kind, asset_id))

    def has_job(self, job_id: str) -> bool:
        """Whether the service knows a job."""
        return self._exists(lambda: self._client.get_job(job_id)) or job_id in dict(self.listed_jobs(0))

    def submit_compile(self, model_id: str, device: str, name: str, options: str, inputs: Sequence[TensorSpec]) -> str:
        """Submit a compile job with one POST; return its id."""
        specs = {spec.name: (spec.shape, spec.dtype) for spec in inputs}

        def submit() -> Any:
            model = self._client.get_model(model_id)
            return self._client.submit_compile_job(
                model, Device(device), name=name, input_specs=specs, options=options, retry=False
            )

        return self._submit(name, submit)

    def submit_run(self, compile_job_id: str, device: str, name: str, options: str, dataset_id: str | None) -> str:
        """Submit, with one POST, an inference on a data set, or (None) a profile; return the job's id.

        Raises RefusedError, with the remedy, if the service no longer has the compile job or its model.
        """

        def submit() -> Any:
            inputs = None if dataset_id is None else self._client.get_dataset(dataset_id)
            model = self._client.get_model(self._compiled_model(compile_job_id).model_id)  # it may be gone
            return self._client.submit_inference_job(
                model, Device(device), inputs, name=name, options=options, retry=False, profile=inputs is None
            )

        try:
            return self._submit(name, submit)
        except RefusedError as refusal:
            if refusal.status == _NOT_FOUND and not self._has_compiled(compile_job_id):
                raise RefusedError(
                    f"AI Hub has the graph that job {compile_job_id} compiled no more (deleted, or expired); compile "
                    "again with `dvc repro --force --single-item hub-compile`, then go on with `dvc repro`"
                ) from None
            raise

    def listed_jobs(self, since: float) -> list[tuple[str, str]]:
        """Return (id, name) of this account's jobs since then, the newest first, in whole pages, MOST_LISTED at most.

        `since` is in seconds since the epoch, by the service's clock.
        """
        jobs: list[tuple[str, str]] = []
        for offset in range(0, MOST_LISTED, PAGE):
            with self._asking("list jobs"):
                page = self._client.get_job_summaries(offset, PAGE)
            own = ("", self._email)  # the list has the jobs of the whole organisation
            jobs += [(job.job_id, job.name) for job in page if job.username in own or not self._email]
            if len(page) < PAGE or page[-1].date.timestamp() < since:
                break
        return jobs

    def state(self, job_id: str) -> JobStatus:
        """Return where a job stands. JobFailedError if the service no longer has it."""
        try:
            with self._asking(f"see job {job_id}"):
                return self._job(job_id).get_status()
        except RefusedError as refusal:
            if refusal.status == _NOT_FOUND and not self.has_job(job_id):
                raise _gone(job_id, "nothing") from None
            raise

    def address(self, job_id: str) -> str:
        """Return the address of a job's page."""
        return self._client._web_url_of_job(job_id)

    def tool_versions(self, compile_job_id: str) -> dict[str, str]:
        """Return the versions that made a compiled model, as the service recorded them."""
        with self._asking("read the compiled model's versions"):
            metadata = self._client.get_model(self._compiled_model(compile_job_id).model_id).metadata
            return {key.name.lower(): text for key, text in metadata.items() if key.name.endswith("VERSION")}

    def download_model(self, compile_job_id: str, path: Path) -> None:
        """Write the compiled model to `path`, whole: its size is held to what the storage states.

        Raises JobFailedError if the service no longer has it.
        """
        try:
            with self._asking("download the compiled model"):
                model = self._compiled_model(compile_job_id)
                wanted = self._stated_bytes(model.model_id)
                got = Path(model.download(str(path))).replace(path).stat().st_size
        except RefusedError as refusal:
            if refusal.status == _NOT_FOUND and not self._has_compiled(compile_job_id):
                raise _gone(compile_job_id, "no compiled graph") from None
            raise
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

        Raises UnreachableError if there are none, JobFailedError if the service no longer has them.
        """
        try:
            with self._asking(f"download the outputs of job {job_id}"):
                outputs = self._job(job_id).get_output_dataset()
                if outputs is None:
                    raise UnreachableError(f"job {job_id}: got no outputs")
                if outputs.is_expired():
                    raise _gone(job_id, "no outputs")
                Path(outputs.download(str(path))).replace(path)
        except RefusedError as refusal:
            if refusal.status == _NOT_FOUND and not self._has_outputs(job_id):
                raise _gone(job_id, "no outputs") from None
            raise

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
                job = submit()
        except (RefusedError, BusyError, UnreachableError):
            if self._client.accepted_id is None:
                raise
            return self._client.accepted_id  # what failed came after
        self._jobs[job.job_id] = job
        return str(job.job_id)

    def _job(self, job_id: str) -> Any:
        if job_id not in self._jobs:
            self._jobs[job_id] = self._client.get_job(job_id)
        return self._jobs[job_id]

    def _compiled_model(self, compile_job_id: str) -> Any:
        model = self._job(compile_job_id).get_target_model()
        if model is None:
            raise UnreachableError(f"job {compile_job_id}: got no compiled model")
        return model

    # What is taken to be gone is paid for again, and a 404 may be a gateway's: two of them, at two addresses, count.

    def _exists(self, look: Callable[[], object]) -> bool:
        try:
            with self._asking("look whether it is still there"):
                look()
        except RefusedError as refusal:
            if refusal.status != _NOT_FOUND:
                raise
            return False
        return True

    def _has_compiled(self, compile_job_id: str) -> bool:
        if not self.has_job(compile_job_id):
            return False
        with self._asking(f"find job {compile_job_id}"):
            model_id = self._compiled_model(compile_job_id).model_id
        return self.has(GRAPH, model_id)

    def _has_outputs(self, job_id: str) -> bool:
        with self._asking(f"find the outputs of job {job_id}"):
            result = self._client._api_call(api.get_job_results, job_id)
        return self.has(SAMPLES, result.inference_job_result.output_dataset_id)

    def _place(self, kind: tuple[str, str], asset_id: str) -> Any:
        """Ask where an asset's file is stored."""
        path, answer = (kind[0], asset_id, kind[1]), messages.FileDownloadResponse
        return self._client._api_call(api._get_transfer_response, *path, response_type=answer, use_acceleration=True)

    def _stated_bytes(self, model_id: str) -> int | None:
        """Return how long a model's file is by its storage; None: the transfer itself notices what is missing.

        Raises UnreachableError if neither holds: the client would take half of the file for the whole.
        """
        place = self._place(GRAPH, model_id)
        if place.HasField("credentials"):
            bucket = s3_transfer._build_client(place.credentials)
            head = bucket.head_object(Bucket=place.credentials.bucket, Key=place.credentials.key)
            return int(head["ContentLength"])
        session = create_external_session()
        with session.get(place.url.url, stream=True, headers={"Accept-Encoding": "identity"}) as answer:
            answer.raise_for_status()
            if answer.headers.get("Content-Type", "").startswith("text/"):
                raise UnreachableError(f"AI Hub, model {model_id}: got a page of text for a file, wanted its storage")
            if "Content-Length" in answer.headers:
                return int(answer.headers["Content-Length"])
            if answer.headers.get("Transfer-Encoding") == "chunked":
                return None
        raise UnreachableError(
            f"AI Hub, model {model_id}: its storage states no length: half a file cannot be told from a whole one"
        )

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Translate every failure of the block: one line that says `what` was asked.

        What the client prints is dropped; causes are cut off, since they may hold the token or a signed address.
        """
        try:
            with redirect_stdout(StringIO()):
                yield
        except (RefusedError, BusyError, UnreachableError, JobFailedError) as error:
            raise error from None
        except (UserError, ValueError) as error:  # ValueError: a job or an upload that the answer itself refuses
            raise RefusedError(self._line(what, error), _status(error)) from None
        except RateLimitedError as error:
            raise BusyError(self._line(what, error)) from None
        except _TRANSPORT as error:
            untrusted = any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))
            raise (RefusedError if untrusted else UnreachableError)(self._line(what, error)) from None

    def _line(self, what: str, error: Exception) -> str:
        text = _FRAMES.sub(" ", str(error)).strip() or type(error).__name__
        for cause in _causes(error):
            if isinstance(cause, requests.ConnectionError | requests.Timeout):
                url = urlsplit(str(getattr(cause.request, "url", None) or self._config.api_url))
                text = explain_connection_error(cause, public_address(f"{url.scheme}://{url.netloc}"))
                break
            if isinstance(cause, api.APIException) and cause.status_code == requests.codes.ok:
                text = f"got an answer that is not AI Hub's (a network's login page?); {_correct_address()}"
        return f"AI Hub, {what}: {text}".replace(self._config.api_token, "<token>")


def _correct_address() -> str:
    return f"wanted the service's address as api_url in {api_utils.get_config_path()}"


def _gone(job_id: str, what: str) -> JobFailedError:
    return JobFailedError(f"AI Hub has {what} of job {job_id} any more (deleted, or expired); run again to redo it")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def _status(error: BaseException) -> int | None:
    """Find the HTTP status behind the client's error, which itself does not carry it."""
    return next((cause.status_code for cause in _causes(error) if isinstance(cause, api.APIException)), None)
