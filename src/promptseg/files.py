"""Files appear whole or not at all: written under a temporary name beside the target, then renamed."""

import csv
import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import pandas as pd  # whoever has a table has loaded it

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_log = logging.getLogger(__name__)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path (`<name>.part`) that becomes `target`, a file or a folder, if the block succeeds.

    On an error, a full disk included (OSError, naming `target`), the temporary is removed and an existing `target`
    stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            _remove(target)
        temporary.replace(target)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError) and error.errno in DISK_FULL and error.filename is None:
            raise OSError(error.errno, f"{error.strerror}: make room and run again", str(target)) from error
        raise


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path`; while another process holds it, wait, with the message `busy` in the log.

    It is released even when this process is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("%s", busy)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON for people and for diffs: indented, in the order given, NaN refused (ValueError)."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: Path, table: "pd.DataFrame", decimals: int = 5) -> None:
    """Write a table as CSV, floats with so many decimals at most, an empty cell where there is no value."""
    floats = table.select_dtypes("float")
    rounded = table.assign(**{name: [round(value, decimals) for value in floats[name]] for name in floats})
    with atomic_path(path) as temporary:
        rounded.to_csv(temporary, index=False, lineterminator="\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV, one a line, without pandas, which takes half a second to load; None is an empty cell."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; ValueError when the file holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: got text that is not JSON ({error}), wanted one JSON object") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got {type(content).__name__}, wanted one JSON object")
    return content


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
