"""The bench itself: two HTTP servers (service and storage have addresses of their own) on free ports, in threads."""

import os
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

from tests.aihub_bench.faults import LOST, STATUSES, TRUNCATED, Fault
from tests.aihub_bench.routes import BUCKET, Ask, NoSuchThing, api_step, storage_step
from tests.aihub_bench.state import ACCOUNTS, TOKEN, ServiceState

PROTOBUF = "application/x-protobuf"
Answer = tuple[int, str, bytes]


class Bench:
    """`with Bench(folder) as bench`: a service at `bench.address`, its state, its faults and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.state = ServiceState(folder / "first")
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.on_request: Any = None  # called with the name of each step
        self._servers = [_Server(("127.0.0.1", 0), _handler(self, storage)) for storage in (False, True)]
        self.address, self.storage_address = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> "Bench":
        # A proxy of this machine would be asked for the loopback, too; the bucket is here.
        addresses = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "AWS_ENDPOINT_URL_S3": self.storage_address}
        self._environment = patch.dict(os.environ, addresses)
        self._environment.start()
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._environment.stop()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def start_over(self, keeping: ServiceState | None = None) -> None:
        """Replace the account by a new one, with the models and jobs of `keeping` or none; faults and counts go."""
        self.state.come_to_rest()
        self.state = self.state.successor(self._folder / self.state.new_id("account"), keeping)
        self.faults = []
        self.requests.clear()

    def write_configuration(self, path: Path, token: str = TOKEN) -> Path:
        """Write the client's own ini file for this bench."""
        path.write_text(
            f"[api]\napi_token = {token}\napi_url = {self.address}\nweb_url = {self.address}\nverbose = True\n"
        )
        return path

    def fault_at(self, step: str) -> Fault | None:
        """Count a request; return the fault that happens to it."""
        with self.lock:
            self.requests[step] += 1
            if self.on_request is not None:
                self.on_request(step)
            return next((fault for fault in self.faults if fault.step == step and fault.happens()), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error; anything else is one of the bench."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(bench: Bench, storage: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            found = storage_step(self.command, parts.path) if storage else api_step(self.command, parts.path)
            step = (found if isinstance(found, str) else found[0]) if found else "unknown"
            body = self._body()
            fault = bench.fault_at(step)
            if fault is not None and self._fails_first(fault):
                return
            try:
                answer = self._stored(parts.path, body) if storage else self._answer(found, parts.query, body)
            except NoSuchThing:
                answer = 404, "text/plain", b'{"detail": "not found"}'
            self._send(answer, fault)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

        def _body(self) -> bytes:
            wanted = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(wanted)
            if len(body) < wanted:
                raise ConnectionAbortedError("the client gave up while it was sending")
            return body

        def _answer(self, found: Any, query: str, body: bytes) -> Answer:
            if found is None:
                raise NoSuchThing
            sent = self.headers.get("Authorization", "none")
            user = ACCOUNTS.get(sent.removeprefix("token "))
            if user is None:
                return 401, "text/plain", f'{{"detail": "bad credentials: {sent}"}}'.encode()
            _, respond, ids = found
            return 200, PROTOBUF, respond(Ask(bench, user, parse_qs(query), body), *ids).SerializeToString()

        def _stored(self, path: str, body: bytes) -> Answer:
            _, kind, *rest = path.split("/")
            if kind == BUCKET:
                return self._object(body, *rest)
            if self.command == "PUT":
                name = "-".join(rest) + ".part"
                (bench.state.folder / name).write_bytes(body)
                return 200, name, b""
            if self.command == "POST":
                bench.state.datasets[rest[0]].file.write_bytes(_file_of_form(body))
                return 204, "text/plain", b""
            if kind == "log":
                return 200, "text/plain", b"first line\nthe op that failed: Abs\n"
            asset = (bench.state.models if kind == "model" else bench.state.datasets)[rest[0]]
            return 200, "application/octet-stream", asset.file.read_bytes()

        def _object(self, body: bytes, kind: str, asset_id: str) -> Answer:
            asset = (bench.state.models if kind == "model" else bench.state.datasets)[asset_id]
            if self.command == "PUT":
                asset.file.write_bytes(body)
                return 200, "application/xml", b""
            return 200, "application/octet-stream", asset.file.read_bytes()

        def _fails_first(self, fault: Fault) -> bool:
            """Answer, or not, without doing what was asked; tell whether that was all."""
            if fault.kind in STATUSES:
                detail = f'{{"detail": "fault {fault.kind} for {self.headers.get("Authorization")}"}}'
                self._send((STATUSES[fault.kind], "text/plain", detail.encode()), None)
            elif fault.kind == "cut":
                self.close_connection = True
            elif fault.kind == "garbage":
                self._send((200, PROTOBUF, b"\xff\xff\xff\xff not a message"), None)
            elif fault.kind == "another type":
                self._send((200, "text/html", b"<html>sign in to this network</html>"), None)
            else:
                return False
            return True

        def _send(self, answer: Answer, fault: Fault | None) -> None:
            status, kind, content = answer
            if fault is not None and fault.kind in LOST:
                if fault.kind == "late":
                    time.sleep(fault.late_s)
                if fault.kind == "lost behind 502":
                    status, content = 502, b"bad gateway"
                else:
                    self.close_connection = True
                    return
            short = fault is not None and fault.kind in TRUNCATED
            self.send_response(status)
            if self.command == "PUT":
                self.send_header("ETag", kind)
            self.send_header("Content-Type", kind)
            if short and fault.kind == "truncated without a length":
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(content)))
            self.close_connection = True
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if short else content)

    return Handler


def _file_of_form(body: bytes) -> bytes:
    """Take the file out of a multipart form: what follows the head of its last part, up to the closing boundary."""
    boundary = body[: body.index(b"\r\n")]
    last = body[body.rindex(boundary + b"\r\n") : body.rindex(b"\r\n" + boundary + b"--")]
    return last[last.index(b"\r\n\r\n") + 4 :]
