"""Small files from http(s) addresses, whole in memory; retried like large ones."""

import threading

from promptseg.transfer.connection import BrokenOffError, RefusedError, opened
from promptseg.transfer.patience import Patience

MOST_BYTES = 64 << 20


def fetch_small(address: str, stop: threading.Event) -> bytes:
    """Return the bytes at `address`, at most MOST_BYTES. Raises RefusedError, and StoppedError once `stop` is set."""
    patience = Patience(stop)
    while True:
        try:
            return _received(address)
        except BrokenOffError as error:
            patience.wait_after(error, 0, None)


def _received(address: str) -> bytes:
    content = bytearray()
    with opened(address) as answer:
        for block in answer.blocks:
            content += block
            if len(content) > MOST_BYTES:
                raise RefusedError(f"{address}: got more than {MOST_BYTES:,} bytes, wanted a small file; set `mirror`")
    if answer.total is not None and len(content) < answer.total:
        raise BrokenOffError(f"{address}: got {len(content):,} of {answer.total:,} bytes")
    return bytes(content)
