"""Fetch a large made-up file over loopback, cut on the way, and say how fast and in how much memory.

    python -m benchmarks.download --gigabytes 2

The bytes are made as they are sent; the server is a process of its own, so the memory is that of the fetching alone.
"""

import argparse
import hashlib
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from promptseg.download import download

MADE_UP = hashlib.shake_256(b"promptseg").digest(1 << 20)  # repeated: no byte of it is at a round place twice


def made_up_blocks(start: int, stop: int) -> Iterator[bytes]:
    """Yield the made-up stream's bytes from `start` to `stop`, each repetition of MADE_UP turned by its number."""
    while start < stop:
        number, at = divmod(start, len(MADE_UP))
        turn = number % 251
        block = (MADE_UP[turn:] + MADE_UP[:turn])[at : at + stop - start]
        yield block
        start += len(block)


@contextmanager
def serving_made_up(size: int, cut_every: int) -> Iterator[str]:
    """Serve `size` made-up bytes, with ranges, in another process; each answer breaks off after `cut_every` bytes."""
    context = multiprocessing.get_context("fork")
    ports: Any = context.Queue()
    process = context.Process(target=_serve, args=(size, cut_every, ports), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ports.get(timeout=60)}/big"
    finally:
        process.terminate()
        process.join()


def _serve(size: int, cut_every: int, ports: Any) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            for block in made_up_blocks(start, min(size, start + cut_every)):
                self.wfile.write(block)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        ports.put(server.server_port)
        server.serve_forever()


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--cuts", type=int, default=3, help="how often the connection breaks on the way")
    arguments = parser.parse_args()

    size = int(arguments.gigabytes * 1e9)
    digest = hashlib.sha256()
    for block in made_up_blocks(0, size):
        digest.update(block)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving_made_up(size, size // (arguments.cuts + 1) + 1) as address,
    ):
        began = time.perf_counter()
        download(address, Path(folder) / "big", sha256=digest.hexdigest(), expected_bytes=size)
        took_s = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(
        f"{size:,} bytes in {took_s:.1f} s ({size / took_s / 1e6:.0f} MB/s), {arguments.cuts} cuts, "
        f"peak resident memory {peak / 2**20:.0f} MiB\n"
    )


if __name__ == "__main__":
    main()
