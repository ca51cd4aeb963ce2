"""When to try again, and when to give up: exponential back-off with jitter, unless the server names a time."""

import logging
import random
import threading

from promptseg.transfer.connection import BrokenOffError, RefusedError

TRIES = 6  # in a row, each without progress
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
LONGEST_ASKED_S = 600.0  # a server that asks for more is given up
WORTH_COUNTING_BYTES = 1 << 20  # a try that brought as many, or a hundredth of the whole, was progress

_log = logging.getLogger(__name__)


class StoppedError(Exception):
    """Another transfer failed, or the user interrupted: what is there is kept for the next run."""


class Patience:
    """The tries at one address: each failure is waited out, until too many in a row brought nothing."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._failures = 0

    def wait_after(self, error: BrokenOffError, gained_bytes: int, total: int | None) -> None:
        """Wait before the next try. Raises RefusedError when there shall be none, StoppedError when `stop` is set."""
        worth = min(WORTH_COUNTING_BYTES, (total or WORTH_COUNTING_BYTES) // 100 + 1)
        self._failures = 1 if gained_bytes >= worth else self._failures + 1
        if self._failures >= TRIES:
            raise RefusedError(f"{error}, {TRIES} times in a row; try again later, or set `mirror`") from error
        if error.wait_s is not None and error.wait_s > LONGEST_ASKED_S:
            raise RefusedError(f"{error} and asks to wait {error.wait_s:,.0f} s; try later, or set `mirror`") from error
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (self._failures - 1))
        wait_s = longest * random.uniform(0.5, 1.0) if error.wait_s is None else error.wait_s
        _log.warning("%s; trying again in %.0f s", error, wait_s)
        if self._stop.wait(wait_s):
            raise StoppedError
