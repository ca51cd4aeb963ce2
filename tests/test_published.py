"""Published files: read as weights only, mapped, in any float type; and every way in which one can be wrong."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import PAPER_RULE, micro, micro_network, micro_vit
from torch import Tensor

from promptseg.checkpoints.convert import restore
from promptseg.checkpoints.published import load_published, read_published

CONFIG = micro(PAPER_RULE)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return restore(micro_network().state_dict(), CONFIG, None)


def stored(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def test_weights_come_back_bit_for_bit(tmp_path, weights):
    network, ledger = load_published(stored(tmp_path / "a.pt", weights), CONFIG)
    assert not network.training
    assert network.config == replace(CONFIG, canvas_rule="stretch")
    for key, value in micro_network().state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    assert ledger["dtypes"] == ["float32"]
    assert len(ledger["renamed"]) + len(ledger["transformed"]) == len(weights)


def test_a_file_of_old_torch_is_read_too(tmp_path, weights):
    network, _ = load_published(stored(tmp_path / "a.pth", weights, _use_new_zipfile_serialization=False), CONFIG)
    assert torch.equal(network.mask_decoder.query_content, micro_network().mask_decoder.query_content)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(tmp_path, weights, dtype):
    path = stored(tmp_path / "a.pt", {key: value.to(dtype) for key, value in weights.items()})
    network, ledger = load_published(path, CONFIG)
    assert ledger["dtypes"] == [str(dtype).removeprefix("torch.")]
    for key, value in micro_network().state_dict().items():
        assert network.state_dict()[key].dtype == torch.float32
        assert torch.equal(network.state_dict()[key], value.to(dtype).float()), key


def test_weights_under_model_are_found_and_the_rest_is_named(tmp_path, weights):
    content = {"model": weights, "optimizer": {"state": {}}, "iteration": 3}
    _, ledger = load_published(stored(tmp_path / "a.pt", content), CONFIG)
    assert set(ledger["beside_the_model"]) == {"optimizer", "iteration"}


def test_the_network_can_be_trained_and_the_file_stays_as_it_is(tmp_path, weights):
    path = stored(tmp_path / "a.pt", weights)
    before = path.read_bytes()
    network, _ = load_published(path, CONFIG)
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before
    assert torch.equal(network.mask_decoder.query_content, micro_network().mask_decoder.query_content + 1)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux lists what is mapped")
def test_float32_weights_are_mapped_and_not_copied(tmp_path, weights):
    path = stored(tmp_path / "mapped.pt", weights)
    network, _ = load_published(path, CONFIG)
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("mapped.pt")
    ]
    places = [value.data_ptr() for value in network.state_dict().values()]
    assert all(any(low <= place < high for low, high in ranges) for place in places)


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=rf"^{path}: ") as caught:
        load_published(path, CONFIG)
    assert "weights_only" not in str(caught.value), "torch's own words advise to load the file unsafely"
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    assert "no such file; wanted a published checkpoint (.pt or .pth)" in refusal(tmp_path / "none.pt")


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_file_is_refused(tmp_path, weights, kept, new):
    path = stored(tmp_path / "a.pt", weights, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "fetch it again" in refusal(path) or "damaged file" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80", b"<html>not found</html>"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    assert "wanted" in refusal(path) or "fetch it again" in refusal(path)


class Harmful:
    """Unpickled, it would run a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickled_object_is_refused_and_not_run(tmp_path, weights, new):
    content = {**weights, "note": Harmful(tmp_path / "made")}
    message = refusal(stored(tmp_path / "a.pt", content, _use_new_zipfile_serialization=new))
    assert "mkdir" in message
    assert "wanted tensors only: anything else would be run as code" in message
    assert not (tmp_path / "made").exists()


def test_a_whole_network_is_no_checkpoint(tmp_path):
    assert "an object of promptseg.networks.xdecoder.model.XDecoder" in refusal(
        stored(tmp_path / "a.pt", micro_network())
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "got list without weights"),
        ({}, "got dict without weights"),
        (torch.ones(2), "got Tensor without weights"),
        ({"model": {}}, "got dict without weights"),
        ({"step": 3, "note": "text"}, "got step, note, which are no tensors"),
        ({"model": {"a": torch.ones(1)}, "ema": {}}, "got ema beside 'model', which is not understood"),
    ],
)
def test_content_that_is_no_weights_is_refused(tmp_path, content, message):
    assert message in refusal(stored(tmp_path / "a.pt", content))


def test_weights_of_another_architecture_are_refused(tmp_path):
    config = micro_vit(PAPER_RULE)
    path = tmp_path / "a.pt"
    with pytest.raises(ValueError, match=r"missing: backbone\.pos_embed"):
        load_published(stored(path, restore(micro_network().state_dict(), CONFIG, None)), config)


def test_reading_says_what_lies_beside(tmp_path):
    weights, beside = read_published(stored(tmp_path / "a.pt", {"model": {"a": torch.ones(1)}, "epoch": 1}))
    assert list(weights) == ["a"]
    assert beside == {"epoch": "how far a training run was"}


# Converts Focal-T as `finetune` does, runs it at res 590, and says how much memory the process had at most.
_FOCAL_T = """
import resource, sys
from pathlib import Path
import torch
from promptseg.checkpoints.published import load_published
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import focal_t, resize_canvas
network, _ = load_published(Path(sys.argv[1]), focal_t(MaskAttention("outside", "bilinear")))
with torch.inference_mode():
    (grounding,), phrase = network(resize_canvas(torch.rand(1, 3, 1024, 1024) * 255, 590), torch.full((1, 77), 49407))
assert grounding.mask_logits.shape == (1, 100, 148, 148)
assert grounding.mask_logits.isfinite().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_focal_t_loads_and_runs_within_6_gib(tmp_path):
    root = Path(__file__).resolve().parent.parent
    made = [sys.executable, "-m", "benchmarks.recipe", "--model", "focal_t", str(tmp_path / "focal_t.pt")]
    subprocess.run(made, cwd=root, check=True)
    run = [sys.executable, "-c", _FOCAL_T, str(tmp_path / "focal_t.pt")]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run(run, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 6 * 2**30
