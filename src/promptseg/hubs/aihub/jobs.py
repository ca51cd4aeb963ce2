"""Each job once: looked for in the journal and in the service's list before it is submitted, and after every doubt."""

import logging
import time
from collections.abc import Callable, Iterator

from promptseg.hubs.aihub.errors import BusyError, RefusedError, UnreachableError
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
from promptseg.hubs.aihub.patience import BUSY_S, SETTLE_S, patiently, pause
from promptseg.hubs.aihub.service import ListedJob, Service

CLOCK_SKEW_S = 3600.0  # how far the service's clock may be behind ours
MOST_LISTED = 1000  # jobs of the service's list that are looked through
UNANSWERED_TRIES = 3  # submissions without an answer, and without a job in the list, before it is given up
USABLE_FOR_S = 24 * 3600.0  # a data set that expires sooner is uploaded again
_LOG = logging.getLogger(__name__)


class Submissions:
    """Gives every job's name at most one job that has not failed.

    There is no idempotency key, and an answer can be lost, so the name is the key: intent is written down, the job is
    submitted with one request, and after anything but a clear answer the service's list decides. Where neither the
    answer nor the list can be had, nothing is submitted again.
    """

    def __init__(self, service: Service, journal: Journal) -> None:
        self._service = service
        self._journal = journal
        self._listed: dict[str, list[str]] | None = None  # name -> ids, as the list was when this process began

    def job(self, name: str, prepare: Callable[[], str], submit: Callable[[str], str]) -> str:
        """Return the id of the job `name`.

        Where there is none, `prepare` uploads what it needs and returns that asset's id, and `submit` takes it and
        returns the job's. Raises as the service does.
        """
        with self._journal.lock(name):
            history = self._journal.job(name)
            known = self._known(name, history)
            if known is not None:
                return known
            asset_id = prepare()
            return self._submit(name, history.failed, lambda: submit(asset_id))

    def failed(self, name: str, job_id: str, content_sha256: str | None) -> None:
        """Note that a job ended without a result: the next run uploads its content again and submits another one."""
        self._journal.record(FAILED, name, job_id=job_id)
        if content_sha256 is not None:
            self._journal.record(DISTRUSTED, content_sha256)

    def asset(
        self, content_sha256: str, exists: Callable[[str], bool], upload: Callable[[], tuple[str, float | None]]
    ) -> str:
        """Return the id of an uploaded content, uploading it where it is not there yet, or not for long any more."""
        with self._journal.lock(content_sha256):
            known = self._journal.upload(content_sha256)
            if known is not None and (known[1] is None or known[1] > time.time() + USABLE_FOR_S):
                asset_id = known[0]
                if patiently(lambda: exists(asset_id)):
                    return asset_id
            asset_id, expires_at = patiently(upload)
            self._journal.record(UPLOADED, content_sha256, asset_id=asset_id, expires_at=expires_at)
            return asset_id

    def _known(self, name: str, history: JobHistory) -> str | None:
        if history.job_id is not None:
            job_id = history.job_id
            if patiently(lambda: self._service.has_job(job_id)):
                return job_id
            _LOG.warning("AI Hub knows no job %s any more, which was %s", job_id, name)
        if history.unanswered_since is not None:
            return self._look(name, history.failed, history.unanswered_since)
        found = self._all_listed().get(name, [])
        return self._adopt(name, [job_id for job_id in found if job_id not in {history.job_id, *history.failed}])

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
                self._journal.record(SUBMITTED, name, job_id=job_id, address=self._service.address(job_id))
                _LOG.info("submitted %s: %s", name, self._service.address(job_id))
                return job_id
        raise last

    def _look(self, name: str, failed: set[str], since: float) -> str | None:
        """Look for a job whose submission got no answer, until a late one would be there."""
        for wait_s in SETTLE_S:
            if wait_s > 0 and time.time() - since > sum(SETTLE_S):
                break  # it was long ago
            pause(wait_s)
            try:
                found = [job.job_id for job in self._recent(since) if job.name == name and job.job_id not in failed]
            except UnreachableError as error:
                raise UnreachableError(
                    f"{error}. Whether {name} was submitted is not known: run again, and it is looked for first"
                ) from None
            if found:
                return self._adopt(name, found)
        return None

    def _recent(self, since: float) -> Iterator[ListedJob]:
        return patiently(lambda: iter(list(self._service.listed_jobs(since - CLOCK_SKEW_S, MOST_LISTED))))

    def _all_listed(self) -> dict[str, list[str]]:
        if self._listed is None:
            self._listed = {}
            for job in patiently(lambda: list(self._service.listed_jobs(0, MOST_LISTED))):
                self._listed.setdefault(job.name, []).append(job.job_id)
        return self._listed

    def _adopt(self, name: str, found: list[str]) -> str | None:
        if not found:
            return None
        if len(found) > 1:
            _LOG.warning("AI Hub has %d jobs %s (%s); taking the latest", len(found), name, ", ".join(found))
        self._journal.record(FOUND, name, job_id=found[0], address=self._service.address(found[0]))
        _LOG.info("found %s, submitted before: %s", name, self._service.address(found[0]))
        return found[0]
