"""How long is waited, and for what, beyond the client's own retries (7 tries, 47 seconds, per request)."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from promptseg.hubs.aihub.errors import BusyError, UnreachableError

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)

POLL_S = 10.0  # between two looks at a running job; the client's own interval
AGAIN_S = (15.0, 45.0)  # before the second and the third try of what may be repeated
SETTLE_S = (0.0, 5.0, 10.0, 20.0, 30.0)  # before each look for a job whose submission got no answer
BUSY_S = (15.0, 30.0, *[60.0] * 10)  # before each new try of a submission that was refused as one too many
OUTAGE_S = 15 * 60.0  # without any answer about a job before waiting for it is given up


def pause(seconds: float) -> None:
    """Sleep. The only place where this package does."""
    time.sleep(seconds)


def patiently(action: Callable[[], _T]) -> _T:
    """Do what may be done twice without harm (reads, uploads, sharing), three times at most.

    Raises what `action` raised last, RefusedError at once.
    """
    for wait_s in AGAIN_S:
        try:
            return action()
        except (BusyError, UnreachableError) as error:
            _LOG.warning("%s; trying again in %.0f s", error, wait_s)
            pause(wait_s)
    return action()
