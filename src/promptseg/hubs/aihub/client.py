"""The only file that imports Qualcomm's client: its configuration, its one wrapped call, its errors translated.

Differences to calling the client directly, each for a reason measured against it: a job is submitted with one POST
(the client repeats one whose answer was lost, and two jobs run), the first request is bounded to seconds (a server that
is down costs the client minutes), and nothing that is said may hold the token.
"""

import configparser
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from io import StringIO
from typing import Any

import qai_hub.public_rest_api as api
import requests
from botocore.exceptions import BotoCoreError, ClientError
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from qai_hub import api_utils, s3_transfer
from qai_hub import public_api_pb2 as messages
from qai_hub.client import Client, Device, RateLimitedError, UserError
from qai_hub.client import Error as HubError
from qai_hub.util.session import create_external_session, create_session
from s3transfer.exceptions import RetriesExceededError

from promptseg.hubs.aihub.errors import BusyError, RefusedError, UnreachableError

CLIENT_VERSION = version("qai_hub")
DEFAULT_ADDRESS = api.DEFAULT_HUB_API_URL
TOKEN_VARIABLE = "QAIHUB_API_TOKEN"
PROBE_TIMEOUT_S = (3.05, 8.0)  # to connect, and to wait for an answer
_TRANSPORT = (
    *(HubError, api.APIException, requests.RequestException, DecodeError),
    *(BotoCoreError, ClientError, RetriesExceededError),  # a bucket's, with credentials of the service
)
_FRAMES = re.compile(r"[┌┐└┘─|\s]+")  # the client puts its messages into boxes


def read_configuration() -> api.ClientConfig:
    """Return the client's own configuration (its ini file), with the token from QAIHUB_API_TOKEN where that is set.

    Raises RefusedError, with the remedy and without quoting the file, when there is no token.
    """
    path, token = api_utils.get_config_path(), os.environ.get(TOKEN_VARIABLE, "")
    try:
        config = api_utils.load_default_api_config()
    except FileNotFoundError:
        config = api.ClientConfig(api_token=token, web_url=api.DEFAULT_HUB_WEB_URL)
    except (configparser.Error, api.APIException, ValueError) as error:  # a parser's message may quote the token
        raise RefusedError(
            f"{path}: got a file that the client cannot read ({type(error).__name__}); run `qai-hub configure` again"
        ) from None
    config.api_token = (token or config.api_token).strip()
    if not config.api_token:
        raise RefusedError(
            f"got no token, wanted one in {path} (run `qai-hub configure --api_token TOKEN`; the token is on your "
            f"account page) or in the environment variable {TOKEN_VARIABLE}"
        )
    config.verbose = False
    return config


def service_address() -> str:
    """Return the address that the configuration names, the public service's where there is none; needs no token."""
    try:
        return str(api_utils.load_default_api_config().api_url)
    except (FileNotFoundError, configparser.Error, api.APIException, ValueError):
        return DEFAULT_ADDRESS


class OneTryClient(Client):
    """The client, except that a job is submitted with one POST: whether to repeat it is for who keeps the journal.

    `accepted_id` is the id of the job that was accepted last; the client itself loses it when its next request fails.
    """

    accepted_id: str | None = None

    def _api_call(self, api_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        submit_once = {api.create_compile_job: _post_compile_job, api.create_inference_job: _post_inference_job}
        answer = super()._api_call(submit_once.get(api_func, api_func), *args, **kwargs)
        if api_func in submit_once:
            self.accepted_id = answer.id
        return answer

    def whoami(self) -> str:
        """Return the account's e-mail address, after one try that takes 12 seconds at most."""
        session = create_session(internal_retries=False, client_mode=self.config.client_mode)

        def ask(config: api.ClientConfig) -> Any:
            url, headers = api_utils.api_url(config, "users", "auth", "user"), api_utils.auth_header(config)
            answer = session.get(url, headers=headers, timeout=PROBE_TIMEOUT_S)
            return api_utils.response_as_protobuf(answer, messages.User)

        return str(self._api_call(ask).email)

    def stated_bytes(self, model_id: str) -> int | None:
        """Return how long a model's file is by its storage; None: the transfer itself notices what is missing.

        Raises UnreachableError where neither holds: the client would take half of the file for the whole.
        """
        response = self._api_call(api._get_model_download_response, model_id)
        if response.HasField("credentials"):
            return self._object_bytes(response.credentials)
        session = create_external_session()
        with session.get(response.url.url, stream=True, headers={"Accept-Encoding": "identity"}) as answer:
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

    def _object_bytes(self, place: Any) -> int:
        storage = s3_transfer._build_client(place)
        return int(storage.head_object(Bucket=place.bucket, Key=place.key)["ContentLength"])

    def address_of(self, job_id: str) -> str:
        """Return the address of a job's page."""
        return self._web_url_of_job(job_id)


def device_of(name: str) -> Device:
    """Return the client's word for a device."""
    return Device(name)


@contextmanager
def asking(config: api.ClientConfig, what: str) -> Iterator[None]:
    """Translate every failure of the block into one of `errors`: one line that says `what` was asked.

    What the client prints is dropped; causes are cut off, since they may hold the token or a signed address.
    """
    try:
        with redirect_stdout(StringIO()):
            yield
    except (RefusedError, BusyError, UnreachableError) as error:
        raise error from None
    except (UserError, ValueError) as error:  # ValueError: a job or an upload that the answer itself refuses
        raise RefusedError(_line(config, what, error), _status(error)) from None
    except RateLimitedError as error:
        raise BusyError(_line(config, what, error)) from None
    except _TRANSPORT as error:
        raise UnreachableError(_line(config, what, error)) from None
    except (AssertionError, KeyError) as error:  # the client's words for storage that leaves out an ETag or a length
        raise UnreachableError(_line(config, what, error)) from None


def _post_compile_job(config: api.ClientConfig, job: Any, project_id: str | None = None) -> Any:
    return _post_job(config, messages.Job(compile_job=job), project_id, {"seed_target_model": "true"})


def _post_inference_job(config: api.ClientConfig, job: Any, project_id: str | None = None) -> Any:
    return _post_job(config, messages.Job(inference_job=job), project_id, {})


def _post_job(config: api.ClientConfig, job: Any, project_id: str | None, query: dict[str, str]) -> Any:
    url = api_utils.api_url(config, *(("projects", project_id) if project_id else ()), "jobs")
    session = create_session(client_mode=config.client_mode)
    answer = session.post(url, data=job.SerializeToString(), headers=api_utils.auth_header(config), params=query)
    accepted = api_utils.response_as_protobuf(answer, messages.CreateUpdateResponse)
    if not accepted.id:
        raise UserError(f"the job was refused: {accepted.status}")
    return accepted


def _line(config: api.ClientConfig, what: str, error: Exception) -> str:
    text = _FRAMES.sub(" ", str(error)).strip() or type(error).__name__
    return f"AI Hub, {what}: {text}".replace(config.api_token, "<token>")


def _status(error: BaseException) -> int | None:
    """Find the HTTP status behind the client's error, which itself does not carry it."""
    while not isinstance(error, api.APIException):
        if error.__context__ is None:
            return None
        error = error.__context__
    return error.status_code
