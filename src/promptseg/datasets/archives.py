"""Pictures live in a few stored zip archives: one file to hash and to move, where 100,000 loose files cost minutes."""

import io
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from promptseg.files import atomic_path

# What zipfile raises where bytes are wrong: RuntimeError for a claim of encryption or of an unknown compression,
# OSError for an offset out of the file.
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError)
FIXED_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # equal content gives equal bytes, so equal hashes


def write_archive(path: Path, members: Iterable[tuple[str, bytes]]) -> int:
    """Write an uncompressed zip of (name, content), atomically and reproducibly; return the number of members.

    Raises ValueError for a name that is absolute, has `..` in it, or comes twice.
    """
    written: set[str] = set()
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            if name in written:
                raise ValueError(f"{path.name}: got the member {name!r} twice, wanted distinct names")
            written.add(checked_member_name(name, path))
            archive.writestr(zipfile.ZipInfo(name, FIXED_TIMESTAMP), content)
    return len(written)


def checked_member_name(name: str, archive: Path) -> str:
    """Return `name`, or raise ValueError when unpacking it could write outside the folder unpacked to."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise ValueError(f"{archive}: got the member name {name!r}, wanted a relative path without '..'; do not use it")
    return name


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip for reading. Raises ValueError when it is missing, corrupt or truncated, or has unsafe names."""
    if not path.is_file():
        raise ValueError(f"{path}: no such archive; check `mirror` and the data set's configuration")
    with _open(path) as archive:
        yield archive


def _open(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGED_ARCHIVE as error:
        raise ValueError(f"{path}: got a file that is not a whole zip archive ({error}); fetch it again") from error
    try:
        for name, times in Counter(archive.namelist()).items():
            checked_member_name(name, path)
            if times > 1:
                raise ValueError(f"{path}: got the member {name!r} twice, wanted distinct names; do not use it")
    except ValueError:
        archive.close()
        raise
    return archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read one member, checksum verified. Raises ValueError when it is missing or damaged."""
    try:
        return archive.read(name)
    except KeyError as error:
        raise ValueError(f"{archive.filename}: has no member {name!r}; the annotations name a missing file") from error
    except DAMAGED_ARCHIVE as error:
        raise ValueError(f"{archive.filename}: {name!r} is damaged ({error}); fetch the archive again") from error


class PictureArchives:
    """Random access to the pictures of a folder of archives; each archive is opened once and stays open.

    Not shared between threads or processes: `zipfile` seeks. A pickled copy reopens its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, zipfile.ZipFile] = {}

    def read(self, image: str) -> io.BytesIO:
        """Return the encoded picture named "<archive>/<member>". Raises ValueError when it is missing or damaged."""
        archive_name, _, member = image.partition("/")
        if archive_name not in self._open:
            path = self._folder / archive_name
            if not path.is_file():
                raise ValueError(f"{path}: no such archive of pictures; run `dvc repro fetch`")
            self._open[archive_name] = _open(path)
        return io.BytesIO(read_member(self._open[archive_name], member))

    def __getstate__(self) -> dict[str, object]:
        return {"_folder": self._folder, "_open": {}}
