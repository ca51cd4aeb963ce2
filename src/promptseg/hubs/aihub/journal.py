"""What was asked of the service, line by line, written before and after asking; it outlives crashes and experiments."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

_LOG = logging.getLogger(__name__)

INTENT, REFUSED, SUBMITTED, FOUND, FAILED = "intent", "refused", "submitted", "found", "failed"
UPLOADED, DISTRUSTED = "uploaded", "distrusted"


def folder_of(cache: Path, address: str) -> Path:
    """Return the folder for what is remembered of the service at `address`: its journal, masks, logs and devices."""
    return cache / "aihub" / (urlsplit(address).netloc.rpartition("@")[2] or "service").replace(":", "_")


@dataclass
class JobHistory:
    """What the journal knows of one job's name; times in seconds since the epoch."""

    job_id: str | None = None
    failed: set[str] = field(default_factory=set)  # ids of jobs of that name that ended without a result
    unanswered_since: float | None = None  # a submission was begun then, and what came of it is not known


class Journal:
    """An append-only file of JSON lines below `folder`; each line is on the disk before anything else happens.

    A line that a crash cut short is passed over. Several processes may write: each append is locked, and `lock` keeps
    two of them from submitting the same job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "journal.jsonl"

    def record(self, event: str, name: str, **facts: Any) -> None:
        """Append one line and wait until it is stored."""
        line = json.dumps({"at": round(time.time(), 3), "event": event, "name": name, **facts}, ensure_ascii=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "journal.lock"), self._path.open("ab+") as stream:
            if stream.tell() > 0:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")  # closes the line that a crash cut short
            stream.write(line.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def job(self, name: str) -> JobHistory:
        """Return what is known of the job `name`."""
        history = JobHistory()
        for entry in self._entries(name):
            event = entry["event"]
            if event == INTENT:
                history.unanswered_since = history.unanswered_since or entry["at"]
                history.job_id = None  # an earlier one was given up
            elif event == REFUSED:
                history.unanswered_since = None
            elif event in (SUBMITTED, FOUND):
                history.job_id, history.unanswered_since = entry["job_id"], None
            elif event == FAILED:
                history.failed.add(entry["job_id"])
        if history.job_id in history.failed:
            history.job_id = None
        return history

    def upload(self, content_sha256: str) -> tuple[str, float | None] | None:
        """Return the latest upload of that content: its id, and when it expires (None: never); None: none to trust."""
        known = None
        for entry in self._entries(content_sha256):
            if entry["event"] == UPLOADED:
                known = entry["asset_id"], entry["expires_at"]
            elif entry["event"] == DISTRUSTED:
                known = None
        return known

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the one lock for `name`; a process that dies lets go of it."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            yield

    def _entries(self, name: str) -> Iterator[dict[str, Any]]:
        if not self._path.is_file():
            return
        with self._path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if name in line:
                    entry = _parse(line)
                    if entry.get("name") == name:
                        yield entry


def _parse(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        _LOG.debug("the journal has a line that a crash cut short")
        return {}
    return entry if isinstance(entry, dict) else {}
