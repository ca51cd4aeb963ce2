"""Each job once: looked for before it is submitted and after every doubt, then waited for by a clock of our own."""

import logging
import sys
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from tqdm import tqdm

from promptseg.hubs.aihub.journal import (
    DISTRUSTED,
    FAILED,
    FOUND,
    INTENT,
    REFUSED,
    SUBMITTED,
    UPLOADED,
    JobHistory,
    Journal,
)
from promptseg.hubs.aihub.service import BusyError, JobFailedError, RefusedError, Service, UnreachableError

# How long is waited, and for what, beyond the client's own retries (7 tries, 47 seconds, per request).
POLL_S = 10.0  # between two looks at a running job; the client's own interval
AGAIN_S = (15.0, 45.0)  # before the second and the third try of what may be repeated
SETTLE_S = (0.0, 5.0, 10.0, 20.0, 30.0)  # before each look for a job whose submission got no answer
BUSY_S = (15.0, 30.0, *[60.0] * 10)  # before each new try of a submission that was refused as one too many
OUTAGE_S = 15 * 60.0  # without any answer about a job before waiting for it is given up
CLOCK_SKEW_S = 3600.0  # how far the service's clock may be behind ours
UNANSWERED_TRIES = 3  # submissions without an answer, and without a job in the list, before it is given up
USABLE_FOR_S = 24 * 3600.0  # a data set that expires sooner is uploaded again
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
_T = TypeVar("_T")


def pause(seconds: float) -> None:
    """Sleep. The only place where this package does."""
    time.sleep(seconds)


def patiently(action: Callable[[], _T]) -> _T:
    """Do what may be done twice without harm (reads, uploads, sharing), three times at most.

    Raises what `action` raised last, RefusedError at once.
    """
    for wait_s in AGAIN_S:
        try:
            return action()
        except (BusyError, UnreachableError) as error:
            _LOG.warning("%s; trying again in %.0f s", error, wait_s)
            pause(wait_s)
    return action()


class Jobs:
    """Gives every job's name at most one job that has not failed.

    There is no idempotency key, and an answer can be lost, so the name is the key: intent is written down, the job is
    submitted with one request, and after anything but a clear answer the service's list decides. If neither the
    answer nor the list can be had, nothing is submitted again.
    """

    def __init__(self, service: Service, journal: Journal) -> None:
        self.service = service
        self._journal = journal
        self._listed: list[tuple[str, str]] | None = None  # (id, name), as the list was when this process began

    def submit_once(self, name: str, prepare: Callable[[], str], submit: Callable[[str], str]) -> str:
        """Return the id of the job `name`.

        If there is none, `prepare` uploads what it needs and returns that asset's id, and `submit` takes it and
        returns the job's. Raises as the service does.
        """
        with self._journal.lock(name):
            history = self._journal.job(name)
            known = self._known(name, history)
            if known is not None:
                return known
            asset_id = prepare()
            return self._submit(name, history.failed, lambda: submit(asset_id))

    def upload_once(
        self, kind: tuple[str, str], content_sha256: str, upload: Callable[[], tuple[str, float | None]]
    ) -> str:
        """Return the id of an uploaded content of a kind; upload it if it is not there, or will expire within a day."""
        with self._journal.lock(content_sha256):
            known = self._journal.upload(content_sha256)
            if known is not None and (known[1] is None or known[1] > time.time() + USABLE_FOR_S):
                asset_id = known[0]
                if patiently(lambda: self.service.has(kind, asset_id)):
                    return asset_id
            asset_id, expires_at = patiently(upload)
            self._journal.record(UPLOADED, content_sha256, asset_id=asset_id, expires_at=expires_at)
            return asset_id

    def give_up(self, name: str, job_id: str, content_sha256: str | None) -> None:
        """Record that a job has no result: the next run submits another one, and uploads its content again."""
        self._journal.record(FAILED, name, job_id=job_id)
        if content_sha256 is not None:
            self._journal.record(DISTRUSTED, content_sha256)

    def wait(self, name: str, job_id: str, what: str, limit_s: float, content_sha256: str | None) -> None:
        """Return when a job is done; `what` says in messages what it does.

        Raises JobFailedError when it failed, with its log below the journal's folder, and gives it up;
        UnreachableError when it takes longer than `limit_s` or the service gives no answer for OUTAGE_S: the job goes
        on, and the next run picks it up.
        """
        began = answered = time.monotonic()
        with _Progress(f"{what}: {self.service.address(job_id)}") as progress:
            while True:
                try:
                    state = self.service.state(job_id)
                except (BusyError, UnreachableError) as error:
                    if time.monotonic() - answered > OUTAGE_S:
                        raise UnreachableError(f"{error}. {self._goes_on(job_id)}") from None
                    progress.show("no answer", began)
                else:
                    answered = time.monotonic()
                    progress.show(STATES.get(state.code, "running"), began)
                    if state.success:
                        return
                    if state.failure:
                        self.give_up(name, job_id, content_sha256)
                        raise JobFailedError(self._failure(job_id, what, state.message))
                if time.monotonic() - began > limit_s:
                    waited = f"AI Hub, {what}: got no result in {limit_s / 3600:.1f} h (hub.aihub.wait_hours)"
                    raise UnreachableError(f"{waited}. {self._goes_on(job_id)}")
                pause(POLL_S)

    def collect(self, name: str, job_id: str, download: Callable[[], _T]) -> _T:
        """Download the result of a job that is done; give the job up if the service no longer has its result."""
        try:
            return patiently(download)
        except JobFailedError:
            self.give_up(name, job_id, None)
            raise

    def _known(self, name: str, history: JobHistory) -> str | None:
        if history.job_id is not None:
            job_id = history.job_id
            if patiently(lambda: self.service.has_job(job_id)):
                return job_id
            _LOG.warning("AI Hub has job %s no more, which was %s; submitting it anew", job_id, name)
        if history.unanswered_since is not None:
            return self._look(name, history.failed, history.unanswered_since)
        if self._listed is None:
            self._listed = patiently(lambda: self.service.listed_jobs(0))
        return self._adopt(name, {history.job_id, *history.failed}, self._listed)

    def _submit(self, name: str, failed: set[str], submit: Callable[[], str]) -> str:
        began, unanswered, self._listed = time.time(), 0, None  # the list is about to be out of date
        for wait_s in BUSY_S:
            self._journal.record(INTENT, name)
            try:
                job_id = submit()
            except RefusedError:
                self._journal.record(REFUSED, name)
                raise
            except BusyError as error:
                self._journal.record(REFUSED, name)
                last: OSError = error
                _LOG.warning("%s; trying again in %.0f s", error, wait_s)
                pause(wait_s)
            except UnreachableError as error:
                last, unanswered = error, unanswered + 1
                _LOG.warning("%s; looking whether the job is there all the same", error)
                found = self._look(name, failed, began)
                if found is not None:
                    return found
                if unanswered == UNANSWERED_TRIES:
                    break
            else:
                return self._record(SUBMITTED, name, job_id)
        raise last

    def _look(self, name: str, failed: set[str], since: float) -> str | None:
        """Look for a job whose submission got no answer, until a late one would be there."""
        for wait_s in SETTLE_S:
            if wait_s > 0 and time.time() - since > sum(SETTLE_S):
                break  # it was long ago
            pause(wait_s)
            try:
                listed = patiently(lambda: self.service.listed_jobs(since - CLOCK_SKEW_S))
            except UnreachableError as error:
                raise UnreachableError(
                    f"{error}. Whether {name} was submitted is not known: run again, and it is looked for first"
                ) from None
            found = self._adopt(name, failed, listed)
            if found is not None:
                return found
        return None

    def _adopt(self, name: str, others: Collection[str | None], listed: list[tuple[str, str]]) -> str | None:
        """Take the latest job of that name, if one is listed that is none of `others`."""
        found = [job_id for job_id, listed_name in listed if listed_name == name and job_id not in others]
        if len(found) > 1:
            _LOG.warning("AI Hub has %d jobs %s (%s); taking the latest", len(found), name, ", ".join(found))
        return self._record(FOUND, name, found[0]) if found else None

    def _record(self, event: str, name: str, job_id: str) -> str:
        address = self.service.address(job_id)
        self._journal.record(event, name, job_id=job_id, address=address)
        _LOG.info("%s %s: %s", "submitted" if event == SUBMITTED else "found, submitted before,", name, address)
        return job_id

    def _goes_on(self, job_id: str) -> str:
        return f"The job goes on at {self.service.address(job_id)}; run again to pick it up"

    def _failure(self, job_id: str, what: str, message: str | None) -> str:
        reason = " ".join((message or "").split()) or "the service gave no reason"
        told = f"AI Hub, {what}: job {job_id} failed: {reason}; see {self.service.address(job_id)}"
        try:
            paths = self.service.download_logs(job_id, self._journal.folder / "logs" / job_id)
        except (BusyError, RefusedError, UnreachableError) as error:
            return f"{told}; its log could not be downloaded ({error})"
        if not paths:
            return f"{told}; it left no log"
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
        last = " | ".join([line for text in texts for line in text.splitlines() if line][-_LOG_LINES:])
        return f"{told}; log in {', '.join(map(str, paths))}, its last lines: {last}"


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
