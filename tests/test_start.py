"""Where training starts, and what it refuses to start from."""

import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import drawn, micro, micro_network
from safetensors.torch import save_file
from trainings import short_training

from promptseg.checkpoints.checkpoint import Provenance, save_checkpoint
from promptseg.checkpoints.published import restore
from promptseg.checkpoints.start import Start, starting_point, weights_file
from promptseg.files import sha256_of
from promptseg.networks import BUILDERS
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.params.sections import MODEL_WANTED

RULE = MaskAttention("inside", "bilinear")
NOWHERE = Path("/nowhere")  # nothing is downloaded


def start(**changes: Any) -> Start:
    return starting_point("nano", short_training(**changes), NOWHERE)


@pytest.fixture(autouse=True)
def micro_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILDERS, "nano", micro)


@pytest.fixture
def init(tmp_path: Path) -> Path:
    path = tmp_path / "init.safetensors"
    save_checkpoint(path, micro_network(RULE), Provenance("nano", None, {}, 0, None), torch.float32)
    return path


def test_from_nothing_the_seed_decides():
    one, same, other = (start(seed=seed) for seed in (1, 1, 2))
    assert one.init_sha256 is None
    assert one.ledger == {"init": None, "kind": "drawn", "seed": 1}
    assert one.network.config == micro(RULE)
    weights = [each.network.state_dict()["mask_decoder.query_content"] for each in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_from_a_checkpoint_its_weights_and_its_hash(init):
    started = start(init=str(init))
    assert started.init_sha256 == sha256_of(init)
    assert started.ledger == {"init": str(init), "kind": "ours", "sha256": sha256_of(init)}
    for key, value in micro_network(RULE).state_dict().items():
        assert torch.equal(started.network.state_dict()[key], value)


def test_a_checkpoint_keeps_the_canvas_rule_that_its_weights_were_trained_with(tmp_path):
    path = tmp_path / "stretching.safetensors"
    stretching = drawn(replace(micro(RULE), canvas_rule="stretch"), 0)
    save_checkpoint(path, stretching, Provenance("nano", None, {}, 0, None), torch.float32)
    assert start(init=str(path)).network.config == stretching.config


@pytest.mark.parametrize("rule", [RULE, MaskAttention("outside", "bicubic")])
def test_from_a_published_checkpoint_its_weights_by_the_rule_asked_for(tmp_path, rule):
    path = tmp_path / "published.pt"
    torch.save(restore(micro_network(RULE).state_dict(), micro(RULE), None), path)
    started = start(init=str(path), attends=rule.attends, mask_resize=rule.resize)
    assert started.network.config == replace(micro(rule), canvas_rule="stretch")
    assert started.init_sha256 == started.ledger["sha256"] == sha256_of(path)
    assert started.ledger["kind"] == "published"
    assert len(started.ledger["renamed"]) > 100
    for key, value in micro_network(RULE).state_dict().items():
        assert torch.equal(started.network.state_dict()[key], value)


def test_a_published_checkpoint_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "published.pth"
    torch.save({"backbone.blocks.0.norm1.bias": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"^finetune\.init, for model 'nano': .*not understood: backbone\.blocks\.0"):
        start(init=str(path))


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got 'model\.onnx' for .* ends with \.safetensors, .* or \.pth"):
        start(init=str(tmp_path / "model.onnx"))


def test_every_model_that_params_admit_can_be_built():
    assert MODEL_WANTED.startswith(f"{', '.join(BUILDERS)}, or timm/")


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.safetensors: no such file; a checkpoint is"):
        start(init=str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("change", [{"attends": "outside"}, {"mask_resize": "bicubic"}])
def test_a_checkpoint_of_another_mask_attention_is_refused(init, change):
    (value,) = change.values()
    with pytest.raises(
        ValueError, match=rf"^finetune\.init: .* differs .*mask_attention\.\w+: got '\w+', wanted '{value}';"
    ):
        start(init=str(init), **change)


def test_a_checkpoint_of_another_size_is_refused(init, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(
        ValueError,
        match=r"differs from model 'nano' in backbone\.embed_dim: got 8, wanted 24; .*object_queries: got 6, wanted 16",
    ):
        start(init=str(init))


def test_more_phrases_than_queries_are_refused():
    start(phrases_per_picture=6)
    with pytest.raises(
        ValueError, match=r"^finetune\.phrases_per_picture: got 7, wanted at most 6, the object queries"
    ):
        start(phrases_per_picture=7)


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


def test_weights_of_a_backbone_need_no_json_at_their_address(served, tmp_path):
    address, folder, _ = served
    weights = timm.create_model("test_efficientnet").state_dict()
    save_file(weights, folder / "model.safetensors")
    config = short_training(init=f"{address}/model.safetensors")
    started = starting_point("timm/test_efficientnet", config, tmp_path / "downloads")
    assert started.ledger["kind"] == "backbone"
    encoder = started.network.backbone.encoder.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in encoder.items())
