"""Every fault of a server ends in the right bytes or in one clear error, and what came is not fetched twice."""

import errno
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.download import MADE_UP, made_up_blocks, serving_made_up
from promptseg import download
from promptseg.download import RefusedError, Stop, StoppedError, explain_connection_error, fetch_small, first_of
from promptseg.download import download as fetch
from tests.fault_server import Fault, Files, serving
from tests.imports import ROOT

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[::-1]
NAME = "/a.zip"
HALF = len(CONTENT) // 2


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(backoff_factor=0.0, backoff_jitter=0.001))


@pytest.fixture
def files() -> Iterator[Files]:
    with serving(Files({NAME: CONTENT})) as served:
        yield served


def get(
    files: Files,
    folder: Path,
    *,
    sha256: str | None = SHA256,
    size: int | None = len(CONTENT),
    stop: Stop | None = None,
) -> bytes:
    target = folder / "a.zip"
    got = fetch(files.address + NAME, target, sha256=sha256, expected_bytes=size, stop=stop)
    content = target.read_bytes()
    assert got == hashlib.sha256(content).hexdigest()
    assert {path.name for path in folder.iterdir()} == {"a.zip", "a.zip.lock", "a.zip.origin.json"}
    return content


def asked(files: Files) -> list[str | None]:
    return [wanted for _, wanted, _ in files.requests]


def kept(folder: Path) -> int:
    """Bytes of a partial file that wait for the next run; and nothing lies where the whole should."""
    assert not (folder / "a.zip").exists()
    return sum(path.stat().st_size for path in folder.glob("a.zip.partial"))


def test_one_request_is_enough(files: Files, tmp_path: Path) -> None:
    assert get(files, tmp_path) == CONTENT
    assert get(files, tmp_path) == CONTENT
    assert asked(files) == [None]


def test_an_empty_file_is_a_file(files: Files, tmp_path: Path) -> None:
    files.content[NAME] = b""
    assert get(files, tmp_path, sha256=hashlib.sha256(b"").hexdigest(), size=0) == b""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(CONTENT)), max_size=4), known=st.booleans(), dated=st.booleans())
def test_cuts_at_any_byte_end_in_the_right_bytes(
    files: Files, tmp_path_factory: pytest.TempPathFactory, cuts: list[int], known: bool, dated: bool
) -> None:
    files.faults = [Fault(cut_at=cut) for cut in cuts]
    files.dated, files.requests = dated, []
    folder = tmp_path_factory.mktemp("cuts")
    assert get(files, folder, sha256=SHA256 if known else None, size=len(CONTENT) if known else None) == CONTENT
    if known and sum(cuts) < len(CONTENT):
        ends = [sum(cuts[: count + 1]) for count in range(len(cuts))]
        assert asked(files) == [None, *(f"bytes={end}-" if end else None for end in ends)]


def test_without_a_sum_only_the_same_version_is_continued(files: Files, tmp_path: Path) -> None:
    """The file changes after a cut: If-Range makes the server send the new one whole."""
    files.faults = [Fault(content=OTHER, cut_at=HALF)]
    assert get(files, tmp_path, sha256=None, size=None) == CONTENT
    ((_, first, _), (_, second, condition)) = files.requests
    assert (first, second) == (None, f"bytes={HALF}-")
    assert condition == f'"{hashlib.sha256(OTHER).hexdigest()[:16]}"'


def test_a_weak_etag_is_no_version(files: Files, tmp_path: Path) -> None:
    files.faults = [Fault(cut_at=HALF, headers={"ETag": 'W/"1"', "Last-Modified": ""})]
    assert get(files, tmp_path, sha256=None, size=None) == CONTENT
    assert asked(files) == [None, None]


def test_a_sum_that_nobody_publishes_is_logged(files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    get(files, tmp_path, sha256=None, size=None)
    assert f"gives no checksum; the sha256 of what came is {SHA256}" in caplog.text


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(files: Files, tmp_path: Path, status: int) -> None:
    files.faults = [Fault(status=status)] * (download.TRIES - 1)
    assert get(files, tmp_path) == CONTENT


def test_a_server_that_stays_in_trouble_is_given_up(files: Files, tmp_path: Path) -> None:
    files.always = Fault(status=500)
    with pytest.raises(ValueError, match=r"the server answers 500 .*6 times in a row"):
        get(files, tmp_path)
    assert len(files.requests) == download.TRIES


def test_progress_renews_the_patience(files: Files, tmp_path: Path) -> None:
    files.faults = [Fault(cut_at=10_000)] * 20
    assert get(files, tmp_path) == CONTENT
    assert len(files.requests) == 21


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_a_server_that_says_no_is_not_asked_again(files: Files, tmp_path: Path, status: int) -> None:
    files.always = Fault(status=status)
    with pytest.raises(RefusedError, match=f"the server answers {status} ") as caught:
        get(files, tmp_path)
    assert caught.value.status == status
    assert len(files.requests) == 1


class Waits(Stop):
    """Notes what it is asked to wait, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


def test_waits_grow_and_are_spread(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    stop = Waits()
    files.faults = [Fault(status=500)] * 5
    assert get(files, tmp_path, stop=stop) == CONTENT
    assert stop.seconds[0] == 0
    jitters = [seconds - 2**n for n, seconds in enumerate(stop.seconds[1:], start=1)]
    assert all(0 <= jitter <= 1 for jitter in jitters)
    assert len(set(jitters)) == 4


def test_retry_after_is_honoured_in_seconds_and_as_a_date(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    stop = Waits()
    dated = formatdate(time.time() + 300, usegmt=True)
    texts = ["7", dated, "Wed, 01 Jan 2020 00:00:00 GMT", "soon"]
    files.faults = [Fault(status=503, headers={"Retry-After": text}) for text in texts]
    assert get(files, tmp_path, stop=stop) == CONTENT
    assert stop.seconds[0] == 7
    assert 200 < stop.seconds[1] <= 300
    assert stop.seconds[2] == 0
    assert 8 <= stop.seconds[3] <= 9


def test_a_server_that_asks_for_too_much_time_is_given_up(files: Files, tmp_path: Path) -> None:
    files.always = Fault(status=429, headers={"Retry-After": "86400"})
    with pytest.raises(ValueError, match=r"answers 429 .* try again later: in 86,400 s, it says"):
        get(files, tmp_path)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_killed_run_is_taken_up(files: Files, tmp_path: Path, ranges: bool) -> None:
    """Whatever a process left; where the server sends no ranges, from the start."""
    files.always = Fault(cut_at=HALF, ignores_range=True)
    with pytest.raises(ValueError, match=r"IncompleteRead\(128000 bytes read, 128000 more.*6 times in a row"):
        get(files, tmp_path)
    assert kept(tmp_path) == HALF
    files.always, files.requests, files.ranges = None, [], ranges
    assert get(files, tmp_path) == CONTENT
    assert asked(files) == [f"bytes={HALF}-"]


FETCH = """
import sys
from pathlib import Path
from promptseg.download import download
download(sys.argv[1], Path(sys.argv[3]) / "a.zip", sha256=sys.argv[2], expected_bytes=None)
"""


def test_after_kill_9_nothing_that_came_is_fetched_again(files: Files, tmp_path: Path) -> None:
    files.faults = [Fault(cut_at=HALF, trickle_s=3600)]
    command = [sys.executable, "-c", FETCH, files.address + NAME, SHA256, str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, stderr=subprocess.PIPE) as run:
        partial = tmp_path / "a.zip.partial"
        while not partial.exists() or partial.stat().st_size <= HALF:
            assert run.poll() is None
            time.sleep(0.01)
        run.kill()
    assert kept(tmp_path) == HALF + 1
    assert get(files, tmp_path) == CONTENT
    assert asked(files) == [None, f"bytes={HALF + 1}-"]


def test_a_whole_partial_file_needs_no_request(files: Files, tmp_path: Path) -> None:
    leave(tmp_path, CONTENT)
    assert get(files, tmp_path) == CONTENT
    assert asked(files) == []


def leave(folder: Path, content: bytes) -> None:
    (folder / "a.zip.partial").write_bytes(content)


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize("content", [OTHER[:HALF], OTHER, CONTENT + b"x", b"\0" * 7])
def test_a_damaged_partial_file_costs_one_more_try(
    files: Files, tmp_path: Path, content: bytes, size: int | None
) -> None:
    leave(tmp_path, content)
    assert get(files, tmp_path, size=size) == CONTENT
    assert asked(files)[-1] is None


def test_other_bytes_are_refused_and_not_kept(files: Files, tmp_path: Path) -> None:
    files.content[NAME] = OTHER
    with pytest.raises(ValueError, match=f"wanted {SHA256}: it is damaged or another version"):
        get(files, tmp_path)
    assert kept(tmp_path) == 0
    assert len(files.requests) == 1


def test_other_bytes_in_pieces_are_refused_too(files: Files, tmp_path: Path) -> None:
    files.content[NAME] = OTHER
    files.faults = [Fault(cut_at=HALF), Fault(), Fault(cut_at=HALF)]
    with pytest.raises(ValueError, match=f"wanted {SHA256}: it is damaged or another version"):
        get(files, tmp_path)
    assert kept(tmp_path) == 0


@pytest.mark.parametrize("size", [1, len(CONTENT) + 1])
def test_an_offer_of_another_size_is_refused_before_a_byte(files: Files, tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"got 256,000 bytes offered, wanted {size:,}: another version"):
        get(files, tmp_path, size=size)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(headers={"Content-Length": str(len(CONTENT) + 500)}),  # promises more than it sends
        Fault(headers={"Content-Length": str(len(CONTENT) - 500)}),  # or less: the sum tells
        Fault(headers={"Content-Length": "many"}),
        Fault(headers={"Content-Length": ""}, cut_at=HALF),  # no length, and cut
    ],
)
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_wrong_length_ends_in_the_right_bytes_or_an_error(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, size: int | None
) -> None:
    monkeypatch.setattr(download, "SILENCE_S", 0.2)  # this server promises more and leaves the line open
    files.faults = [fault]
    try:
        got = get(files, tmp_path, size=size)
    except ValueError as error:
        got, message = b"", str(error)
        assert kept(tmp_path) == 0
    assert got == CONTENT or "another version" in message


def test_a_body_beyond_its_size_is_refused(files: Files, tmp_path: Path) -> None:
    files.always = Fault(headers={"Content-Length": ""}, extra=b"x")
    with pytest.raises(ValueError, match=r"got 256,001 bytes and more, wanted 256,000: another version"):
        get(files, tmp_path)
    assert kept(tmp_path) == 0


def test_without_a_size_and_a_sum_nothing_would_tell(files: Files, tmp_path: Path) -> None:
    files.always = Fault(headers={"Content-Length": ""})
    assert get(files, tmp_path) == CONTENT
    with pytest.raises(ValueError, match="got no size, wanted one: without a checksum nothing else tells"):
        get(files, tmp_path / "other", sha256=None, size=None)


@pytest.mark.parametrize("cut_at", [None, 0, HALF])
def test_chunks_tell_where_the_end_is(files: Files, tmp_path: Path, cut_at: int | None) -> None:
    """No length is sent, and no sum is known: a cut is noticed all the same."""
    files.faults = [Fault(chunked=True, cut_at=cut_at)]
    assert get(files, tmp_path, sha256=None, size=None) == CONTENT
    assert len(files.requests) == (1 if cut_at is None else 2)


def test_a_redirection_is_followed_and_the_range_kept(files: Files, tmp_path: Path) -> None:
    files.content["/moved.zip"] = files.content.pop(NAME)
    moved = Fault(status=302, headers={"Location": "/moved.zip"})
    files.faults = [moved, Fault(cut_at=HALF), moved]
    assert get(files, tmp_path) == CONTENT
    assert files.requests[-1][:2] == ("/moved.zip", f"bytes={HALF}-")


def test_a_redirection_without_end_is_refused(files: Files, tmp_path: Path) -> None:
    files.always = Fault(status=302, headers={"Location": NAME})
    with pytest.raises(ValueError, match="not an address that can be read"):
        get(files, tmp_path)


@pytest.mark.parametrize("shift", [-100, 100, HALF])
def test_another_range_than_was_asked_for_is_not_taken(files: Files, tmp_path: Path, shift: int) -> None:
    files.faults = [Fault(cut_at=HALF), Fault(shift=shift)]
    assert get(files, tmp_path) == CONTENT
    assert asked(files) == [None, f"bytes={HALF}-", None]


def test_an_encoding_that_was_not_asked_for_is_refused(files: Files, tmp_path: Path) -> None:
    files.always = Fault(headers={"Content-Encoding": "gzip"})
    with pytest.raises(ValueError, match="got the encoding 'gzip', wanted the file's own bytes"):
        get(files, tmp_path)


def test_a_trickle_is_as_good_as_silence(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TRICKLE_S", 0.02)
    files.faults = [Fault(trickle_s=0.005)]
    assert get(files, tmp_path) == CONTENT
    assert asked(files)[1] not in (None, "bytes=0-")  # what trickled in was kept


def test_silence_is_not_waited_out(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE_S", 0.05)
    files.faults = [Fault(trickle_s=3600)]
    assert get(files, tmp_path) == CONTENT
    assert asked(files) == [None, "bytes=1-"]


def test_a_server_that_is_not_there_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not reached, .*6 times in a row"):
        get(Files({}, address="http://127.0.0.1:9"), tmp_path)


@pytest.mark.parametrize("address", ["gopher://x", "http://", "nothing"])
def test_what_is_no_address_is_refused_at_once(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match="not an address that can be read"):
        fetch(address, tmp_path / "a", sha256=None, expected_bytes=None)


def test_addresses_are_tried_in_order_and_share_what_came(files: Files, tmp_path: Path) -> None:
    """The first has none, the second breaks off for good, the third has another version, the fourth ends it."""
    with serving(Files({NAME: OTHER + b"x"})) as third, serving(Files({NAME: CONTENT})) as fourth:
        files.faults = [Fault(cut_at=HALF)]
        files.always = Fault(status=500)
        addresses = [files.address + "/none.zip", files.address + NAME, third.address + NAME, fourth.address + NAME]
        files.faults.insert(0, Fault(status=404))
        target = tmp_path / "a.zip"
        first_of(addresses, lambda address: fetch(address, target, sha256=SHA256, expected_bytes=len(CONTENT)))
        assert target.read_bytes() == CONTENT
        assert asked(third) == asked(fourth) == [f"bytes={HALF}-"]


def test_when_no_address_gives_it_each_says_why(files: Files, tmp_path: Path) -> None:
    addresses = [files.address + "/one.zip", files.address + "/two.zip"]
    with pytest.raises(ValueError, match=r"none of 2 mirrors .*one.zip: .* 404 .*two.zip: .* 404"):
        first_of(addresses, lambda address: fetch(address, tmp_path / "a", sha256=SHA256, expected_bytes=None))


def test_room_is_looked_for_before_a_byte_is_written(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, CONTENT[:HALF])
    usage = type("Usage", (), {"free": HALF - 1})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"got 127,999 free bytes, wanted 128,000 for a.zip; make room"):
        get(files, tmp_path)
    assert kept(tmp_path) == HALF
    usage.free = HALF
    assert get(files, tmp_path) == CONTENT


def test_a_disk_that_fills_keeps_what_came(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullAfterABlock(download.tqdm):
        def update(self, _: float | None = 1) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(download, "tqdm", FullAfterABlock)
        with pytest.raises(OSError, match=r"make room and run again; what came is kept: '.*partial'"):
            get(files, tmp_path)
    assert 0 < kept(tmp_path) < len(CONTENT) + 1
    assert get(files, tmp_path) == CONTENT


def test_once_stopped_nothing_is_taken(files: Files, tmp_path: Path) -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(StoppedError):
        get(files, tmp_path, stop=stop)
    assert kept(tmp_path) == 0


@pytest.mark.parametrize("trickle_s", [0.01, 3600])
def test_once_stopped_a_slow_or_silent_server_is_left_and_what_came_kept(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trickle_s: float
) -> None:
    monkeypatch.setattr(download, "SILENCE_S", 3600)
    files.faults = [Fault(cut_at=HALF, trickle_s=trickle_s)]
    stop, ended = Stop(), threading.Event()

    def run() -> None:
        with pytest.raises(StoppedError):
            get(files, tmp_path, stop=stop)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    while not (tmp_path / "a.zip.partial").exists() or kept(tmp_path) <= HALF:
        time.sleep(0.01)
    stop.set()
    assert ended.wait(60)
    assert HALF < kept(tmp_path) < len(CONTENT)


def test_two_runs_at_once_fetch_it_once(files: Files, tmp_path: Path) -> None:
    files.always = Fault(cut_at=HALF)
    runs = [threading.Thread(target=get, args=(files, tmp_path)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert asked(files) == [None, f"bytes={HALF}-"]


def test_a_small_file_is_retried_until_all_came() -> None:
    with serving(Files({"/a": b"abc"}, [Fault(cut_at=2), Fault(status=500), Fault(cut_at=0)])) as server:
        assert fetch_small(server.address + "/a", Stop()) == b"abc"
        assert len(server.requests) == 4


def test_a_small_file_that_is_not_there_is_told_from_the_rest() -> None:
    with serving(Files({})) as server, pytest.raises(RefusedError) as caught:
        fetch_small(server.address + "/a", Stop())
    assert caught.value.status == 404


def test_a_large_file_is_no_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SMALL_BYTES", 10)
    with serving(Files({"/a": b"x" * 11})) as server, pytest.raises(RefusedError, match="got more than 10 bytes"):
        fetch_small(server.address + "/a", Stop())


def test_once_stopped_a_small_file_is_waited_for_no_longer() -> None:
    stop = Stop()
    stop.set()
    with serving(Files({}, always=Fault(status=500))) as server, pytest.raises(StoppedError):
        fetch_small(server.address + "/a", stop)


MEASURED = """
import resource, sys
from pathlib import Path
from promptseg.download import download
address, sha256, size, folder = sys.argv[1:]
download(address, Path(folder) / "big", sha256=sha256, expected_bytes=int(size))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_bytes(size: int, folder: Path) -> int:
    """Fetch `size` made-up bytes in a fresh process; return its peak resident memory."""
    digest = hashlib.sha256()
    for block in made_up_blocks(0, size):
        digest.update(block)
    with serving_made_up(size, cut_every=size // 3) as address:
        command = [sys.executable, "-c", MEASURED, address, digest.hexdigest(), str(size), str(folder)]
        environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert (folder / "big").stat().st_size == size
    return int(done.stdout)


def test_a_made_up_stream_is_the_same_from_any_byte_on() -> None:
    whole = b"".join(made_up_blocks(0, 3 * len(MADE_UP) + 5))
    for start in (1, len(MADE_UP) - 1, len(MADE_UP), 2 * len(MADE_UP) + 7):
        assert b"".join(made_up_blocks(start, len(whole))) == whole[start:]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """64 MiB more of a file, cut and taken up twice on the way, cost under a quarter of that in memory."""
    more = 64 << 20
    small = peak_bytes(1 << 20, tmp_path / "small")
    large = peak_bytes((1 << 20) + more, tmp_path / "large")
    assert large - small < more // 4


PROXIES = tuple(name for kind in ("HTTP", "HTTPS", "ALL", "NO") for name in (f"{kind}_PROXY", f"{kind}_proxy".lower()))


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing in the environment says how to reach others."""
    for name in (*PROXIES, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that nobody else signed, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    path, key = folder / "certificate.pem", folder / "key.pem"
    options = ["-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=loopback"]
    named = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)]
    subprocess.run(["openssl", "req", *options, *named], check=True, capture_output=True)
    return path, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_is_not_trusted_is_refused_at_once_and_can_be_trusted(
    certificate: tuple[Path, Path], tmp_path: Path, no_proxy: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serving(Files({NAME: CONTENT}), context) as files:
        with pytest.raises(
            RefusedError, match=r"not trusted \(self.signed certificate\).* set REQUESTS_CA_BUNDLE to"
        ) as caught:
            get(files, tmp_path)
        assert "times in a row" not in str(caught.value)
        no_proxy.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
        assert get(files, tmp_path) == CONTENT


def refusal_of(address: str) -> str:
    """What a small file's refusal says."""
    with pytest.raises(RefusedError) as caught:
        fetch_small(address, Stop())
    return str(caught.value)


@pytest.mark.usefixtures("no_proxy")
def test_an_address_with_https_where_http_is_spoken_is_told(files: Files) -> None:
    assert "no TLS is spoken there" in refusal_of(files.address.replace("http", "https", 1) + NAME)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_down_is_named_without_its_password(scheme: str, no_proxy: pytest.MonkeyPatch) -> None:
    no_proxy.setenv(f"{scheme.upper()}_PROXY", "http://user:secret@127.0.0.1:9")
    said = refusal_of(f"{scheme}://files.example{NAME}")
    assert "the proxy http://127.0.0.1:9 does not let it through" in said
    assert f"correct or unset {scheme.upper()}_PROXY, or name files.example in NO_PROXY" in said
    assert "secret" not in said


def test_a_name_that_no_host_has_is_told(no_proxy: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    no_proxy.setattr(socket, "getaddrinfo", unknown)
    said = refusal_of(f"https://fiels.example{NAME}")
    assert "no host of the name 'fiels.example' is found" in said
    assert "check the spelling" in said


@pytest.mark.usefixtures("no_proxy")
def test_a_service_that_is_down_is_told() -> None:
    said = refusal_of("http://127.0.0.1:9/a")
    assert "not reached, the service is down or behind a firewall" in said
    assert "try again later" in said


@pytest.mark.usefixtures("no_proxy")
def test_the_errors_of_another_client_are_told_alike() -> None:
    """Any that rests on urllib3, whatever it wraps the error in."""
    with pytest.raises(urllib3.exceptions.HTTPError) as caught:
        urllib3.PoolManager(retries=False).request("GET", "http://127.0.0.1:9/a")
    wrapped = RuntimeError("the client's own")
    wrapped.__cause__ = caught.value
    assert "the service is down" in explain_connection_error(wrapped, "http://127.0.0.1:9/a")
    wrapped.__cause__, wrapped.__context__ = (
        None,
        caught.value,
    )  # raised `from None`: the other has nothing to do with it
    assert "the connection broke off (the client's own)" in explain_connection_error(wrapped, "http://127.0.0.1:9/a")
    assert "the connection broke off (own)" in explain_connection_error(ConnectionError("own"), "http://a")
