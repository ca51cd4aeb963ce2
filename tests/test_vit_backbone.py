"""SAM's ViT and the pyramid against published numbers, and against a slow oracle, at sizes that nothing divides."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import PAPER_RULE, drawn, micro_vit, random_phrases, random_pictures
from torch import Tensor

from benchmarks.recipe import made_up
from promptseg.checkpoints.published_keys import key_table
from promptseg.datasets.preprocess import CANVAS
from promptseg.export.onnx_export import MOST_DIFFERING_PIXELS, export_graph
from promptseg.hubs.base import HubInput
from promptseg.networks.xdecoder.model import MEAN, STD, build_on_meta, vit_b
from promptseg.networks.xdecoder.vit_backbone import VitAttention, VitBackbone, VitBlock, VitConfig, distances
from promptseg.params import ExportConfig

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


def attention_oracle(attention: VitAttention, x: Tensor, side: int) -> Tensor:
    """Query after query and key after key, where `side` is what the tables were made for: (H, W, C) -> (H, W, C)."""
    height, width, dim = x.shape
    size = dim // attention.heads
    qkv = attention.qkv(x).view(height, width, 3, attention.heads, size)
    out = torch.zeros(height, width, attention.heads, size)
    places = [(row, column) for row in range(height) for column in range(width)]
    for head in range(attention.heads):
        for row, column in places:
            q = qkv[row, column, 0, head]
            scores = [
                q @ qkv[r, c, 1, head] / math.sqrt(size)
                + q @ attention.relative_rows[row - r + side - 1]
                + q @ attention.relative_columns[column - c + side - 1]
                for r, c in places
            ]
            weights = torch.stack(scores).softmax(0)
            out[row, column, head] = sum(w * qkv[r, c, 2, head] for w, (r, c) in zip(weights, places, strict=True))
    return attention.proj(out.flatten(2))


@torch.no_grad()
def test_attention_is_that_of_an_oracle():
    torch.manual_seed(1)
    attention = VitAttention(8, 2, side=3)
    for table in (attention.relative_rows, attention.relative_columns):
        table.normal_()
    x = torch.randn(1, 3, 3, 8)
    torch.testing.assert_close(attention(x)[0], attention_oracle(attention, x[0], 3), **CLOSE)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 7), (2, 2)])
@torch.no_grad()
def test_windows_are_looked_at_one_by_one(height, width):
    """Windows begin at the left and top; what a map lacks to whole windows counts as zeros that are looked at."""
    torch.manual_seed(2)
    block = VitBlock(VitConfig(8, 1, 2, 3, (), 3, (8, 8, 8, 8)), window=3)
    block.attention.relative_rows.normal_()
    x = torch.randn(1, height, width, 8)
    padded = torch.zeros(9, 9, 8)
    padded[:height, :width] = x[0]
    wanted = torch.zeros(9, 9, 8)
    for top in (0, 3, 6):
        for left in (0, 3, 6):
            window = padded[None, top : top + 3, left : left + 3]
            wanted[top : top + 3, left : left + 3] = block.attention(window)[0]
    torch.testing.assert_close(block._in_windows(x)[0], wanted[:height, :width], **CLOSE)


@pytest.mark.parametrize(("made_for", "side"), [(4, 4), (4, 7), (4, 2), (64, 32)])
def test_distances_of_another_size_lie_between_the_learnt_ones(made_for, side):
    table = torch.randn(2 * made_for - 1, 3, generator=torch.Generator().manual_seed(side))
    got = distances(table, side)
    centres = (np.arange(2 * side - 1) + 0.5) * len(table) / (2 * side - 1) - 0.5
    between = np.stack([np.interp(centres, np.arange(len(table)), column) for column in table.T.numpy()], axis=1)
    for query in range(side):
        for key in range(side):
            np.testing.assert_allclose(got[query, key].numpy(), between[query - key + side - 1], atol=1e-4)


def test_positions_are_as_learnt_where_they_fit_and_keep_their_mean_elsewhere():
    backbone = backbone_of(micro_vit(PAPER_RULE).backbone)
    assert backbone._positions(4, 4) is backbone.positions
    with torch.no_grad():
        backbone.positions.fill_(0.5)
    for height, width in ((7, 7), (3, 3), (5, 2)):
        torch.testing.assert_close(backbone._positions(height, width), torch.full((1, height, width, 16), 0.5))


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
@pytest.mark.parametrize("res", [96, 100])
def test_it_is_exported_and_decides_the_same(tmp_path, res):
    """Also where positions are resized, 16 does not divide the side, or the map of patches is odd."""
    picture = torch.nn.functional.interpolate(random_pictures(1, 32), size=(CANVAS, CANVAS), mode="bicubic")
    ids = random_phrases(1)
    sample = HubInput("sample", picture.clamp(0, 255).round().numpy(), torch.stack((ids, torch.ones_like(ids))).numpy())
    network = drawn(micro_vit(PAPER_RULE), seed=0)
    config, path = ExportConfig(opset=18, parity_samples=1), tmp_path / "model.onnx"
    report = export_graph(network, res, config, [sample], path, model="micro", checkpoint_sha256="00")
    assert report.differing_pixels_worst <= MOST_DIFFERING_PIXELS
    assert report.parameters == sum(parameter.numel() for parameter in network.parameters())
