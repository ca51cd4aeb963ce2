"""What was asked of the service, and under which name; it outlives crashes and experiments.

A job's name is the hash of what goes in: the same work has the same name on every run, in every experiment. The journal
has a line for each request that costs something, written before and after it.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import INTEGERS, Graph, read_record

INTENT, REFUSED, SUBMITTED, FOUND, FAILED = "intent", "refused", "submitted", "found", "failed"
UPLOADED, DISTRUSTED = "uploaded", "distrusted"
PREFIX = "promptseg"
FLOAT16 = "--qnn_options default_graph_htp_precision=FLOAT16"
_DIGITS = 20  # 80 bits of the hash: no two jobs of one account will ever meet
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """A graph to compile for a device, from which the names and options of all its jobs follow."""

    graph_sha256: str
    device: str
    qairt_version: str
    outputs: tuple[str, ...]  # names of the graph's
    precision: str = "fp16"  # of the graph's record

    @classmethod
    def of(cls, graph: Graph, device: str, qairt_version: str) -> "Work":
        """Return the work on one of an export's graphs."""
        outputs, precision = tuple(spec.name for spec in graph.outputs), read_record(graph.path).precision
        return cls(graph.sha256, device, qairt_version, outputs, precision)

    @property
    def compile_options(self) -> str:
        """The compiler's options: runtime, precision and output names are stated, never left to a default."""
        names = ",".join(self.outputs)
        options = f"--target_runtime qnn_context_binary --qairt_version {self.qairt_version} --output_names {names}"
        # What a quantized graph leaves in float is computed in float16, too, and only `mixed` may leave anything.
        return options if self.precision in INTEGERS else f"{options} {FLOAT16}"

    @property
    def run_options(self) -> str:
        """Options of every job that runs the binary: a device's default version may be too old to load it."""
        return f"--qairt_version {self.qairt_version}"

    def profile_options(self, iterations: int) -> str:
        """Options of the job that measures over `iterations` runs."""
        return f"{self.run_options} --max_profiler_iterations {iterations}"

    @property
    def compile_name(self) -> str:
        """Name of the compile job."""
        content = {"graph": self.graph_sha256, "device": self.device, "options": self.compile_options}
        return job_name("compile", content)

    def profile_name(self, iterations: int) -> str:
        """Name of the profile job."""
        return job_name("profile", {"binary": self.compile_name, "options": self.profile_options(iterations)})

    def infer_name(self, chunk_sha256: str) -> str:
        """Name of the inference job on one chunk of samples."""
        content = {"binary": self.compile_name, "options": self.run_options, "samples": chunk_sha256}
        return job_name("infer", content)


def job_name(step: str, content: Mapping[str, str]) -> str:
    """Name a job of `step` after the hash of `content`."""
    text = json.dumps({"step": step, **content}, sort_keys=True)
    return f"{PREFIX}-{step}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"


class SampleHasher:
    """Hashes of samples' tensors; the phrases of one picture share its array, which is then read once."""

    def __init__(self) -> None:
        self._image: object = None
        self._image_hash = b""

    def digest(self, sample: HubInput) -> str:
        """Return the SHA-256, in hex, of a sample's two tensors; names and order of samples play no part."""
        return hashlib.sha256(self.picture_digest(sample) + sample.text_input.tobytes()).hexdigest()

    def picture_digest(self, sample: HubInput) -> bytes:
        """Return the SHA-256 of a sample's picture."""
        if sample.image_input is not self._image:
            self._image = sample.image_input  # held, so that its place in memory is not taken by another
            self._image_hash = hashlib.sha256(sample.image_input.tobytes()).digest()
        return self._image_hash


def folder_of(cache: Path, address: str, account: str) -> Path:
    """Return the folder for what is remembered of one account at a service: its journal, masks and logs."""
    return cache / "aihub" / (urlsplit(address).netloc or "service").replace(":", "_") / account


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
        """Hold the one lock for `name`; a process that dies releases it."""
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
