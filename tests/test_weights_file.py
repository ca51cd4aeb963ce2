"""Initial weights from an address: downloaded once, again where they were damaged, with the JSON beside them."""

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from promptseg.checkpoints.start import weights_file


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """An address, the folder that lies there, and the paths that were asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder, asked
    server.shutdown()
    server.server_close()


def test_a_file_on_this_machine_is_used_where_it_lies(tmp_path):
    assert weights_file("weights/a.safetensors", tmp_path) == Path("weights/a.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_address_is_downloaded_once(tmp_path, served):
    address, folder, asked = served
    (folder / "a b.pt").write_bytes(b"weights")
    for _ in range(2):
        path = weights_file(f"{address}/a%20b.pt?download=true", tmp_path / "cache")
        assert path.name == "a b.pt"
        assert path.read_bytes() == b"weights"
    assert asked == ["/a%20b.pt?download=true"]


def test_what_was_damaged_since_is_downloaded_again(tmp_path, served):
    address, folder, asked = served
    (folder / "a.pt").write_bytes(b"weights")
    weights_file(f"{address}/a.pt", tmp_path).write_bytes(b"damaged")
    assert weights_file(f"{address}/a.pt", tmp_path).read_bytes() == b"weights"
    assert len(asked) == 2


def test_files_of_one_name_from_two_addresses_stay_apart(tmp_path, served):
    address, folder, _ = served
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "a.pt").write_text(name)
    paths = [weights_file(f"{address}/{name}/a.pt", tmp_path) for name in ("one", "two")]
    assert [path.read_text() for path in paths] == ["one", "two"]


def test_a_checkpoint_of_ours_comes_with_its_json(tmp_path, served):
    address, folder, _ = served
    for suffix in (".safetensors", ".json"):
        (folder / f"a{suffix}").write_text(suffix)
    path = weights_file(f"{address}/a.safetensors", tmp_path)
    assert path.read_text() == ".safetensors"
    assert path.with_suffix(".json").read_text() == ".json"


def test_an_address_that_gives_nothing_is_refused_and_leaves_nothing(tmp_path, served):
    address, _, _ = served
    with pytest.raises(ValueError, match=r"none\.pt: .*404"):
        weights_file(f"{address}/none.pt", tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".pt"]


def test_an_address_without_a_file_name_is_refused(tmp_path, served):
    with pytest.raises(ValueError, match=r"^finetune\.init: got http://.*, wanted the address of a file"):
        weights_file(f"{served[0]}/", tmp_path)
