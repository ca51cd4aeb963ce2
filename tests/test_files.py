"""Files appear whole or not at all, whatever goes wrong in between."""

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptseg.files import atomic_path, read_json, sha256_of, write_json


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 256 KiB: the kernel refuses the write that would, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [path.name for path in target.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        raise error(temporary.write_text("half"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "file.part").mkdir()
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"make room and run again: '.*big'"), atomic_path(tmp_path / "big") as temporary:
        temporary.write_bytes(bytes(1 << 20))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_once_by_nested_files(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="make room") as caught,
        atomic_path(tmp_path / "folder") as folder,
        atomic_path(folder / "file"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value).count("make room") == 1
    assert list(tmp_path.iterdir()) == []


def test_json_there_and_back(tmp_path: Path) -> None:
    content = {"b": 1, "a": [1.5, None, "Ä"]}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert (tmp_path / "x.json").read_text(encoding="utf-8").startswith('{\n  "b": 1')


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize("text", ["", "{", "[1]", "1"])
def test_json_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="wanted one JSON object"):
        read_json(tmp_path / "x.json")


def test_sha256_of_the_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
