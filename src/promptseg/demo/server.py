"""A small page on this machine: drop a picture in, type a phrase, see the mask.

The standard library serves it: one page, one question at a time, one person. A framework for demos would bring fifty
packages to a pipeline that needs none of them.
"""

import base64
import html
import json
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from promptseg.datasets.preprocess import read_picture
from promptseg.inference.model import Model
from promptseg.report.overlay import encode_jpeg

HOST = "127.0.0.1"  # this machine only: whoever reaches the page uses the model, and sends it pictures
PAGE, EXAMPLES_FOLDER = Path(__file__).parent / "page.html", Path(__file__).parent / "examples"
# What the page offers to click: a file of the folder, what it is, and a phrase.
EXAMPLES = (("skier.jpg", "a skier", "the person"), ("skier.jpg", "a skier", "the skis"))
EXAMPLE = (
    '<button type="button" class="example" data-phrase="{phrase}"><img src="/examples/{file}" alt="{what}">'
    "<span>{phrase}</span></button>"
)
MOST_BYTES = 40_000_000
SHOWN_SIDE, SHOWN_BYTES = 1024, 400_000
PICTURE_TYPE = "application/octet-stream"  # other sites may post forms and text here, but not this, unless asked
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class DemoServer(ThreadingHTTPServer):
    """Serves the page and answers with one model. `port` 0 takes a free one; `address` says which."""

    daemon_threads = True

    def __init__(self, model: Model, port: int) -> None:
        super().__init__((HOST, port), _Handler)
        self.model = model
        self.busy = threading.Lock()  # a model answers one question at a time

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent when a browser goes away before its answer comes; tell everything else."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """The page's address, for a browser."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def answer(self, picture: bytes, phrase: str) -> dict[str, Any]:
        """Return what the page shows of one question. Raises ValueError for no picture, or a phrase without a word."""
        pixels = read_picture(picture, "the picture")
        start = time.perf_counter()
        with self.busy:
            (found,) = self.model.segment(pixels, phrase)
        seconds = time.perf_counter() - start
        drawn = encode_jpeg(np.asarray(found.draw(SHOWN_SIDE)), SHOWN_BYTES)
        inside = int(np.count_nonzero(found.mask))
        return {
            "picture": "data:image/jpeg;base64," + base64.b64encode(drawn).decode("ascii"),
            "area_pixels": inside,
            "area_percent": round(100 * inside / found.mask.size, 1),
            "box_xyxy": found.box_xyxy,
            "score": None if found.score is None else round(found.score, 2),
            "why_no_score": self.model.why_no_score,
            "milliseconds": round(1e3 * seconds),
            "model": self.model.name,
        }


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer

    def do_GET(self) -> None:
        if not self._is_meant_for_us():
            return
        path = urlsplit(self.path).path
        if path == "/":
            examples = (dict(zip(("file", "what", "phrase"), map(html.escape, each), strict=True)) for each in EXAMPLES)
            page = PAGE.read_text(encoding="utf-8")
            page = page.replace("<!-- examples -->", "".join(EXAMPLE.format(**each) for each in examples))
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode("utf-8"))
        elif path in {f"/examples/{file}" for file, _, _ in EXAMPLES}:
            self._send(HTTPStatus.OK, "image/jpeg", (EXAMPLES_FOLDER / path.rpartition("/")[2]).read_bytes())
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not here")

    def do_POST(self) -> None:
        if not self._is_meant_for_us():
            return
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Content-Type") != PICTURE_TYPE or not length.isdigit() or int(length) > MOST_BYTES:
            self.close_connection = True
            self._complain(f"got no picture, or one of more than {MOST_BYTES:,} bytes")
            return
        picture = self.rfile.read(int(length))
        phrase = parse_qs(urlsplit(self.path).query).get("phrase", [""])[0]
        try:
            told = self.server.answer(picture, phrase)
        except ValueError as error:
            self._complain(str(error))
            return
        self._send(HTTPStatus.OK, "application/json", json.dumps(told).encode("utf-8"))

    def _is_meant_for_us(self) -> bool:
        """Another site's name may be made to lead here; its pages must not reach the model."""
        name = (self.headers.get("Host") or "").partition(":")[0]
        if name in (HOST, "localhost"):
            return True
        self._send(HTTPStatus.FORBIDDEN, "text/plain", b"ask for 127.0.0.1 or localhost")
        return False

    def _complain(self, message: str) -> None:
        self._send(HTTPStatus.BAD_REQUEST, "application/json", json.dumps({"error": message}).encode("utf-8"))

    def _send(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Stay silent: the page tells what went wrong."""
