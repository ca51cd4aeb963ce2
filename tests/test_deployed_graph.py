"""The deployment graph computes what the network computes, in other forms."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from promptseg.datasets.preprocess import CANVAS
from promptseg.export.deployed_graph import DeployedXDecoder, plain_mask
from promptseg.export.rewrites.features import upsampling_matrix
from promptseg.hubs.contract import IMAGE_INPUT, PRED_MASK
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import MASK_STRIDE, CanvasRule, XDecoder, masks_to_canvas, tiny
from tests.networks import drawn, micro, micro_network, micro_phrase, random_phrases, random_pictures

RULES = [MaskAttention("inside", "bicubic"), MaskAttention("outside", "bilinear")]
# Multiples of 32, of 4, of 2 (as 590 is) and of nothing.
SIZES = [64, 100, 131, 150]
MOST_FLIPPED = 2e-5  # share of the canvas: 20 pixels whose logits are zero up to rounding


def tiny_network(rule: MaskAttention) -> XDecoder:
    torch.manual_seed(0)
    return XDecoder(tiny(rule)).eval()


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """A picture with low and high frequencies and a border of zeros, and a phrase, as the contract has them."""
    image = torch.zeros(IMAGE_INPUT.shape)
    coarse = torch.nn.functional.interpolate(random_pictures(1, 16, seed), size=(700, 1024), mode="bicubic")
    image[:, :, :700] = (coarse + 0.2 * random_pictures(1, 1024, seed + 1)[:, :, :700]).clamp(0, 255).round()
    ids = random_phrases(1, seed)
    return image, torch.stack((ids, torch.ones_like(ids)))


@torch.inference_mode()
def compare(network: XDecoder, res: int, seed: int) -> tuple[Tensor, Tensor]:
    """What the graph puts out, float, and what the plain network decides, bool."""
    image, text = inputs(seed)
    return DeployedXDecoder(network, res).eval()(image, text), plain_mask(network, image, text, res)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.attends)
@pytest.mark.parametrize("res", SIZES)
def test_rewritten_equals_plain(rule: MaskAttention, res: int) -> None:
    pred_mask, plain = compare(micro_network(rule), res, seed=res)
    assert (tuple(pred_mask.shape), pred_mask.dtype) == (PRED_MASK.shape, torch.float32)
    assert 0.02 < plain.float().mean() < 0.98, "a mask of one value compares nothing"
    assert ((pred_mask > 0.5) != plain).float().mean() <= MOST_FLIPPED


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.attends)
def test_rewritten_equals_plain_for_a_network_of_another_shape(rule: MaskAttention) -> None:
    pred_mask, plain = compare(tiny_network(rule), 131, seed=3)
    assert 0.02 < plain.float().mean() < 0.98
    assert ((pred_mask > 0.5) != plain).float().mean() <= MOST_FLIPPED


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("res", [64, 131])
def test_rewritten_equals_plain_with_one_query_that_starts_from_the_phrase(res: int, values: bool) -> None:
    config = micro_phrase(RULES[0])
    config = replace(config, mask_decoder=replace(config.mask_decoder, values_carry_positions=values))
    network = drawn(config, 0)
    unbiased = compare(network, res, seed=res)[1]
    network.mask_bias.fill_(0.2)
    pred_mask, plain = compare(network, res, seed=res)
    assert 0.02 < plain.float().mean() < 0.98
    assert plain.sum() > unbiased.sum()
    assert ((pred_mask > 0.5) != plain).float().mean() <= MOST_FLIPPED


def test_the_phrase_and_the_picture_decide() -> None:
    """Else the comparisons above would hold for a constant."""
    network, (image, text) = micro_network(), inputs(0)
    graph = DeployedXDecoder(network, 96).eval()
    with torch.inference_mode():
        first = graph.best_mask_logits(image, text)
        other_phrase = graph.best_mask_logits(image, inputs(5)[1])
        other_picture = graph.best_mask_logits(image.flip(3), text)
    assert (first - other_phrase).abs().max() > 1e-3
    assert (first - other_picture).abs().max() > 1e-3


def test_the_attention_mask_is_taken_and_ignored() -> None:
    graph, (image, text) = DeployedXDecoder(micro_network(), 64).eval(), inputs(0)
    changed = text.clone()
    changed[1] = 0
    with torch.inference_mode():
        assert torch.equal(graph(image, text), graph(image, changed))


def test_the_chosen_query_is_the_plain_networks() -> None:
    """Over several phrases more than one query is chosen, so that choosing a fixed one would fail."""
    network, chosen = micro_network(), set()
    graph = DeployedXDecoder(network, 64).eval()
    for seed in range(12):
        image, text = inputs(seed)
        with torch.inference_mode():
            small = torch.nn.functional.interpolate(image, size=(64, 64), mode="bilinear")
            outputs, phrase = network(small, text[0])
            best = int(network.similarity(outputs[-1].query_embedding, phrase).argmax())
            mask_logits, likeness = graph.decode(graph.encode_picture(small), graph.encode_phrase(text[0]))
            torch.testing.assert_close(mask_logits, outputs[-1].mask_logits[0, best], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(likeness, network.similarity(outputs[-1].query_embedding, phrase))
            assert torch.equal(graph.best_mask_logits(image, text), mask_logits)
        chosen.add(best)
    assert len(chosen) > 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.attends)
@pytest.mark.parametrize("res", [131, 150, 590])
def test_masks_reach_the_canvas_by_the_rule_of_the_network(rule: MaskAttention, res: int) -> None:
    stretching = drawn(replace(micro(rule), canvas_rule="stretch"), 0)
    pred_mask, plain = compare(stretching, res, seed=1)
    assert ((pred_mask > 0.5) != plain).float().mean() <= 2.5 * MOST_FLIPPED
    image, text = inputs(1)
    assert (plain != plain_mask(micro_network(rule), image, text, res)).float().mean() > 25 * MOST_FLIPPED


def test_where_4_divides_the_side_both_canvas_rules_are_one() -> None:
    assert torch.equal(upsampling_matrix(320, "crop"), upsampling_matrix(320, "stretch"))


def test_nearly_every_pixel_is_decided() -> None:
    pred_mask, _ = compare(micro_network(), 100, seed=1)
    undecided = ((pred_mask > 0.01) & (pred_mask < 0.99)).float().mean()
    assert undecided < 0.05
    assert 0 <= pred_mask.min() <= pred_mask.max() <= 1


@settings(max_examples=10, deadline=None)
@given(st.integers(64, 512), st.integers(0, 1000), st.sampled_from(get_args(CanvasRule)))
def test_the_matrix_resizes_as_the_network_does(res: int, seed: int, rule: CanvasRule) -> None:
    cells = -(-res // MASK_STRIDE)
    logits = torch.randn(1, cells, cells, generator=torch.Generator().manual_seed(seed))
    matrix = upsampling_matrix(res, rule)
    assert tuple(matrix.shape) == (CANVAS, cells)
    torch.testing.assert_close(
        matrix @ logits[0] @ matrix.T, masks_to_canvas(logits, res, CANVAS, rule)[0], atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("res", [64, 590, 1023, 1024])
def test_every_pixel_is_a_mean_of_two_cells(res: int) -> None:
    matrix = upsampling_matrix(res, "crop")
    torch.testing.assert_close(matrix.sum(1), torch.ones(CANVAS))
    assert matrix.min() >= 0
    assert (matrix > 0).sum(1).max() <= 2


def test_the_graph_leaves_the_network_as_it_was() -> None:
    network = micro_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    compare(network, 64, seed=0)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
