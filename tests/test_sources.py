"""Archives from an address, a mirror's address or a folder: verified, or refused with nothing left behind."""

import errno
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from promptseg.datasets import sources
from promptseg.datasets.sources import obtain, resolve_folder
from promptseg.params import Source

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER_SHA256 = "0" * 64
PATH = "coco/zips/train 2014.zip"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class BrokenHandler(BaseHTTPRequestHandler):
    """Promises all of CONTENT and sends half of it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2])

    def log_message(self, *_: Any) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that hang up, which here they do on purpose."""

    def handle_error(self, *_: Any) -> None:
        pass


def serve(handler: Any) -> Iterator[str]:
    with QuietServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    (folder / PATH).parent.mkdir(parents=True)
    (folder / PATH).write_bytes(CONTENT)
    return folder


@pytest.fixture
def served(mirror: Path) -> Iterator[str]:
    yield from serve(partial(QuietHandler, directory=str(mirror)))


@pytest.fixture
def broken() -> Iterator[str]:
    yield from serve(BrokenHandler)


def source(url: str = "http://127.0.0.1:9/x.zip", size: int = len(CONTENT), sha256: str = SHA256) -> Source:
    return Source(PATH, url, size, sha256)


def entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_a_download_is_verified_and_named_by_its_sum(served: str, tmp_path: Path) -> None:
    got = obtain(source(f"{served}/coco/zips/train%202014.zip"), None, tmp_path / "cache")
    assert got == tmp_path / "cache" / f"{SHA256[:16]}-train 2014.zip"
    assert got.read_bytes() == CONTENT
    assert entries(tmp_path / "cache") == [got.name]


def test_a_second_time_nothing_is_downloaded(served: str, tmp_path: Path) -> None:
    first = obtain(source(), served, tmp_path / "cache")
    assert obtain(source(), None, tmp_path / "cache") == first  # its url answers to nobody


def test_a_damaged_cache_is_fetched_again(
    served: str, mirror: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    got = obtain(source(), served, tmp_path / "cache")
    got.write_bytes(CONTENT[:-1])
    assert obtain(source(), served + "/", tmp_path / "cache").read_bytes() == CONTENT
    assert "fetching it again" in caplog.text
    assert (mirror / PATH).read_bytes() == CONTENT


def test_a_folder_is_used_in_place(mirror: Path, tmp_path: Path) -> None:
    assert obtain(source(), str(mirror), tmp_path / "cache") == mirror / PATH
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("line", [f"{SHA256}  {PATH}\n", f"{SHA256} *./{PATH}\n"])
def test_a_mirrors_own_sums_count_in_a_folder_and_at_an_address(
    served: str, mirror: Path, tmp_path: Path, line: str
) -> None:
    full_size = source(size=13_510_573_713, sha256=OTHER_SHA256)
    (mirror / "SHA256SUMS").write_text(line)
    assert obtain(full_size, str(mirror), tmp_path / "cache") == mirror / PATH
    assert obtain(full_size, served, tmp_path / "cache").read_bytes() == CONTENT


@pytest.mark.parametrize("sums", [None, f"{OTHER_SHA256}  {PATH}\n", f"{SHA256}  another/path.zip\n"])
def test_other_bytes_are_refused_everywhere(served: str, mirror: Path, tmp_path: Path, sums: str | None) -> None:
    if sums:
        (mirror / "SHA256SUMS").write_text(sums)
    wrong = source(f"{served}/coco/zips/train%202014.zip", sha256=OTHER_SHA256)
    for base in (None, served, str(mirror)):
        with pytest.raises(ValueError, match=f"got sha256 {SHA256}, wanted {OTHER_SHA256}: it is damaged or another"):
            obtain(wrong, base, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_server_that_offers_another_size_is_refused_at_once(served: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 1,280,000 bytes offered, wanted 7: another version"):
        obtain(source(f"{served}/coco/zips/train%202014.zip", size=7), None, tmp_path / "cache")


def test_a_server_without_the_file_is_refused(served: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the server answers 404"):
        obtain(source(f"{served}/nothing.zip"), None, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_server_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for mirror in (None, "http://127.0.0.1:9"):
        with pytest.raises(ValueError, match="not reached, or broken off"):
            obtain(source(), mirror, tmp_path / "cache")


def test_a_connection_that_breaks_off_leaves_nothing(broken: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 640,000 of 1,280,000 bytes"):
        obtain(source(f"{broken}/x.zip"), None, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_disk_without_room_is_refused_first(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"got 1,000 free bytes, wanted 1,280,000"):
        obtain(source(), served, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_disk_that_fills_leaves_nothing(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullAfterABlock(sources.tqdm):
        def update(self, _: float | None = 1) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources, "tqdm", FullAfterABlock)
    with pytest.raises(OSError, match="make room and run again"):
        obtain(source(), served, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


@pytest.mark.parametrize("name", ["nowhere", "file:///tmp", ""])
def test_a_mirror_that_is_not_there_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="wanted null, a folder or an http"):
        obtain(source(), name, tmp_path / "cache")


def test_a_mirror_without_the_file_is_refused(mirror: Path, tmp_path: Path) -> None:
    (mirror / PATH).unlink()
    with pytest.raises(ValueError, match=r"this mirror has no 'coco/zips/train 2014.zip'"):
        obtain(source(), str(mirror), tmp_path / "cache")


def test_sums_that_are_none_are_refused(mirror: Path, tmp_path: Path) -> None:
    (mirror / "SHA256SUMS").write_text("<html>\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS:1: got '<html>'"):
        obtain(source(), str(mirror), tmp_path / "cache")


def test_a_relative_mirror_is_found_from_a_queued_experiment(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    experiment = root / ".dvc" / "tmp" / "exps" / "tmpx"
    experiment.mkdir(parents=True)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(root)
    assert resolve_folder("../mirror") == mirror
    monkeypatch.chdir(experiment)
    assert resolve_folder("../mirror") == mirror
    monkeypatch.chdir("/")
    monkeypatch.setenv("DVC_ROOT", str(root))
    assert resolve_folder("../mirror") == mirror
