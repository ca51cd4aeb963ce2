"""A loopback server of files that misbehaves on demand: one fault a request, in order, then it behaves."""

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer; the fields are independent."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)  # instead of, or beside, the right ones; "" leaves one out
    cut_at: int | None = None  # so many bytes of the body are sent
    ignores_range: bool = False
    content: bytes | None = None  # sent in place of the right one
    extra: bytes = b""  # after the content, and counted in no header
    trickle_s: float | None = None  # from `cut_at` on, a byte, then so long nothing, until the client hangs up
    chunked: bool = False  # sent in chunks, without a length; cut, the last chunk never comes
    shift: int = 0  # of the range that is sent, against the range that was asked for


@dataclass
class Files:
    """The content by its path, the faults that are left, and the requests that came: (path, Range, If-Range)."""

    content: dict[str, bytes]
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    always: Fault | None = None  # for every request when the list is empty
    ranges: bool = True
    dated: bool = True  # ETag and Last-Modified are sent
    address: str = ""
    both: threading.Barrier | None = None  # an answer waits here for others
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self) -> Fault:
        with self.lock:
            return self.faults.pop(0) if self.faults else self.always or Fault()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: Files

    def do_GET(self) -> None:
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        self.files.requests.append((self.path, asked, condition))
        fault = self.files.next_fault()
        if self.files.both is not None:
            self.files.both.wait()
        if fault.status != 200:
            return self._send(fault.status, b"", {"Content-Length": "0", **fault.headers}, fault)
        content = self.files.content.get(self.path) if fault.content is None else fault.content
        if content is None:
            return self._send(404, b"", {"Content-Length": "0"}, fault)
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        headers = {"ETag": etag, "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"} if self.files.dated else {}
        start, status = 0, 200
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if match and self.files.ranges and not fault.ignores_range and condition in (None, *headers.values()):
            start, status = int(match[1]) + fault.shift, 206
            if start >= len(content):
                gone = {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}
                return self._send(416, b"", gone, fault)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers["Content-Length"] = str(len(content) - start)
        return self._send(status, content[start:] + fault.extra, {**headers, **fault.headers}, fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault) -> None:
        if fault.chunked:
            headers = {**headers, "Content-Length": "", "Transfer-Encoding": "chunked"}
            size = len(body)
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        if not headers.get("Content-Length") and not fault.chunked:
            self.close_connection = True
        self.end_headers()
        if fault.trickle_s is not None:
            sent = fault.cut_at or 0
            self.wfile.write(body[:sent])
            for at in range(sent, len(body)):  # the client hangs up some time: then this raises
                self.wfile.write(body[at : at + 1])
                time.sleep(fault.trickle_s)
        self.wfile.write(body[: fault.cut_at])
        if fault.cut_at is not None:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that hang up, which here they do on purpose."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def serving(files: Files, tls: ssl.SSLContext | None = None) -> Iterator[Files]:
    """Serve `files` until the block ends, by https with `tls`; their `address` has no slash at its end."""
    handler = type("Handler", (_Handler,), {"files": files})
    with _Server(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        files.address = f"http{'' if tls is None else 's'}://127.0.0.1:{server.server_port}"
        try:
            yield files
        finally:
            server.shutdown()
            thread.join()
