"""The demo's server: this machine only, its own page only, one clear word for each mistake."""

import http.client
import io
import json
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from graphs import write_bright_graph
from PIL import Image

from promptseg.demo.server import EXAMPLES, MOST_BYTES, PICTURE_TYPE, DemoServer
from promptseg.inference.model import load


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    graph = write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx")
    with DemoServer(load(graph), 0) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


def ask(
    server: DemoServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    return reply.status, reply.read(), reply.headers["Content-Security-Policy"]


def bright() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((40, 80, 3), 255, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_only_this_machine_is_served(server: DemoServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.address.startswith("http://127.0.0.1:")


def test_the_page_comes_with_a_policy_that_lets_nothing_else_in(server: DemoServer) -> None:
    status, page, policy = ask(server, "GET", "/")
    assert status == 200
    assert b"<title>promptseg</title>" in page
    assert "default-src 'none'" in policy
    assert ask(server, "GET", "/params.yaml")[0] == 404


def test_the_page_offers_examples_that_are_there(server: DemoServer) -> None:
    _, page, _ = ask(server, "GET", "/")
    for file, what, phrase in EXAMPLES:
        assert f'data-phrase="{phrase}"><img src="/examples/{file}" alt="{what}"'.encode() in page
        status, picture, _ = ask(server, "GET", f"/examples/{file}")
        assert (status, picture[:2]) == (200, b"\xff\xd8")
    assert ask(server, "GET", "/examples/../server.py")[0] == 404


def test_a_question_is_answered(server: DemoServer) -> None:
    status, content, _ = ask(server, "POST", "/ask?phrase=a%20cup", bright(), Content_Type=PICTURE_TYPE)
    told = json.loads(content)
    assert status == 200
    assert (told["area_pixels"], told["area_percent"], told["box_xyxy"]) == (3200, 100.0, [0, 0, 80, 40])
    assert told["score"] is None
    assert told["picture"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("path", "body", "headers", "message"),
    [
        ("/ask?phrase=a", b"none", {"Content_Type": PICTURE_TYPE}, "no known picture format"),
        ("/ask?phrase=.", bright(), {"Content_Type": PICTURE_TYPE}, "wanted at least one word"),
        ("/ask", bright(), {"Content_Type": PICTURE_TYPE}, "wanted at least one word"),
        ("/ask?phrase=a", bright(), {"Content_Type": "text/plain"}, "got no picture"),
        ("/ask?phrase=a", b"", {"Content_Type": PICTURE_TYPE, "Content_Length": str(MOST_BYTES + 1)}, "got no picture"),
    ],
)
def test_a_mistake_is_one_clear_word(
    server: DemoServer, path: str, body: bytes, headers: dict[str, str], message: str
) -> None:
    status, content, _ = ask(server, "POST", path, body, **headers)
    assert status == 400
    assert message in json.loads(content)["error"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_sites_name_that_leads_here_is_refused(server: DemoServer, method: str) -> None:
    assert ask(server, method, "/", Host="evil.example:80")[0] == 403


@pytest.mark.parametrize(("error", "told"), [(BrokenPipeError, False), (ConnectionResetError, False), (KeyError, True)])
def test_a_browser_that_goes_away_makes_no_noise(
    server: DemoServer, error: type[Exception], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise error("gone")
    except error:
        server.handle_error(None, ("127.0.0.1", 1))
    assert ("Traceback" in capsys.readouterr().err) == told
