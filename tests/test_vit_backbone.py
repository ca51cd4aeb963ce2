"""SAM's ViT and the pyramid against published numbers, and at sizes that nothing divides."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import PAPER_RULE, drawn, micro_vit, random_phrases, random_pictures

from benchmarks.graph import measure_npu
from benchmarks.recipe import made_up
from promptseg.checkpoints.published_keys import key_table
from promptseg.datasets.preprocess import CANVAS
from promptseg.export.deployed_graph import DeployedXDecoder
from promptseg.export.onnx_export import MOST_DIFFERING_PIXELS, export_graphs
from promptseg.hubs.base import HubInput
from promptseg.hubs.local.session import qnn_available
from promptseg.networks import build_on_meta
from promptseg.networks.xdecoder.model import MEAN, STD, vit_b
from promptseg.networks.xdecoder.vit_backbone import VitBackbone, VitConfig
from tests.graphs import export_config

DATA = Path(__file__).parent / "data"
TOLERANCE = {"atol": 1e-3, "rtol": 1e-3}  # of maps against the published ones, float32 after twelve blocks
SAMPLED_EVERY = {"res2": 16, "res3": 8, "res4": 4, "res5": 2}  # rows and columns; channels every 8
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # float32 against a slow oracle


@pytest.mark.slow
def test_the_published_numbers_at_1024():
    """Numbers that published code computed on weights made by the recipe, seed 5."""
    fixture = json.loads((DATA / "sam_vit_b_backbone_keys.json").read_text(encoding="utf-8"))
    config = vit_b(PAPER_RULE)
    table = key_table(config)
    weights = {
        table[key].key.removeprefix("backbone."): value
        for key, value in made_up(fixture["keys"], fixture["seed"]).items()
    }
    backbone = build_on_meta(config).backbone
    backbone.load_state_dict(weights, strict=True, assign=True)
    with np.load(DATA / "sam_vit_b_backbone_1024.npz") as arrays:
        numbers = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    picture = numbers["low"].float().repeat_interleave(16, 2).repeat_interleave(16, 3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        maps = backbone.eval()((picture - mean) / std)
    for (name, every), computed in zip(SAMPLED_EVERY.items(), maps, strict=True):
        sampled = computed[0, ::8, ::every, ::every]
        torch.testing.assert_close(sampled, numbers[name].squeeze(), **TOLERANCE)


def backbone_of(config: VitConfig, seed: int = 0) -> VitBackbone:
    torch.manual_seed(seed)
    backbone = VitBackbone(config).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone


@pytest.mark.parametrize("res", [64, 70, 96, 99, 100, 131])
@torch.no_grad()
def test_maps_and_masks_have_their_sizes_whatever_divides_res(res):
    network = drawn(micro_vit(PAPER_RULE), seed=0)
    maps = network.backbone(random_pictures(1, res))
    assert [tuple(each.shape) for each in maps] == [
        (1, channels, math.ceil(res / stride), math.ceil(res / stride))
        for channels, stride in zip((8, 16, 32, 64), (4, 8, 16, 32), strict=True)
    ]
    (grounding,), _ = network(random_pictures(1, res), random_phrases(1))
    assert grounding.mask_logits.shape == (1, 6, math.ceil(res / 4), math.ceil(res / 4))
    assert grounding.mask_logits.isfinite().all()


@torch.no_grad()
def test_a_batch_equals_one_by_one():
    backbone, pictures = backbone_of(micro_vit(PAPER_RULE).backbone), random_pictures(3, 80) / 255
    together = backbone(pictures)
    for index in range(3):
        for whole, alone in zip(together, backbone(pictures[index, None]), strict=True):
            torch.testing.assert_close(whole[index], alone[0], **CLOSE)
    assert not torch.allclose(together[0][0], together[0][1], atol=1e-2)


def test_gradients_reach_every_weight():
    network = drawn(micro_vit(PAPER_RULE), seed=0).train()
    outputs, phrase = network(random_pictures(1, 72), random_phrases(2), every_layer=True)
    sum(
        g.mask_logits.square().mean() + network.similarity(g.query_embedding, phrase).square().mean() for g in outputs
    ).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.slow
@pytest.mark.skipif(not qnn_available(), reason="needs Qualcomm's compiler")
def test_the_npus_compiler_places_all_of_it():
    network = drawn(micro_vit(PAPER_RULE), seed=0).requires_grad_(False)
    assert measure_npu(lambda: DeployedXDecoder(network, 96)).error == ""


@pytest.mark.slow
@pytest.mark.parametrize("res", [96, 100])
def test_it_is_exported_and_decides_the_same(tmp_path, res):
    """Also where positions are resized, 16 does not divide the side, or the map of patches is odd."""
    picture = torch.nn.functional.interpolate(random_pictures(1, 32), size=(CANVAS, CANVAS), mode="bicubic")
    ids = random_phrases(1)
    sample = HubInput("sample", picture.clamp(0, 255).round().numpy(), torch.stack((ids, torch.ones_like(ids))).numpy())
    network = drawn(micro_vit(PAPER_RULE), seed=0)
    config, path = export_config(1), tmp_path / "graphs"
    report = export_graphs(network, res, config, [sample], path, model="micro", checkpoint_sha256="00")
    assert report.differing_pixels_worst <= MOST_DIFFERING_PIXELS
    assert report.parameters == sum(parameter.numel() for parameter in network.parameters())
