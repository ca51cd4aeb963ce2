"""Files from http(s) addresses: resumed after a cut, retried, summed while they come, whole or not at all.

What has come of a large file lies beside it as `<name>.partial` until it is whole and its sum is right: a run that was
cut off or killed goes on there, in whichever process and from whichever mirror.
"""

import errno
import hashlib
import logging
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from tqdm import tqdm
from urllib3.util import Retry

from promptseg.files import DISK_FULL, locked, read_json, sha256_of, write_json

CONNECT_S, SILENCE_S = 30.0, 60.0  # to connect; without a byte
TRICKLE_S, TRICKLE_BYTES = 60.0, 60_000  # fewer bytes in so many seconds: as good as silence
BLOCK_BYTES = 1 << 18
SMALL_BYTES = 64 << 20  # what fetch_small takes at most
PROGRESS_BYTES = 1 << 20  # a try that brought as many, or a hundredth of the whole, renews the tries
TRIES = 6  # in a row, each without progress
LONGEST_ASKED_S = 600.0  # a server that asks to wait longer is given up
RETRY = Retry(
    total=TRIES - 1,
    status_forcelist=(408, 425, 429, 500, 502, 503, 504),
    backoff_factor=1.0,
    backoff_max=60.0,
    backoff_jitter=1.0,
    retry_after_max=1 << 31,
)
NAMES_NO_PLACE = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
NOT_REACHED = (
    ConnectionRefusedError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NewConnectionError,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class RefusedError(ValueError):
    """The address does not give what is wanted, and would not on another try; `status` is the server's, or None."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class StoppedError(Exception):
    """Another transfer failed, or the user interrupted: what has come is kept for the next run."""


class Stop(threading.Event):
    """Once set, transfers end with StoppedError; those that wait for a silent server, too."""

    def __init__(self) -> None:
        super().__init__()
        self._reading: set[urllib3.BaseHTTPResponse] = set()

    def set(self) -> None:
        """End the transfers."""
        super().set()
        for response in tuple(self._reading):
            with suppress(OSError, RuntimeError, ValueError):  # it ended meanwhile
                response.shutdown()

    @contextmanager
    def reading(self, response: urllib3.BaseHTTPResponse) -> Iterator[None]:
        """End the reading of `response` when set. Raises StoppedError when it is set already."""
        self._reading.add(response)
        try:
            if self.is_set():
                raise StoppedError
            yield
        finally:
            self._reading.discard(response)


class _BrokenOffError(Exception):
    """Not reached, broken off or put off: another try may go well, after `wait_s` seconds where the server says so."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def download(
    address: str, target: Path, *, sha256: str | None, expected_bytes: int | None, stop: Stop | None = None
) -> str:
    """Make `target` the file at `address`, and return its sha256.

    Beside it, `<target>.origin.json` records the address, the version that the server named (ETag or Last-Modified) and
    the sha256. A `target` with the sha256 that is wanted, or, where that is None (nobody publishes it), with the one on
    record, is not fetched again. Once `stop` is set, the transfer ends with StoppedError. What has come is kept for the
    next call, from another address too where the sum is known, unless the sum shows it to be wrong. Raises RefusedError
    when the address does not give the file, OSError when the disk is, or would be, full.
    """
    record = target.with_name(target.name + ".origin.json")
    with locked(target.with_name(target.name + ".lock"), f"another run is fetching {target.name}; waiting for it"):
        if target.is_file():
            origin, present = _read_record(record), sha256_of(target)
            if present == (sha256 or origin.get("sha256")):
                _log.info("%s: fetched before%s; delete it to fetch it again", target, _described(origin))
                return present
            _log.warning("%s was damaged after it was fetched; fetching it again", target)
        with tqdm(unit="B", unit_scale=True, desc=target.name) as progress:
            transfer = _Transfer(address, target, sha256, expected_bytes, stop or Stop(), progress)
            transfer.fetch()
        got = transfer.digest.hexdigest()
        origin = {**transfer.origin, "sha256": got}
        write_json(record, origin)
        transfer.path.replace(target)
        transfer.drop()
    _log.info("%s: fetched%s", target.name, _described(origin))
    if sha256 is None:
        _log.warning("%s: its publisher gives no checksum; the sha256 of what came is %s", target, got)
    return got


def fetch_small(address: str, stop: Stop) -> bytes:
    """Return the bytes at `address`, at most SMALL_BYTES, retried like large ones.

    Raises RefusedError when it does not give them, StoppedError once `stop` is set.
    """
    retry = RETRY
    while True:
        try:
            with _opened(address, stop) as response:
                content = bytearray()
                for block in _blocks(address, response):
                    content += block
                    if len(content) > SMALL_BYTES:
                        wanted = f"wanted a small file, of {SMALL_BYTES:,} at most"
                        raise RefusedError(f"{address}: got more than {SMALL_BYTES:,} bytes, {wanted}; set `mirror`")
                return bytes(content)
        except _BrokenOffError as error:
            retry = _wait(retry, error, stop)


def first_of(places: Sequence[str], take: Callable[[str], _T]) -> _T:
    """Return what `take` makes of the first place where it raises no ValueError; else raise one that names them all."""
    failures: list[ValueError] = []
    for place in places:
        try:
            return take(place)
        except ValueError as error:
            failures.append(error)
            if len(failures) < len(places):
                _log.warning("%s; trying the next mirror", error)
    if len(failures) == 1:
        raise failures[0]
    raise ValueError(f"none of {len(places)} mirrors gives what is wanted: {'; '.join(map(str, failures))}")


def check_room(folder: Path, need_bytes: int, what: str) -> None:
    """Raise OSError (ENOSPC) where the disk of `folder`, which is created, has less than `need_bytes` free."""
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < need_bytes:
        raise OSError(
            errno.ENOSPC, f"got {free:,} free bytes, wanted {need_bytes:,} for {what}; make room", str(folder)
        )


def explain_connection_error(error: BaseException, address: str) -> str:
    """Return one line: what kept `address` from being reached, and the remedy.

    The error's chain of causes tells them apart: a certificate that is not trusted, a proxy that does not answer, a
    name that leads nowhere, a service that is down, a connection that broke. It may be any client's that rests on
    urllib3.
    """
    chain = list(_causes(error))
    parts, cause = urlsplit(address), chain[-1]
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"{address}: its certificate is not trusted ({cause.verify_message}); where your own network's "
            "authority signs, set REQUESTS_CA_BUNDLE to the file of its certificates (PEM)"
        )
    if "WRONG_VERSION_NUMBER" in str(cause):
        return f"{address}: no TLS is spoken there ({cause}); check the address: http:// or another port?"
    if any(isinstance(each, requests.exceptions.ProxyError | urllib3.exceptions.ProxyError) for each in chain):
        proxy = requests.utils.select_proxy(address, requests.utils.get_environ_proxies(address)) or "the proxy"
        shown = urlsplit(proxy)._replace(netloc=urlsplit(proxy).netloc.rpartition("@")[2]).geturl()
        return (
            f"{address}: the proxy {shown} does not let it through ({cause}); correct or unset "
            f"{parts.scheme.upper()}_PROXY, or name {parts.hostname} in NO_PROXY"
        )
    if any(isinstance(each, socket.gaierror) for each in chain):
        return (
            f"{address}: no host of the name {parts.hostname!r} is found ({cause}); check the spelling, and that this "
            f"machine is online; behind a proxy, set {parts.scheme.upper()}_PROXY"
        )
    if any(isinstance(each, NOT_REACHED) for each in chain):
        return f"{address}: not reached, the service is down or behind a firewall ({cause}); try again later"
    return f"{address}: the connection broke off ({cause}); try again"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, what it wraps, and so on: what happened first comes last."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _wait(retry: Retry, error: _BrokenOffError, stop: Stop) -> Retry:
    """Wait before another try. Raises RefusedError when there shall be none, StoppedError when `stop` is set."""
    try:
        retry = retry.increment(error=error)
    except urllib3.exceptions.MaxRetryError as last:
        raise RefusedError(f"{error} ({TRIES} times in a row; `mirror` may name another place)") from last
    if error.wait_s is not None and error.wait_s > LONGEST_ASKED_S:
        raise RefusedError(f"{error}: in {error.wait_s:,.0f} s, it says, or set `mirror`") from error
    wait_s = retry.get_backoff_time() if error.wait_s is None else error.wait_s
    _log.warning("%s (the next try is in %.0f s)", error, wait_s)
    if stop.wait(wait_s):
        raise StoppedError
    return retry


class _PerThread(threading.local):  # a session is not made to be shared
    def __init__(self) -> None:
        self.session = requests.Session()


_own = _PerThread()


@contextmanager
def _opened(address: str, stop: Stop, start: int = 0, validator: str | None = None) -> Iterator[requests.Response]:
    """Ask for `address` from byte `start` on, if its version is still `validator` (None: whatever its version).

    The answer may begin at 0 all the same (200), or say that nothing lies behind `start` (416). Proxies and
    certificates are those that the environment names. Raises RefusedError and _BrokenOffError, also while it is read.
    """
    headers = {"Accept-Encoding": "identity"}  # bytes as they lie there: they are counted and summed
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    try:
        with _own.session.get(address, headers=headers, stream=True, timeout=(CONNECT_S, SILENCE_S)) as response:
            _check_answer(address, response, (200, 206, 416) if start else (200,))
            with stop.reading(response.raw):
                yield response
    except NAMES_NO_PLACE as error:
        raise RefusedError(
            f"{address}: not an address that can be read ({error}); check it, or set `mirror`"
        ) from error
    except BROKEN as error:
        message = explain_connection_error(error, address)
        if any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error)):
            raise RefusedError(message) from error
        raise _BrokenOffError(message) from error


def _check_answer(address: str, response: requests.Response, wanted: tuple[int, ...]) -> None:
    status = response.status_code
    answers = f"{address}: the server answers {status} ({response.reason})"
    if RETRY.is_retry("GET", status):
        try:
            wait_s = RETRY.get_retry_after(response.raw)
        except urllib3.exceptions.InvalidHeader:
            wait_s = None
        raise _BrokenOffError(f"{answers}; try again later", wait_s)
    if status not in wanted:
        raise RefusedError(f"{answers}; check it, or set `mirror`", status)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise RefusedError(f"{address}: got the encoding {encoding!r}, wanted the file's own bytes; set `mirror`")


def _blocks(address: str, response: requests.Response) -> Iterator[bytes]:
    """Yield what comes as soon as it comes, so that nothing is lost with a connection that breaks."""
    since, received = time.monotonic(), 0
    while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
        yield block
        received += len(block)
        if (now := time.monotonic()) - since > TRICKLE_S:
            if received < TRICKLE_BYTES:
                raise _BrokenOffError(f"{address}: got {received:,} bytes in {now - since:.0f} s, as good as none")
            since, received = now, 0


class _Transfer:
    """One file on its way: the bytes that have come at `path`, their number and running sum, and their origin.

    `origin` ("address", "validator") lies beside them as JSON, and is empty where unknown.
    """

    def __init__(
        self,
        address: str,
        target: Path,
        sha256: str | None,
        expected_bytes: int | None,
        stop: Stop,
        progress: tqdm,
    ) -> None:
        self.path = target.with_name(target.name + ".partial")
        self._record = target.with_name(target.name + ".partial.json")
        self._address, self._target, self._stop, self._progress = address, target, stop, progress
        self._sha256, self._expected_bytes = sha256, expected_bytes
        self.origin, self.digest, self._size = _read_record(self._record), hashlib.sha256(), 0
        self.path.touch()
        with self.path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                self._count(block)

    def fetch(self) -> None:
        """Bring the file to its end and check its sum. Raises RefusedError when the address cannot."""
        retry, doubted = RETRY, False
        while True:
            before = self._size
            try:
                at_once = self._receive()
            except _BrokenOffError as error:
                enough = min(PROGRESS_BYTES, (self._progress.total or PROGRESS_BYTES) // 100 + 1)
                retry = _wait(RETRY if self._size - before >= enough else retry, error, self._stop)
                continue
            if self._sha256 in (None, got := self.digest.hexdigest()):
                return
            self.drop()
            if at_once or doubted:
                raise RefusedError(
                    f"{self._address}: got sha256 {got}, wanted {self._sha256}: it is damaged or another version; "
                    "fetch it again, set `mirror`, or, where a mirror's own version is meant, list it in its SHA256SUMS"
                )
            doubted = True  # pieces of different files may have met
            _log.warning("%s: what was put together has another checksum; once more, from the start", self._address)

    def drop(self) -> None:
        """Begin again with nothing."""
        self.path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)
        self.origin, self.digest, self._size = {}, hashlib.sha256(), 0

    def _receive(self) -> bool:
        """Take in what is missing; return whether the whole file came in one answer."""
        validator = self._continued()
        have = self._size
        if have and have == self._expected_bytes:
            return False
        with _opened(self._address, self._stop, have, validator) as response:
            stated = response.headers.get("Content-Range", "")
            if response.status_code == 416 and stated == f"bytes */{have}":
                return False  # nothing lies behind what has come
            if have and not stated.startswith(f"bytes {have}-"):
                self.drop()
                if response.status_code != 200:
                    raise _BrokenOffError(f"{self._address}: got another range than was asked for")
                _log.warning("%s: the server sends no ranges, or the file has changed; from the start", self._address)
            size = self._offered(response)
            self._note(response)
            self._take(response, size)
        if size is not None and self._size < size:
            raise _BrokenOffError(f"{self._address}: got {self._size:,} of {size:,} bytes")
        return response.status_code == 200

    def _continued(self) -> str | None:
        """Drop what cannot be continued; return the version that the server must still have.

        Where the sum is known, bytes of any origin will do, for it tells at the end. Where it is not, they must be of
        this address and this version.
        """
        validator = self.origin.get("validator") if self.origin.get("address") == self._address else None
        too_many = self._expected_bytes is not None and self._size > self._expected_bytes
        if self._size and (too_many or (self._sha256 is None and validator is None)):
            self.drop()
        return validator if self._size else None

    def _offered(self, response: requests.Response) -> int | None:
        """Return the size of the whole file, None where nothing tells it. Raises where it is wrong, or has no room."""
        rest, wanted = response.raw.length_remaining, self._expected_bytes
        size = wanted if rest is None else self._size + rest
        if wanted not in (None, size):
            raise RefusedError(
                f"{self._address}: got {size:,} bytes offered, wanted {wanted:,}: another version; set `mirror`"
            )
        if self._sha256 is None and rest is None and not response.raw.chunked:
            raise RefusedError(
                f"{self._address}: got no size, wanted one: without a checksum nothing else tells whether all came; "
                "set `mirror`"
            )
        if size is not None:
            check_room(self.path.parent, size - self._size, self._target.name)
        return size

    def _note(self, response: requests.Response) -> None:
        """Write down where the bytes that follow come from. Source for what If-Range may name: RFC 9110, 13.1.5."""
        etag = response.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
        origin = {"address": self._address, "validator": validator}
        if self.origin != origin:
            write_json(self._record, origin)
            self.origin = origin

    def _take(self, response: requests.Response, size: int | None) -> None:
        self._progress.total, self._progress.n = size, self._size
        try:
            with self.path.open("ab", buffering=0) as stream:  # what came is there even after kill -9
                for block in _blocks(self._address, response):
                    rest = memoryview(block)
                    while rest:
                        written = stream.write(rest) or 0
                        self._count(rest[:written])
                        rest = rest[written:]
                    self._progress.update(len(block))
                    if size is not None and self._size > size:
                        break
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            reason = f"{error.strerror}: make room and run again; what came is kept"
            raise OSError(error.errno, reason, str(self.path)) from error
        if size is not None and (got := self._size) > size:
            self.drop()
            raise RefusedError(
                f"{self._address}: got {got:,} bytes and more, wanted {size:,}: another version; set `mirror`"
            )

    def _count(self, block: bytes | memoryview) -> None:
        self.digest.update(block)
        self._size += len(block)


def _read_record(path: Path) -> dict[str, Any]:
    """Return what `path` records of an origin: "address", "validator", "sha256"; {} where there is none to be read."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return {}


def _described(origin: dict[str, Any]) -> str:
    if "address" not in origin:
        return ""
    version = origin["validator"] or "the server names no version"
    return f" from {origin['address']} ({version}; sha256 {origin['sha256']})"
