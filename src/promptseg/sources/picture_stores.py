"""Where the encoded pictures of a data set lie before they are repacked: in an archive, or as files of a folder."""

import zipfile
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from promptseg.datasets.archives import read_member


class PictureStore(Protocol):
    """Pictures by their names; `where` names the place in messages."""

    where: str
    names: frozenset[str]

    def open(self, name: str) -> BinaryIO:
        """Open one of `names` for reading; `archives.DAMAGED_ARCHIVE` is raised where its bytes are damaged."""

    def read(self, name: str) -> bytes:
        """Return all of one of `names`. Raises ValueError where it is damaged."""


class ArchiveStore:
    """The members of a zip archive below `prefix`."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        self.where = f"{archive.filename}"
        self._archive = archive
        self._prefix = prefix
        members = (name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/"))
        self.names = frozenset(name.removeprefix(prefix) for name in members)

    def open(self, name: str) -> BinaryIO:
        """See PictureStore."""
        return cast(BinaryIO, self._archive.open(self._prefix + name))

    def read(self, name: str) -> bytes:
        """See PictureStore."""
        return read_member(self._archive, self._prefix + name)


class FolderStore:
    """The files of a folder, those of its folders too."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder
        files = (path for path in folder.rglob("*") if path.is_file())
        self.names = frozenset(path.relative_to(folder).as_posix() for path in files)

    def open(self, name: str) -> BinaryIO:
        """See PictureStore."""
        return (self._folder / name).open("rb")

    def read(self, name: str) -> bytes:
        """See PictureStore."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{self.where}: {name!r} cannot be read ({error}); replace the file") from error
