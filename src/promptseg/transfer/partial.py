"""What has come of one file so far, and the running sum of it; it outlives the process that was fetching it."""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from promptseg.files import DISK_FULL, atomic_path, read_json, write_json

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Origin:
    """Where the bytes came from: an address, the version that it named, and the size of the whole, where it said so."""

    address: str
    validator: str | None
    total: int | None


class PartialFile:
    """The file at `path`, its Origin beside it as JSON. `size` counts the bytes that came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size if path.is_file() else 0
        self._origin_path = path.with_name(path.name + ".json")
        self._digest = hashlib.sha256()
        self._summed = 0

    def origin(self) -> Origin | None:
        """Return what `set_origin` wrote; None where nothing was, or nothing that can be read."""
        try:
            return Origin(**read_json(self._origin_path))
        except (FileNotFoundError, TypeError, ValueError):
            return None

    def set_origin(self, origin: Origin) -> None:
        """Write down where the bytes that follow come from."""
        if self.origin() != origin:
            write_json(self._origin_path, asdict(origin))

    @contextmanager
    def appending(self) -> Iterator[Callable[[bytes], None]]:
        """Yield a function that appends a block. Raises OSError, naming the file, when the disk is full."""
        self._catch_up()
        try:
            with self.path.open("ab", buffering=0) as stream:  # what came is there even after kill -9

                def append(block: bytes) -> None:
                    rest = memoryview(block)
                    while rest:
                        rest = rest[stream.write(rest) or 0 :]
                    self._digest.update(block)
                    self._summed += len(block)
                    self.size += len(block)

                yield append
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            reason = f"{error.strerror}: make room and run again; what came is kept"
            raise OSError(error.errno, reason, str(self.path)) from error

    def sha256(self) -> str:
        """Hex digest of the bytes that came."""
        self._catch_up()
        return self._digest.hexdigest()

    def drop(self) -> None:
        """Begin again with nothing."""
        self.path.unlink(missing_ok=True)
        self._origin_path.unlink(missing_ok=True)
        self.size = self._summed = 0
        self._digest = hashlib.sha256()

    def move_to(self, target: Path) -> None:
        """Move the bytes to `target`, which appears whole or not at all, on another disk too."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()  # of an empty file nothing came
        try:
            self.path.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with atomic_path(target) as temporary:
                shutil.copyfile(self.path, temporary)
        self.drop()

    def _catch_up(self) -> None:
        """Sum what an earlier process left, once."""
        if self._summed == self.size:
            return
        self._digest = hashlib.sha256()
        with self.path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                self._digest.update(block)
        self._summed = self.size
