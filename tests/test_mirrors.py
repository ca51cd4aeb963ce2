"""Archives from an address, a mirror's address or a folder: verified, or refused with nothing left behind."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from promptseg import download
from promptseg.download import Stop, StoppedError
from promptseg.params import SinglePictures, Source
from promptseg.sources.mirrors import Mirror, check_watched, obtain_all, obtain_pictures, resolve_folder, side_by_side
from tests.fault_server import Fault, Files, serving
from tests.referring import jpeg

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER_SHA256 = "0" * 64
PATH = "coco/zips/train 2014.zip"
ADDRESS_PATH = "/coco/zips/train%202014.zip"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(backoff_factor=0.0, backoff_jitter=0.001))


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    (folder / PATH).parent.mkdir(parents=True)
    (folder / PATH).write_bytes(CONTENT)
    return folder


@pytest.fixture
def files() -> Iterator[Files]:
    with serving(Files({ADDRESS_PATH: CONTENT})) as served:
        yield served


@pytest.fixture
def served(files: Files) -> str:
    return files.address


def obtain(source: Source, mirror: Mirror, cache: Path) -> Path:
    (path,) = obtain_all([source], mirror, cache)
    return path


def source(
    url: str | None = "http://127.0.0.1:9/x.zip", size: int | None = len(CONTENT), sha256: str | None = SHA256
) -> Source:
    return Source(PATH, url, size, sha256)


def entries(folder: Path) -> list[str]:
    """Whole archives, and what is in their place."""
    beside = (".lock", ".json", ".partial")
    return [path.name for path in folder.iterdir() if path.suffix not in beside] if folder.exists() else []


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
    files: Files, mirror: Path, tmp_path: Path, line: str
) -> None:
    full_size = source(size=13_510_573_713, sha256=OTHER_SHA256)
    (mirror / "SHA256SUMS").write_text(line)
    files.content["/SHA256SUMS"] = line.encode()
    assert obtain(full_size, str(mirror), tmp_path / "cache") == mirror / PATH
    assert obtain(full_size, files.address, tmp_path / "cache").read_bytes() == CONTENT


@pytest.mark.parametrize("sums", [None, f"{OTHER_SHA256}  {PATH}\n", f"{SHA256}  another/path.zip\n"])
def test_other_bytes_are_refused_everywhere(files: Files, mirror: Path, tmp_path: Path, sums: str | None) -> None:
    if sums:
        (mirror / "SHA256SUMS").write_text(sums)
        files.content["/SHA256SUMS"] = sums.encode()
    wrong = source(files.address + ADDRESS_PATH, sha256=OTHER_SHA256)
    for base in (None, files.address, str(mirror)):
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
        with pytest.raises(ValueError, match="not reached, "):
            obtain(source(), mirror, tmp_path / "cache")


@pytest.mark.parametrize("name", ["nowhere", "file:///tmp", ""])
def test_a_mirror_that_is_not_there_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="wanted null, a folder or an http"):
        obtain(source(), name, tmp_path / "cache")


def test_mirrors_are_tried_in_order(files: Files, mirror: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    empty = Files({})
    with serving(empty):
        got = obtain(source(), ("nowhere", str(tmp_path), empty.address, files.address, str(mirror)), cache)
    assert got.read_bytes() == CONTENT
    assert entries(cache) == [got.name]
    assert [path for path, _, _ in empty.requests] == ["/SHA256SUMS", ADDRESS_PATH]
    assert obtain(source(), (str(mirror), "http://127.0.0.1:9"), cache) == mirror / PATH


def test_a_second_mirror_ends_what_the_first_began(files: Files, tmp_path: Path) -> None:
    half = len(CONTENT) // 2
    files.faults = [Fault(status=404), Fault(cut_at=half)]
    files.always = Fault(status=403)
    with serving(Files({ADDRESS_PATH: CONTENT})) as second:
        got = obtain(source(), (files.address, second.address), tmp_path / "cache")
        assert got.read_bytes() == CONTENT
        assert [asked for _, asked, _ in second.requests] == [None, f"bytes={half}-"]


def test_when_no_mirror_has_it_each_says_why(files: Files, tmp_path: Path) -> None:
    files.content.clear()
    with pytest.raises(ValueError, match=r"none of 2 mirrors .*this mirror has no .*; .*answers 404"):
        obtain(source(), (str(tmp_path), files.address), tmp_path / "cache")


def test_what_has_no_public_address_needs_a_mirror(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mirror: got null, wanted a place that has 'coco/zips/train 2014.zip'"):
        obtain(source(url=None), None, tmp_path / "cache")
    assert obtain(source(url=None), str(mirror), tmp_path / "cache") == mirror / PATH


def test_a_sum_that_nobody_publishes_is_logged(
    files: Files, mirror: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = source(files.address + ADDRESS_PATH, None, None)
    for place in (None, str(mirror)):
        assert obtain(unknown, place, tmp_path / "cache").read_bytes() == CONTENT
        assert SHA256 in caplog.text
        caplog.clear()


def test_what_was_used_is_recorded_and_in_the_log(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The address, the version that the server named and the sum; a second run says the same of what it finds."""
    caplog.set_level("INFO")
    etag = f'"{SHA256[:16]}"'
    told = f"from {files.address}{ADDRESS_PATH} ({etag}; sha256 {SHA256})"
    for times in (1, 2):
        got = obtain(source(files.address + ADDRESS_PATH, None, None), None, tmp_path / "cache")
        assert caplog.text.count(told) == times
    assert "delete it to fetch it again" in caplog.text
    record = json.loads(got.with_name(got.name + ".origin.json").read_text())
    assert record == {"address": files.address + ADDRESS_PATH, "validator": etag, "sha256": SHA256}


def test_damage_is_noticed_where_no_sum_is_published(files: Files, tmp_path: Path) -> None:
    unknown = source(files.address + ADDRESS_PATH, None, None)
    obtain(unknown, None, tmp_path / "cache").write_bytes(b"damaged")
    assert obtain(unknown, None, tmp_path / "cache").read_bytes() == CONTENT


def single(address: str, name: str, mirror: Mirror, cache: Path) -> bytes:
    return obtain_pictures({name}, SinglePictures("single", address, 2), mirror, cache)[name].read_bytes()


def test_pictures_of_two_mirrors_are_not_mixed_in_the_cache(tmp_path: Path) -> None:
    """Of either, what it gave; the second time without a request."""
    one, two = Files({"/single/a.jpg": jpeg(1)}), Files({"/single/a.jpg": jpeg(2)})
    with serving(one), serving(two):
        for _ in range(2):
            for mirror, seed in ((one, 1), (two, 2)):
                assert single("http://127.0.0.1:9", "a.jpg", mirror.address, tmp_path) == jpeg(seed)
        assert len(one.requests) == len(two.requests) == 1


def test_a_picture_that_is_repaired_in_a_folder_is_used(tmp_path: Path) -> None:
    picture = tmp_path / "mirror" / "single" / "a.jpg"
    picture.parent.mkdir(parents=True)
    for seed in (1, 2):
        picture.write_bytes(jpeg(seed))
        assert single("http://127.0.0.1:9", "a.jpg", str(tmp_path / "mirror"), tmp_path / "cache") == jpeg(seed)
    picture.write_bytes(jpeg(1)[:-60])
    with pytest.raises(ValueError, match=rf"{picture}: got no picture, or a damaged one"):
        single("http://127.0.0.1:9", "a.jpg", str(tmp_path / "mirror"), tmp_path / "cache")


def test_several_archives_come_side_by_side(files: Files, tmp_path: Path) -> None:
    """Each answer waits for the other's request."""
    other = b"other" * 1000
    files.content["/other.zip"] = other
    files.both = threading.Barrier(2, timeout=30)
    second = Source("other.zip", files.address + "/other.zip", len(other), hashlib.sha256(other).hexdigest())
    got = obtain_all([source(files.address + ADDRESS_PATH), second], None, tmp_path / "cache")
    assert [path.read_bytes() for path in got] == [CONTENT, other]


def test_a_failure_ends_the_others_and_they_keep_what_came(files: Files, tmp_path: Path) -> None:
    """The large one trickles without end, the small one is refused; the next run goes on."""
    files.always = Fault(trickle_s=0.01)
    large = source(files.address + ADDRESS_PATH)
    small = replace(large, path="x.zip", url="http://127.0.0.1:9/x", sha256=OTHER_SHA256)
    with pytest.raises(ValueError, match="not reached, "):
        obtain_all([large, small], None, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []
    kept = (tmp_path / "cache" / f"{SHA256[:16]}-train 2014.zip.partial").stat().st_size
    files.always, files.requests = None, []
    assert obtain(large, None, tmp_path / "cache").read_bytes() == CONTENT
    assert [asked for _, asked, _ in files.requests] == [f"bytes={kept}-" if kept else None]


def test_an_error_of_ours_is_raised_before_that_of_being_stopped() -> None:
    stop = Stop()

    def stopped() -> None:
        assert stop.wait(30)
        raise StoppedError

    def failing() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        side_by_side([stopped, failing], stop, 2)
    assert side_by_side([lambda: 1, lambda: 2], Stop(), 1) == [1, 2]


def test_a_mirror_that_dvc_does_not_watch_is_refused(mirror: Path, tmp_path: Path) -> None:
    """A folder above it will do; addresses, and folders that are not there, cannot be watched."""
    for watch in (mirror, tmp_path):
        check_watched((str(mirror), "http://127.0.0.1:9", "nowhere"), str(watch))
    check_watched(None, "configs/watch_nothing")
    with pytest.raises(
        ValueError, match=rf"^watch: got 'configs', wanted {mirror}, which `mirror` .* -S watch={mirror} "
    ):
        check_watched(("https://mirror.example", str(mirror)), "configs")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ValueError, match=rf"wanted {mirror} and {other}, .* or a folder that holds them"):
        check_watched((str(mirror), str(other)), str(mirror))


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
