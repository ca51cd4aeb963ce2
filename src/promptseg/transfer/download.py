"""Large files from http(s) addresses: resumed after a cut, retried, summed while they come, whole or not at all.

What has come of a file lives in the cache, below `partial/`, until it is whole and verified: a run that was cut off or
killed is taken up there, by whichever process and from whichever address.
"""

import hashlib
import logging
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from promptseg.files import sha256_of
from promptseg.transfer.connection import Answer, BrokenOffError, RefusedError, opened
from promptseg.transfer.lock import locked
from promptseg.transfer.partial import Origin, PartialFile
from promptseg.transfer.patience import Patience, StoppedError

_log = logging.getLogger(__name__)


def download(
    addresses: str | Sequence[str],
    target: Path,
    *,
    sha256: str | None,
    expected_bytes: int | None,
    cache: Path,
    stop: threading.Event | None = None,
) -> str:
    """Make `target` the file that the first of `addresses` to give it gives, and return its sha256.

    A `target` that has that sum already (any, where `sha256` is null) is not fetched again. Null for `sha256` and
    `expected_bytes` means that nobody publishes them: then the sum seen is logged. Once `stop` is set, the transfer
    ends with StoppedError. What came is kept below `cache` in every case, but for bytes that the sum shows to be wrong.
    Raises ValueError when no address gives the file or the disk has no room for it, OSError when the disk fills.
    """
    tried = [addresses] if isinstance(addresses, str) else list(addresses)
    if not tried:
        raise ValueError(f"{target.name}: got no address to fetch it from, wanted at least one")
    key = sha256 or hashlib.sha256(tried[0].encode()).hexdigest()
    path = cache / "partial" / key
    with locked(path, target.name):
        if target.is_file():
            present = sha256_of(target)
            if sha256 in (None, present):
                return present
            _log.warning("%s was damaged after it was fetched; fetching it again", target)
        partial = PartialFile(path)
        with tqdm(initial=partial.size, unit="B", unit_scale=True, desc=target.name) as progress:
            wanted = _Wanted(target, sha256, expected_bytes)
            _from_first(tried, _Transfer(wanted, partial, stop or threading.Event(), progress))
        got = partial.sha256()
        partial.move_to(target)
    if sha256 is None:
        _log.warning("%s: its publisher gives no checksum; the sha256 of what came is %s", target.name, got)
    return got


def _from_first(addresses: list[str], transfer: "_Transfer") -> None:
    refusals: list[RefusedError] = []
    for address in addresses:
        try:
            transfer.fetch(address)
        except RefusedError as error:
            refusals.append(error)
            if len(addresses) > 1:
                _log.warning("%s; trying the next address, if there is one", error)
        else:
            return
    if len(refusals) == 1:
        raise refusals[0]
    raise ValueError(f"none of {len(addresses)} addresses gives what is wanted: {'; '.join(map(str, refusals))}")


@dataclass(frozen=True)
class _Wanted:
    target: Path
    sha256: str | None
    bytes: int | None


@dataclass
class _Transfer:
    """One file on its way, from whichever address."""

    wanted: _Wanted
    partial: PartialFile
    stop: threading.Event
    progress: tqdm

    def fetch(self, address: str) -> None:
        """Bring the partial file to its end and check its sum. Raises RefusedError when this address cannot."""
        patience = Patience(self.stop)
        doubted = False
        while True:
            before = self.partial.size
            try:
                at_once = self._receive(address)
            except BrokenOffError as error:
                patience.wait_after(error, self.partial.size - before, self.progress.total)
                continue
            got = self.partial.sha256()
            if self.wanted.sha256 in (None, got):
                return
            self.partial.drop()
            if at_once or doubted:
                raise RefusedError(
                    f"{address}: got sha256 {got}, wanted {self.wanted.sha256}: it is damaged or another version; "
                    "fetch it again, set `mirror`, or, where a mirror's own version is meant, list it in its SHA256SUMS"
                )
            doubted = True  # pieces of different files may have met: once more, from the start
            _log.warning("%s: what was put together has another checksum; once more, from the start", address)

    def _receive(self, address: str) -> bool:
        """Take in what is missing; return whether the whole file came in one answer."""
        validator = self._continued(address)
        have = self.partial.size
        if have and have == self.wanted.bytes:
            return False
        with opened(address, have, validator) as answer:
            self._check(address, answer)
            if answer.start != have:
                if answer.total == have:
                    return False  # nothing lies behind what came
                self.partial.drop()
                if answer.start:
                    raise BrokenOffError(f"{address}: got another range than was asked for")
                _log.warning("%s: the server sends no ranges, or the file has changed; from the start", address)
            self._check_room(answer.total)
            self.partial.set_origin(Origin(address, answer.validator, answer.total))
            self._take(address, answer)
        total = self.wanted.bytes if answer.total is None else answer.total
        if total is not None and self.partial.size < total:
            raise BrokenOffError(f"{address}: got {self.partial.size:,} of {total:,} bytes")
        return answer.start == 0

    def _continued(self, address: str) -> str | None:
        """Drop what cannot be continued from `address`; return the version that the server must still have.

        Where the sum is known, bytes of any origin will do, for it tells at the end. Where it is not, they must be of
        this address and this version.
        """
        origin = self.partial.origin()
        same = origin is not None and origin.address == address
        validator = origin.validator if origin is not None and same else None
        too_many = self.wanted.bytes is not None and self.partial.size > self.wanted.bytes
        if too_many or (self.wanted.sha256 is None and validator is None):
            self.partial.drop()
        return validator if self.partial.size else None

    def _check(self, address: str, answer: Answer) -> None:
        if answer.total is not None and self.wanted.bytes not in (None, answer.total):
            raise RefusedError(
                f"{address}: got {answer.total:,} bytes offered, wanted {self.wanted.bytes:,}: another version; "
                "set `mirror`"
            )
        if self.wanted.sha256 is None and not answer.delimited:
            raise RefusedError(
                f"{address}: got no size, wanted one: without a checksum nothing else tells whether all came; set "
                "`mirror`"
            )

    def _check_room(self, total: int | None) -> None:
        total = self.wanted.bytes if total is None else total
        if total is None:
            return
        self.wanted.target.parent.mkdir(parents=True, exist_ok=True)
        needs = {self.partial.path.parent: total - self.partial.size}
        if self.wanted.target.parent.stat().st_dev != self.partial.path.parent.stat().st_dev:
            needs[self.wanted.target.parent] = total
        for folder, need in needs.items():
            if (free := shutil.disk_usage(folder).free) < need:
                raise ValueError(
                    f"{folder}: got {free:,} free bytes, wanted {need:,} for {self.wanted.target.name}; make room"
                )

    def _take(self, address: str, answer: Answer) -> None:
        total = self.wanted.bytes if answer.total is None else answer.total
        self.progress.total, self.progress.n = total, self.partial.size
        with self.partial.appending() as append:
            for block in answer.blocks:
                append(block)
                self.progress.update(len(block))
                if self.stop.is_set():
                    raise StoppedError
                if total is not None and self.partial.size > total:
                    break
        if total is not None and self.partial.size > total:
            size = self.partial.size
            self.partial.drop()
            raise RefusedError(
                f"{address}: got {size:,} bytes and more, wanted {total:,}: another version; set `mirror`"
            )
