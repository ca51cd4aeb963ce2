"""Waiting for a job by a clock of our own: minutes of errors pass, a failed job raises with its reason and its log."""

import logging
import sys
import time
from pathlib import Path

from tqdm import tqdm

from promptseg.hubs.aihub.errors import BusyError, JobFailedError, RefusedError, UnreachableError
from promptseg.hubs.aihub.patience import OUTAGE_S, POLL_S, pause
from promptseg.hubs.aihub.service import JobState, Service

STATES = {
    "CREATED": "queued",
    "OPTIMIZING_MODEL": "compiling",
    "PROVISIONING_DEVICE": "provisioning a device",
    "MEASURING_PERFORMANCE": "measuring",
    "RUNNING_INFERENCE": "running",
    "SUCCESS": "done",
    "FAILED": "failed",
}
_LOG_LINES = 5  # of a failed job's log that its error shows
_LOG = logging.getLogger(__name__)


def wait_for(service: Service, job_id: str, what: str, limit_s: float, logs: Path) -> None:
    """Return when a job is done.

    Raises JobFailedError when it failed, with its log below `logs`; UnreachableError when it takes longer than
    `limit_s` or the service gives no answer for OUTAGE_S: the job goes on, and the next run picks it up.
    """
    began = answered = time.monotonic()
    with _Progress(f"{what}: {service.address(job_id)}") as progress:
        while True:
            try:
                state = service.state(job_id)
            except (BusyError, UnreachableError) as error:
                if time.monotonic() - answered > OUTAGE_S:
                    raise UnreachableError(f"{error}. {_goes_on(service, job_id)}") from None
                progress.show("no answer", began)
            else:
                answered = time.monotonic()
                progress.show(STATES.get(state.state, "running"), began)
                if state.done:
                    return
                if state.failed:
                    raise JobFailedError(_failure(service, job_id, what, state, logs))
            if time.monotonic() - began > limit_s:
                waited = f"AI Hub, {what}: got no result in {limit_s / 3600:.1f} h (hub.aihub.wait_hours)"
                raise UnreachableError(f"{waited}. {_goes_on(service, job_id)}")
            pause(POLL_S)


def _goes_on(service: Service, job_id: str) -> str:
    return f"The job goes on at {service.address(job_id)}; run again to pick it up"


def _failure(service: Service, job_id: str, what: str, state: JobState, logs: Path) -> str:
    reason = state.reason or "the service gave no reason"
    message = f"AI Hub, {what}: job {job_id} failed: {reason}; see {service.address(job_id)}"
    try:
        paths = service.download_logs(job_id, logs / job_id)
    except (BusyError, RefusedError, UnreachableError) as error:
        return f"{message}; its log could not be downloaded ({error})"
    if not paths:
        return f"{message}; it left no log"
    lines = [line for path in paths for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    last = " | ".join(lines[-_LOG_LINES:])
    return f"{message}; log in {', '.join(map(str, paths))}, its last lines: {last}"


class _Progress:
    """One line that changes, on a terminal; elsewhere a line in the log for each change of state."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._shown = ""
        self._bar = tqdm(bar_format="{desc}", leave=False, disable=not sys.stderr.isatty())

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, state: str, began: float) -> None:
        minutes = (time.monotonic() - began) / 60
        self._bar.set_description_str(f"{self._title}: {state}, {minutes:.0f} min")
        if self._bar.disable and state != self._shown:
            _LOG.info("%s: %s", self._title, state)
        self._shown = state
