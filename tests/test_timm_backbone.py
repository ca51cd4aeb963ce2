"""timm's backbones under the decoders: their maps, norms that stay, weights from elsewhere, and what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import timm
import torch
from networks import PAPER_RULE, drawn, micro, random_phrases, random_pictures
from torch import nn
from trainings import short_training

from promptseg.checkpoints import backbone_weights
from promptseg.checkpoints.checkpoint import Provenance, load_checkpoint, save_checkpoint
from promptseg.checkpoints.start import Start, starting_point
from promptseg.export.onnx_export import MOST_DIFFERING_PIXELS, export_graphs
from promptseg.export.rewrites.backbone import reparameterised
from promptseg.hubs.base import HubInput
from promptseg.networks import architecture
from promptseg.networks.xdecoder.model import XDecoder, XDecoderConfig, mobile
from promptseg.networks.xdecoder.timm_backbone import TimmBackbone, timm_config
from tests.graphs import export_config

NAME = "test_efficientnet"  # timm's own, for tests: a third of a million weights


def small(name: str = NAME) -> XDecoderConfig:
    return replace(micro(PAPER_RULE), backbone=timm_config(name))


def start(init: str, model: str = f"timm/{NAME}", **changes: Any) -> Start:
    return starting_point(model, short_training(init=init, **changes), Path("/nowhere"))


def test_channels_mean_and_std_are_timms():
    lite, imagenet = timm_config("tf_efficientnet_lite0"), timm_config("resnet18")
    assert lite.channels == (24, 40, 112, 320)
    assert lite.mean == lite.std == (127.5, 127.5, 127.5)
    assert imagenet.mean == (123.675, 116.28, 103.53)
    network = XDecoder(mobile(PAPER_RULE))
    assert network.mean.flatten().tolist() == [127.5] * 3


@pytest.mark.parametrize("name", [NAME, "test_convnext", "mobileone_s0"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (70, 99)])
def test_maps_have_the_sizes_that_the_decoders_want(name, height, width):
    config = timm_config(name)
    maps = TimmBackbone(config).eval()(torch.zeros(1, 3, height, width))
    wanted = [(1, c, -(-height // s), -(-width // s)) for c, s in zip(config.channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(each.shape) for each in maps] == wanted


def test_batch_norms_stay_as_they_are_in_training_and_learn_their_scales():
    network = drawn(small(), 0).train()
    norms = {name: each for name, each in network.named_modules() if isinstance(each, nn.BatchNorm2d)}
    assert norms
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    outputs, _ = network(random_pictures(2, 64), random_phrases(2))
    outputs[-1].mask_logits.sum().backward()
    assert not any(norm.training for norm in norms.values())
    assert network.mask_decoder.training
    assert all(torch.equal(norm.running_mean, before[name]) for name, norm in norms.items())
    assert any(norm.weight.grad is not None and norm.weight.grad.abs().sum() > 0 for norm in norms.values())


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float16, 0.05)])
def test_a_checkpoint_carries_the_backbone(tmp_path, dtype, close):
    network = drawn(small(), 0)
    save_checkpoint(tmp_path / "a.safetensors", network, Provenance(f"timm/{NAME}", None, {}, 0, None), dtype)
    loaded, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.config == network.config
    stored = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["architecture"]["backbone"]
    assert stored == {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(network.config.backbone).items()}
    with torch.inference_mode():
        answers = [each.predict(random_pictures(1, 64), random_phrases(2), 128) for each in (network, loaded)]
    torch.testing.assert_close(*(each.mask_logits for each in answers), atol=close, rtol=0)


def test_published_weights_of_a_backbone_from_a_file_and_under_other_names(tmp_path):
    torch.manual_seed(3)
    published = timm.create_model(NAME).state_dict()
    renamed = {key.replace("conv", "kernel"): value for key, value in published.items()}
    for name, state in (("a.pth", published), ("b.pth", renamed)):
        torch.save(state, tmp_path / name)
        started = start(str(tmp_path / name))
        encoder = started.network.backbone.encoder.state_dict()
        assert len(encoder) > 50
        assert all(torch.equal(value, published[key]) for key, value in encoder.items())
        assert started.ledger["kind"] == "backbone"


def test_weights_from_a_package(tmp_path, monkeypatch):
    published = timm.create_model(NAME).state_dict()
    torch.save(published, tmp_path / "weights.pth")
    file = SimpleNamespace(suffix=".pth", locate=lambda: tmp_path / "weights.pth")
    monkeypatch.setattr(backbone_weights.metadata, "files", lambda _: [SimpleNamespace(suffix=".py"), file])
    encoder = start("package:some-weights").network.backbone.encoder.state_dict()
    assert all(torch.equal(value, published[key]) for key, value in encoder.items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficientnet_lit0", r"nearest are efficientnet_lite0"),
        ("vit_tiny_patch16_224", r"strides 16, 16, 16; wanted strides 4, 8, 16, 32"),
        ("swin_tiny_patch4_window7_224", r"no maps for a picture of any size \(Input height"),
    ],
)
def test_backbones_that_will_not_do_are_refused(name, said):
    with pytest.raises(ValueError, match=said):
        architecture(f"timm/{name}", PAPER_RULE)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), other)
    with pytest.raises(ValueError, match=r"other\.pth: got weights that are not those of the backbone 'test_eff"):
        start(str(other))
    (tmp_path / "torn.pth").write_bytes(other.read_bytes()[:1000])
    with pytest.raises(ValueError, match="holds no weights"):
        start(str(tmp_path / "torn.pth"))
    with pytest.raises(ValueError, match="a package that is not installed; run `pip install no-such-package`"):
        start("package:no-such-package")
    with pytest.raises(ValueError, match="wanted weights of the model's backbone, timm/test_efficientnet"):
        start("timm/resnet18.a1_in1k")
    with pytest.raises(ValueError, match="got 'timm/resnet18' for model 'nano'"):
        start("timm/resnet18", model="nano")


def test_a_hub_that_cannot_be_reached_says_how_to_bring_a_file(monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", refused)
    with pytest.raises(ValueError, match=r"did not give \(no route to host\).*finetune\.init=weights/<file>"):
        backbone_weights._from_hub(NAME, f"timm/{NAME}.r160_in1k")


@pytest.mark.parametrize("name", [NAME, "mobileone_s0", "repvit_m0_9", "fastvit_t8"])
def test_branches_become_one_convolution_each_and_maps_stay(name):
    torch.manual_seed(0)
    backbone = TimmBackbone(timm_config(name)).eval()
    with torch.no_grad():
        for norm in (each for each in backbone.modules() if isinstance(each, nn.BatchNorm2d)):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    single = reparameterised(backbone)
    counts = [sum(isinstance(each, nn.Conv2d) for each in one.modules()) for one in (backbone, single)]
    assert counts[1] <= counts[0] if name == NAME else counts[1] < counts[0]
    picture = random_pictures(1, 64) / 128
    with torch.inference_mode():
        for ours, plain in zip(single(picture), backbone(picture), strict=True):
            torch.testing.assert_close(ours, plain, atol=2e-4 * float(plain.abs().max()), rtol=0)


@pytest.mark.parametrize(("name", "res"), [(NAME, 64), (NAME, 90), ("mobileone_s0", 64)])
def test_the_deployed_graph_is_the_network_and_has_no_batch_norm(tmp_path, name, res):
    network = drawn(small(name), 0)
    config = export_config(1)
    picture = random_pictures(1, 1024).numpy()
    tokens = random_phrases(1).repeat(2, 1).view(2, 1, -1).numpy()
    sample = HubInput("sample", picture, tokens)
    path = tmp_path / "graphs"
    report = export_graphs(network, res, config, [sample], path, model="timm", checkpoint_sha256="ab" * 32)
    assert report.differing_pixels_worst <= MOST_DIFFERING_PIXELS
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path / "model.onnx").graph.node}
