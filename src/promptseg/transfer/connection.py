"""One HTTP request, asked for from any byte on; its failures told apart by whether another try can help.

`RefusedError`: this address will not give the file, now or later. `BrokenOffError`: it may, on the next try.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests
import urllib3

CONNECT_S, SILENCE_S = 30.0, 60.0  # to connect; without a byte
TRICKLE_S, TRICKLE_BYTES = 60.0, 60_000  # fewer bytes in so many seconds: as good as silence
BLOCK_BYTES = 1 << 18
WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})
NAMES_NO_PLACE = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")

_per_thread = threading.local()  # a session is not made to be shared between threads


class RefusedError(ValueError):
    """The address does not give what is wanted, and would not on another try. `status` is the server's, or None."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class BrokenOffError(Exception):
    """Not reached, broken off or put off: another try may go well, after `wait_s` seconds where the server says so."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Answer:
    """What a server sends: the bytes from `start` on.

    `total` is the size of the whole file, or None where the server does not say; `delimited` tells whether the end of
    the body can be told from a connection that broke; `validator` names this version of the file (for If-Range).
    """

    start: int
    total: int | None
    delimited: bool
    validator: str | None
    blocks: Iterator[bytes]


@contextmanager
def opened(address: str, start: int = 0, validator: str | None = None) -> Iterator[Answer]:
    """Ask for `address` from byte `start` on, if its version is still `validator` (None: whatever its version).

    The answer may begin at 0 all the same, and a range that lies behind the file's end is an answer without blocks.
    Proxies and certificates are those that the environment names, as `requests` reads them. Raises RefusedError and
    BrokenOffError, also while blocks are read.
    """
    headers = {"Accept-Encoding": "identity"}  # bytes as they lie there: they are counted and summed
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator is not None:
            headers["If-Range"] = validator
    try:
        with _session().get(address, headers=headers, stream=True, timeout=(CONNECT_S, SILENCE_S)) as response:
            yield _answer(address, response)
    except NAMES_NO_PLACE as error:
        raise RefusedError(
            f"{address}: not an address that can be read ({error}); check it, or set `mirror`"
        ) from error
    except BROKEN as error:
        raise BrokenOffError(f"{address}: not reached, or broken off ({_first_cause(error)})") from error


def _first_cause(error: BaseException) -> BaseException:
    """Return what went wrong at first; what wraps it repeats it once or twice."""
    while earlier := error.__cause__ or error.__context__:
        error = earlier
    return error


def _session() -> requests.Session:
    if not hasattr(_per_thread, "session"):
        _per_thread.session = requests.Session()
    session: requests.Session = _per_thread.session
    return session


def _answer(address: str, response: requests.Response) -> Answer:
    status, headers = response.status_code, response.headers
    if status in WORTH_ANOTHER_TRY:
        raise BrokenOffError(f"{address}: the server answers {status} ({response.reason})", _asked_to_wait_s(headers))
    if status not in (200, 206, 416):
        raise RefusedError(
            f"{address}: the server answers {status} ({response.reason}); check it, or set `mirror`", status
        )
    if headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError(
            f"{address}: got the encoding {headers['Content-Encoding']!r}, wanted the file's own bytes; set `mirror`"
        )
    start, total = 0, _number(headers.get("Content-Length"))
    if status != 200:
        stated = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        start, total = (int(stated[1] or -1), _number(stated[2])) if stated else (-1, None)
    delimited = "Content-Length" in headers or headers.get("Transfer-Encoding") == "chunked"
    blocks = iter(()) if status == 416 else _blocks(address, response)
    return Answer(start, total, delimited, _validator(headers), blocks)


def _blocks(address: str, response: requests.Response) -> Iterator[bytes]:
    """Yield what comes as soon as it comes, so that nothing is lost with a connection that breaks."""
    since, received = time.monotonic(), 0
    while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
        yield block
        received += len(block)
        if (now := time.monotonic()) - since > TRICKLE_S:
            if received < TRICKLE_BYTES:
                raise BrokenOffError(f"{address}: got {received:,} bytes in {now - since:.0f} s, as good as none")
            since, received = now, 0


def _validator(headers: "requests.structures.CaseInsensitiveDict[str]") -> str | None:
    """Return what If-Range may name: a strong ETag, else the date of the last change. Source: RFC 9110, 13.1.5."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _asked_to_wait_s(headers: "requests.structures.CaseInsensitiveDict[str]") -> float | None:
    """Return the seconds of Retry-After, a number or a date; None where there is none that can be read."""
    text = headers.get("Retry-After", "")
    if (seconds := _number(text)) is not None:
        return float(seconds)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    aware = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else None
