"""`python -m promptseg predict`: from a picture and phrases to files and lines."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import write_bright_graph
from PIL import Image

from promptseg.__main__ import main
from promptseg.report.page import COMMIT, SENSITIVITY
from tests.imports import ROOT


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "half.png"
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, 60:] = 255
    Image.fromarray(pixels).save(path)
    return path


def predict(*arguments: str | Path) -> int:
    return main(["predict", *map(str, arguments)])


def test_each_phrase_gets_a_line_and_an_overlay(
    graph: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(picture, "The red cup!", "红色的圆", "--model", graph, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert f"model: {graph}" in told
    assert '"The red cup!": 3,600 px (50.0 %), box 60,0 to 120,60 px -> ' in told
    assert "no score: an ONNX file hands out the mask alone" in told
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["half.png-1-the-red-cup.png", "half.png-2-红色的圆.png"]
    drawn = np.asarray(Image.open(tmp_path / "out" / written[0]))
    assert drawn.shape == (60, 120, 3)
    assert (drawn[:, :59] == 0).all()
    assert len(np.unique(drawn[:, 60:].reshape(-1, 3), axis=0)) > 1


def test_the_mask_is_written_where_it_is_asked_for(graph: Path, picture: Path, tmp_path: Path) -> None:
    predict(picture, "cup", "--model", graph, "--out", tmp_path / "out", "--mask")
    mask = np.asarray(Image.open(tmp_path / "out" / "half.png-1-cup.mask.png"))
    assert mask.dtype == np.uint8
    assert (mask[:, 60:] == 255).all()
    assert (mask[:, :60] == 0).all()


def test_a_large_picture_has_a_smaller_overlay_and_a_whole_mask(graph: Path, tmp_path: Path) -> None:
    Image.new("RGB", (3200, 800), "white").save(tmp_path / "large.png")
    predict(tmp_path / "large.png", "cup", "--model", graph, "--out", tmp_path / "out", "--mask")
    assert Image.open(tmp_path / "out" / "large.png-1-cup.png").size == (1600, 400)
    assert Image.open(tmp_path / "out" / "large.png-1-cup.mask.png").size == (3200, 800)


def test_a_folder_is_answered_whole_and_a_damaged_picture_is_told(
    graph: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged.jpg").write_bytes(b"not a picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    assert predict(tmp_path, "cup", "--model", graph, "--out", tmp_path / "out") == 1
    told = capsys.readouterr().out
    assert f"error: {tmp_path / 'damaged.jpg'}: got bytes that are no known picture format" in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{picture.name}-1-cup.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jpg", "cup"], "none.jpg: no such picture or folder"),
        (["src", "cup"], "src: got a folder without pictures"),
        (["LICENSE", "cup"], "LICENSE: got bytes that are no known picture format"),
        (["metrics/gallery.jpg", "cup", "--model", "none.onnx"], "none.onnx: got no such file"),
        (["metrics/gallery.jpg", "cup", "--model", "LICENSE"], "LICENSE: got a file named *, wanted one of .onnx"),
        (["metrics/gallery.jpg", " "], "got the phrase ' ', wanted at least one word"),
        (["metrics/gallery.jpg", ""], "got the phrase '', wanted at least one word"),
        (["metrics/gallery.jpg", "cup", "--out", "LICENSE"], "--out: got LICENSE, which is a file, wanted a folder"),
        (["metrics/gallery.jpg", "cup", "--out", "LICENSE/below"], "LICENSE/below: Not a directory"),
        (["metrics/gallery.jpg", "cup", "--res", "0"], "--res: got 0, wanted a whole number of pixels from 64 to 1024"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    message: str,
    graph: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    model = [] if "--model" in arguments else ["--model", graph]
    assert predict(*arguments, *model) == 1
    (record,) = caplog.records
    assert message in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_picture_of_too_many_pixels_is_refused_without_decoding_it(
    graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    assert predict(tmp_path / "huge.png", "cup", "--model", graph) == 1
    assert "huge.png: got a picture that cannot be read (" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--port", "99999"], "--port: got 99999, wanted a number from 0"),
        (["settings", "configs"], "configs: Is a directory"),
        (["settings", "none.yaml"], "none.yaml: no such file"),
        (["report", "--out", "LICENSE/below"], "LICENSE: File exists"),
        (["check-data", "nothing"], "data: got 'nothing', wanted one of"),
    ],
)
def test_mistakes_of_other_commands_are_told_in_one_line(
    arguments: list[str],
    message: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "report.html").write_text(COMMIT + SENSITIVITY)
    monkeypatch.setattr("promptseg.commands.report.read_paths", lambda _: {"report": tmp_path / "report.html"})
    assert main(arguments) == 1
    (record,) = caplog.records
    assert message in record.getMessage()


def test_a_port_that_is_taken_is_told_with_the_way_out(graph: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--model", str(graph), "--port", str(port)]) == 1
    assert f"--port: got {port}, which cannot be had" in caplog.text
    assert "--port 0 takes a free one" in caplog.text


def test_an_interrupted_command_says_so_and_fails(
    picture: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("promptseg.commands.predict.run", interrupt)
    assert predict(picture, "cup") == 130
    assert [record.getMessage() for record in caplog.records] == ["interrupted"]


def run_in(folder: Path, *arguments: str, pythonpath: str = "") -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DVC_ROOT")}
    if pythonpath:
        environment["PYTHONPATH"] = pythonpath
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_with_onnx_torch_is_never_imported(graph: Path, picture: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from promptseg.__main__ import main\n"
        f"status = main(['predict', {str(picture)!r}, 'cup', '--model', {str(graph)!r}, '--out', {str(tmp_path)!r}])\n"
        "print(status, sorted({'torch', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    done = run_in(ROOT, "-c", code, pythonpath=str(ROOT / "src"))
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
