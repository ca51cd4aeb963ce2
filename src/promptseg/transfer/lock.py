"""One process at a time: experiments that run side by side want the same files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Hold `<path>.lock`, waiting for another process that holds it, and saying so with `name`.

    It is released even when this process is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("another run is fetching %s; waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
