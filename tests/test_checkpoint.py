"""Checkpoints there and back, and everything that can be wrong with one."""

import json
import resource
import signal
from pathlib import Path

import pytest
import torch
from networks import micro_network, random_phrases, random_pictures

from promptseg.checkpoints.checkpoint import Provenance, load_checkpoint, save_checkpoint
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import config_from_json, nano

PROVENANCE = Provenance("nano", "ab" * 32, {"res": [64, 96], "init": None, "learning_rate": 1e-4}, 7, 0.25)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, micro_network(), PROVENANCE, torch.float32)
    return path


def test_float32_comes_back_bit_for_bit(saved):
    network, provenance = load_checkpoint(saved)
    original = micro_network()
    assert provenance == PROVENANCE
    assert network.config == original.config
    assert not network.training
    for key, value in original.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    pictures, ids = random_pictures(1, 64), random_phrases(1)
    with torch.no_grad():
        assert torch.equal(network(pictures, ids)[0][0].mask_logits, original(pictures, ids)[0][0].mask_logits)


def test_float16_is_half_the_size_and_comes_back_as_rounded_float32(saved, tmp_path):
    half = tmp_path / "half.safetensors"
    save_checkpoint(half, micro_network(), PROVENANCE, torch.float16)
    assert half.stat().st_size < 0.51 * saved.stat().st_size
    network, _ = load_checkpoint(half)
    for key, value in micro_network().state_dict().items():
        assert network.state_dict()[key].dtype == torch.float32
        assert torch.equal(network.state_dict()[key], value.half().float()), key


def test_the_file_beside_it_can_be_read_by_a_person(saved):
    text = saved.with_suffix(".json").read_text(encoding="utf-8")
    description = json.loads(text)
    assert text.count("\n") > 30
    assert description["dtype"] == "float32"
    assert description["parameters"] == sum(value.numel() for value in micro_network().state_dict().values())
    assert description["architecture"]["mask_decoder"]["mask_attention"] == {"attends": "inside", "resize": "bicubic"}
    assert description["provenance"]["params"]["res"] == [64, 96]


def test_an_architecture_survives_json():
    config = nano(MaskAttention("outside", "bilinear"))
    description = json.loads(json.dumps(config, default=vars))
    assert config_from_json(description) == config


def test_a_description_without_a_canvas_rule_is_of_a_network_that_crops(saved):
    _edit(saved, lambda description: description["architecture"].pop("canvas_rule"))
    assert load_checkpoint(saved)[0].config.canvas_rule == "crop"


def test_an_unknown_canvas_rule_is_refused(saved):
    _edit(saved, lambda description: description["architecture"].update(canvas_rule="tile"))
    with pytest.raises(ValueError, match="canvas_rule: got 'tile', wanted one of crop, stretch"):
        load_checkpoint(saved)


def test_equal_networks_give_equal_bytes(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, micro_network(), PROVENANCE, torch.float32)
    assert again.read_bytes() == saved.read_bytes()


def test_nothing_is_unpickled(saved, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a checkpoint was unpickled")

    monkeypatch.setattr("pickle.Unpickler", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("torch.load", refuse)
    load_checkpoint(saved)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_missing_half_is_named(saved, suffix):
    saved.with_suffix(suffix).unlink()
    with pytest.raises(ValueError, match=rf"model\{suffix}: no such file; a checkpoint is"):
        load_checkpoint(saved)


@pytest.mark.parametrize("damage", [lambda _: b"", lambda b: b[:100], lambda b: b[:-1], lambda b: b"\xff" * 8 + b[8:]])
def test_damaged_weights_are_refused(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(
        ValueError, match=r"model\.safetensors: got a damaged safetensors file .* make or fetch it again"
    ):
        load_checkpoint(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00"])
def test_a_description_that_is_not_json_is_refused(saved, content):
    saved.with_suffix(".json").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.json: got .* wanted one JSON object"):
        load_checkpoint(saved)


@pytest.mark.parametrize("version", [None, 0, "1"])
def test_another_format_is_refused(saved, version):
    _edit(saved, lambda d: d.update(format=version))
    with pytest.raises(ValueError, match=f"got checkpoint format {version!r}, wanted 1"):
        load_checkpoint(saved)


def _edit(path: Path, change: object) -> None:
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    change(description)
    path.with_suffix(".json").write_text(json.dumps(description), encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("architecture"),
        lambda d: d.pop("provenance"),
        lambda d: d.update(architecture="nano"),
        lambda d: d.update(provenance=None),
        lambda d: d["provenance"].update(extra=1),
        lambda d: d["architecture"].pop("text"),
        lambda d: d["architecture"].update(backbone=[]),
        lambda d: d["architecture"]["backbone"].pop("depths"),
        lambda d: d["architecture"]["backbone"].update(depths=[1]),
        lambda d: d["architecture"]["backbone"].update(embed_dim="wide"),
        lambda d: d["architecture"]["backbone"].update(embed_dim=-8),
        lambda d: d["architecture"]["pixel_decoder"].update(norm_groups=3),
        lambda d: d["architecture"]["mask_decoder"]["mask_attention"].update(attends="Inside"),
        lambda d: d["architecture"]["mask_decoder"]["mask_attention"].update(resize="nearest"),
    ],
)
def test_a_description_that_builds_no_network_is_refused(saved, change):
    _edit(saved, change)
    with pytest.raises(ValueError, match=r"model\.json: got a description that no network can be built from"):
        load_checkpoint(saved)


@pytest.mark.parametrize("change", [{"layers": 3}, {"layers": 5}, {"object_queries": 7}, {"ffn_dim": 16}])
def test_weights_of_another_architecture_are_refused(saved, change):
    _edit(saved, lambda d: d["architecture"]["mask_decoder"].update(change))
    with pytest.raises(ValueError, match="the weights do not fit the architecture beside them"):
        load_checkpoint(saved)


def test_a_full_disk_says_so_and_keeps_the_old_checkpoint(saved):
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="make room and run again") as caught:
            save_checkpoint(saved, micro_network(seed=1), PROVENANCE, torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(saved)
    assert saved.read_bytes() == before
    assert {path.name for path in saved.parent.iterdir()} == {"model.safetensors", "model.json"}
    load_checkpoint(saved)
