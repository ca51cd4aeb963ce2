"""Where training starts, and what it refuses to start from."""

from pathlib import Path

import pytest
import torch
from networks import micro, micro_network
from trainings import short_training

from promptseg.checkpoint import Provenance, save_checkpoint
from promptseg.files import sha256_of
from promptseg.training.start import BUILDERS, initial_network
from promptseg.xdecoder.mask_decoder import MaskAttention

RULE = MaskAttention("inside", "bilinear")


@pytest.fixture(autouse=True)
def micro_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILDERS, "nano", micro)


@pytest.fixture
def init(tmp_path: Path) -> Path:
    path = tmp_path / "init.safetensors"
    save_checkpoint(path, micro_network(RULE), Provenance("nano", None, {}, 0, None), torch.float32)
    return path


def test_from_nothing_the_seed_decides():
    (one, sha256), (same, _), (other, _) = (initial_network("nano", short_training(seed=seed)) for seed in (1, 1, 2))
    assert sha256 is None
    assert one.config == micro(RULE)
    weights = [each.state_dict()["mask_decoder.query_content"] for each in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_from_a_checkpoint_its_weights_and_its_hash(init):
    network, sha256 = initial_network("nano", short_training(init=str(init)))
    assert sha256 == sha256_of(init)
    for key, value in micro_network(RULE).state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.safetensors: no such file; a checkpoint is"):
        initial_network("nano", short_training(init=str(tmp_path / "none.safetensors")))


@pytest.mark.parametrize("change", [{"attends": "outside"}, {"mask_resize": "bicubic"}])
def test_a_checkpoint_of_another_mask_attention_is_refused(init, change):
    (value,) = change.values()
    with pytest.raises(ValueError, match=rf"^finetune\.init: .* differs .*mask_decoder: got .*, wanted .*'{value}'"):
        initial_network("nano", short_training(init=str(init), **change))


def test_a_checkpoint_of_another_size_is_refused(init, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"differs from model 'nano' in backbone, text, pixel_decoder, mask_decoder"):
        initial_network("nano", short_training(init=str(init)))


def test_more_phrases_than_queries_are_refused():
    initial_network("nano", short_training(phrases_per_picture=6))
    with pytest.raises(
        ValueError, match=r"^finetune\.phrases_per_picture: got 7, wanted at most 6, the object queries"
    ):
        initial_network("nano", short_training(phrases_per_picture=7))
