"""What survives a crash: a run's state, in a folder named by the hash of everything that decides the run.

A run that differs in a parameter, an input file or a line of its code has another folder, so that it is never resumed
by mistake. The folder is locked while a process trains, because killing `dvc repro` leaves its child alive.
"""

import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from promptseg.checkpoints.checkpoint import DAMAGED
from promptseg.files import atomic_path, locked, sha256_of

ABANDONED_KEPT = 3  # runs that were neither finished nor resumed: the newest stay
ABANDONED_DAYS = 30.0  # and of those, the ones whose last snapshot is younger

_STATE, _FINISHED, _LOCK = "state.pt", "finished", "lock"


def fingerprint(params: dict[str, Any], files: Sequence[Path]) -> str:
    """Hash of parameters and of the contents of files and folders, in the order given; 16 hex digits.

    Compiled Python (`__pycache__`) does not count.
    """
    digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode())
    for path in files:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(path.parent)} {sha256_of(file)}\n".encode())
    return digest.hexdigest()[:16]


class Snapshots:
    """Save and restore one run's state, at most every `every_s` seconds; of several processes, one `writes`."""

    def __init__(self, folder: Path, every_s: float, writes: bool = True) -> None:
        self._folder = folder
        self._writes = writes
        self._every_s = every_s
        self._last = time.monotonic()

    def restore(self) -> dict[str, Any] | None:
        """Return the state saved last, or None for a new run. A damaged file raises ValueError."""
        path = self._folder / _STATE
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except DAMAGED as error:
            what = type(error).__name__  # torch's own words advise to load the file unsafely
            raise ValueError(f"{path}: got a damaged snapshot ({what}); delete it to train from the start") from error
        return state

    def due(self) -> bool:
        """Whether the time between snapshots has passed."""
        return time.monotonic() - self._last >= self._every_s

    def save(self, state: dict[str, Any]) -> None:
        """Write the state atomically. Tensors, numbers, strings and containers only: it is read with weights_only."""
        self._last = time.monotonic()
        if not self._writes:
            return
        buffer = io.BytesIO()  # torch's own writer hides that a disk is full behind a RuntimeError
        torch.save(state, buffer)
        with atomic_path(self._folder / _STATE) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def finish(self) -> None:
        """Mark the run as finished: it is kept until another run starts, in case its outputs were not stored yet."""
        if self._writes:
            (self._folder / _FINISHED).touch()


@contextmanager
def open_snapshots(root: Path, run: str, every_s: float, writes: bool = True) -> Iterator[Snapshots]:
    """Lock the folder of `run` below `root` and yield its Snapshots; those of other runs are cleaned up.

    Waits while another process trains the very same run, and then finds its state. Processes that train together have
    one that `writes`, which holds the lock for all. Of other runs, states are deleted that finished, and of abandoned
    ones all but the newest ABANDONED_KEPT that are younger than ABANDONED_DAYS; never those that a process is using.
    """
    folder = root / run
    if not writes:
        yield Snapshots(folder, every_s, writes=False)
        return
    with locked(folder / _LOCK, f"another process trains this very run ({folder}); waiting, to go on where it stops"):
        _clean_up([other for other in root.iterdir() if other != folder and other.is_dir()])
        yield Snapshots(folder, every_s)


def _clean_up(others: Sequence[Path]) -> None:
    oldest = time.time() - ABANDONED_DAYS * 24 * 3600
    abandoned = sorted((other for other in others if not (other / _FINISHED).exists()), key=_saved_at, reverse=True)
    kept = [other for other in abandoned[:ABANDONED_KEPT] if _saved_at(other) >= oldest]
    for other in set(others) - set(kept):
        with suppress(Timeout), FileLock(other / _LOCK, timeout=0):  # a process that trains holds it
            shutil.rmtree(other, ignore_errors=True)


def _saved_at(folder: Path) -> float:
    """When the folder's state was written, in seconds since the epoch; where there is none yet, the folder itself."""
    for path in (folder / _STATE, folder):
        with suppress(OSError):  # another process may clean up at the same time
            return path.stat().st_mtime
    return 0.0
