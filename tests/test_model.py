"""The network against the published one's numbers, its properties, and its geometry against slow oracles."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from networks import PAPER_RULE, drawn, micro, micro_network, micro_phrase, random_phrases, random_pictures
from published import VARIANTS, published_network, published_numbers
from torch import Tensor
from torch.nn import functional as F

from promptseg.networks.xdecoder.layers import BLOCKED
from promptseg.networks.xdecoder.mask_decoder import MaskAttention, MaskDecoder
from promptseg.networks.xdecoder.model import CanvasRule, XDecoder, best_masks, masks_to_canvas, nano, resize_canvas
from promptseg.training.data import soft_target

PUBLISHED_RES, PUBLISHED_CANVAS = 72, 128
RULES = get_args(CanvasRule)
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}  # of maps and logits against the published ones, float32
# The challenge's code adds -10,000 to every score of a query that may look everywhere, as the first one may. To softmax
# a constant is nothing, but in float32 it rounds those scores to thousandths. Ours adds none, and is not rounded.
ROUNDED_TOLERANCE = {"atol": 5e-4, "rtol": 1e-4}
FLIPPED_SHARE = 1e-3  # of a mask's pixels


@pytest.fixture(scope="module", params=VARIANTS)
def expected_and_computed(request: pytest.FixtureRequest) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The published numbers of a variant and ours, by the fixture's names."""
    numbers = published_numbers()
    network = published_network(request.param)
    with torch.no_grad():
        computed = _intermediates(network, numbers["image_input"].float(), numbers["text_input"][0])
    expected = {name: numbers[f"{request.param}/{name}"] for name in computed}
    assert {f"{request.param}/{name}" for name in expected} == {n for n in numbers if n.startswith(request.param)}
    return expected, computed


def _intermediates(network: XDecoder, canvas: Tensor, token_ids: Tensor) -> dict[str, Tensor]:
    picture = resize_canvas(canvas, PUBLISHED_RES)
    maps = network.backbone((picture - network.mean) / network.std)
    mask_features, pyramid = network.pixel_decoder(maps)
    (grounding,), phrase = network(picture, token_ids)
    similarity = network.similarity(grounding.query_embedding, phrase)
    best = best_masks(grounding, similarity)
    return {
        **{f"res{level}": each for level, each in enumerate(maps, start=2)},
        **{f"ms{level}": each for level, each in enumerate(pyramid)},
        "mask_features": mask_features,
        "text_embedding": phrase,
        "pred_masks": grounding.mask_logits,
        "pred_captions": grounding.query_embedding,
        "similarity": similarity / network.log_temperature.exp(),
        "best_query": similarity.argmax(1),
        "best_mask_logits": best,
        "mask": (masks_to_canvas(best, PUBLISHED_RES, PUBLISHED_CANVAS, "stretch") > 0).float(),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("res2", "res3", "res4", "res5", "ms0", "ms1", "ms2", "mask_features", "text_embedding"),
        *("pred_captions", "similarity", "best_mask_logits"),
    ],
)
def test_intermediates_equal_the_published(expected_and_computed, name):
    expected, computed = (numbers[name].squeeze() for numbers in expected_and_computed)
    torch.testing.assert_close(computed.squeeze(), expected, **TOLERANCE)


def test_mask_logits_equal_the_published(expected_and_computed):
    expected, computed = (numbers["pred_masks"].squeeze() for numbers in expected_and_computed)
    torch.testing.assert_close(computed[1:], expected[1:], **TOLERANCE)
    torch.testing.assert_close(computed[0], expected[0], **ROUNDED_TOLERANCE)


def test_rounded_like_the_published_the_first_query_equals_it_as_closely(monkeypatch):
    exact = MaskDecoder._attention_bias

    def rounded(self: MaskDecoder, state: Tensor, pixels: Tensor) -> Tensor:
        bias = exact(self, state, pixels)
        looks_everywhere = (bias == 0).all(dim=2, keepdim=True)
        return bias.masked_fill(looks_everywhere, BLOCKED)

    monkeypatch.setattr(MaskDecoder, "_attention_bias", rounded)
    numbers = published_numbers()
    with torch.no_grad():
        ours = _intermediates(published_network("lpcvc25"), numbers["image_input"].float(), numbers["text_input"][0])
    torch.testing.assert_close(ours["pred_masks"].squeeze(), numbers["lpcvc25/pred_masks"], **TOLERANCE)


def test_the_chosen_query_and_its_mask_equal_the_published(expected_and_computed):
    expected, computed = expected_and_computed
    assert int(computed["best_query"]) == int(expected["best_query"])
    assert 0 < expected["mask"].float().mean() < 1
    assert (computed["mask"].squeeze() != expected["mask"].squeeze()).float().mean() <= FLIPPED_SHARE


def test_the_two_rules_of_mask_attention_differ():
    numbers = published_numbers()
    assert not torch.allclose(numbers["xdecoder/pred_masks"], numbers["lpcvc25/pred_masks"], **TOLERANCE)
    with torch.no_grad():
        wrong = _intermediates(published_network("lpcvc25"), numbers["image_input"].float(), numbers["text_input"][0])
    assert not torch.allclose(wrong["pred_masks"].squeeze(), numbers["xdecoder/pred_masks"], **TOLERANCE)


@torch.no_grad()
def _outputs(network: XDecoder, pictures: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    (grounding,), phrase = network(pictures, ids)
    return grounding.mask_logits, network.similarity(grounding.query_embedding, phrase)


@pytest.mark.parametrize("rule", VARIANTS.values(), ids=VARIANTS)
def test_a_batch_equals_one_by_one(rule):
    network, pictures, ids = micro_network(rule), random_pictures(3, 72), random_phrases(3)
    masks, similarity = _outputs(network, pictures, ids)
    for row in range(3):
        alone = _outputs(network, pictures[row : row + 1], ids[row : row + 1])
        torch.testing.assert_close((masks[row], similarity[row]), (alone[0][0], alone[1][0]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(similarity[0], similarity[1], atol=1e-2)


@pytest.mark.parametrize("rule", VARIANTS.values(), ids=VARIANTS)
def test_the_phrases_of_a_picture_together_equal_one_by_one(rule):
    network, pictures, ids = micro_network(rule), random_pictures(2, 72), random_phrases(6)
    masks, similarity = _outputs(network, pictures, ids)
    for row in range(6):
        alone = _outputs(network, pictures[row // 3, None], ids[row : row + 1])
        torch.testing.assert_close((masks[row], similarity[row]), (alone[0][0], alone[1][0]), atol=1e-4, rtol=1e-4)


def test_the_last_of_every_layer_equals_the_last_only():
    network, pictures, ids = micro_network(), random_pictures(1, 72), random_phrases(2)
    with torch.no_grad():
        every, phrase = network(pictures, ids, every_layer=True)
        (last,), same_phrase = network(pictures, ids)
    assert len(every) == 1 + network.config.mask_decoder.layers
    assert torch.equal(every[-1].mask_logits, last.mask_logits)
    assert torch.equal(every[-1].query_embedding, last.query_embedding)
    assert torch.equal(phrase, same_phrase)


@pytest.mark.parametrize("res", [64, 70, 99, 100, 131])
def test_sizes_that_no_stride_divides(res):
    network, pictures = micro_network(), random_pictures(1, res)
    with torch.no_grad():
        maps = network.backbone(pictures)
        mask_features, pyramid = network.pixel_decoder(maps)
        (grounding,), _ = network(pictures, random_phrases(1))
    sides = [math.ceil(res / stride) for stride in (4, 8, 16, 32)]
    assert [tuple(each.shape[2:]) for each in maps] == [(side, side) for side in sides]
    assert [each.shape[-1] for each in pyramid] == sides[:0:-1]
    assert mask_features.shape[2:] == grounding.mask_logits.shape[2:] == (sides[0], sides[0])
    assert masks_to_canvas(grounding.mask_logits[0], res, 128, "crop").shape == (6, 128, 128)
    assert grounding.mask_logits.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_predicted_masks_are_those_of_the_most_similar_queries_by_the_rule_of_the_network(rule):
    network, pictures, ids = (
        drawn(replace(micro(PAPER_RULE), canvas_rule=rule), 0),
        random_pictures(2, 70),
        random_phrases(4),
    )
    with torch.no_grad():
        (output,), phrase = network(pictures, ids)
        mask_logits, similarity, presence = network.predict(pictures, ids, 96)
    assert torch.equal(similarity, network.similarity(output.query_embedding, phrase))
    assert mask_logits.shape == (4, 96, 96)
    assert presence is None
    for row, best in enumerate(similarity.argmax(1).tolist()):
        wanted = masks_to_canvas(output.mask_logits[row, best][None], 70, 96, rule)[0]
        torch.testing.assert_close(mask_logits[row], wanted)


def test_one_query_that_starts_from_the_phrase_tells_phrases_apart_before_any_layer_and_says_what_is_there():
    network, pictures, ids = drawn(micro_phrase(PAPER_RULE), 0), random_pictures(2, 64), random_phrases(4)
    with torch.no_grad():
        outputs, _ = network(pictures, ids, every_layer=True)
        mask_logits, similarity, presence = network.predict(pictures, ids, 96)
        first = outputs[0].mask_logits[:2]
        network.presence_bias.fill_(-50.0)
        unlikely = network.predict(pictures, ids, 96).presence
    assert not torch.allclose(first[0], first[1], atol=1e-3)
    assert (mask_logits.shape, similarity.shape, presence.shape) == ((4, 96, 96), (4, 1), (4,))
    assert ((presence > 0) & (presence < 1)).all()
    assert (unlikely < 1e-9).all()


def test_maps_that_carry_positions_know_left_from_right():
    """Of a picture of one colour, away from its borders, other maps know nothing."""
    plain, carrying = (drawn(config, 0) for config in (micro(PAPER_RULE), micro_phrase(PAPER_RULE)))
    with torch.no_grad():
        spread = [
            network.encode(torch.full((1, 3, 512, 512), 99.0))[1][0][..., 5:-5, 5:-5].std((2, 3)).max().item()
            for network in (plain, carrying)
        ]
    assert spread[1] > 3 * spread[0]


def test_the_phrase_decides():
    network, pictures = micro_network(), random_pictures(1, 72)
    masks, _ = _outputs(network, pictures, random_phrases(2))
    assert not torch.allclose(masks[0], masks[1], atol=1e-3)


def test_the_picture_is_normalised():
    network = micro_network()
    seen = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.tensor([123.675, 116.28, 103.53 + 57.375]).view(1, 3, 1, 1).expand(1, 3, 64, 64), random_phrases(1))
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([0.0, 0.0, 1.0]), atol=1e-5, rtol=0)


def test_gradients_reach_every_weight_and_the_text():
    network, ids = micro_network(MaskAttention("inside", "bilinear")).train(), random_phrases(2)
    outputs, phrase = network(random_pictures(1, 72), ids, every_layer=True)
    text = torch.autograd.grad(outputs[-1].mask_logits.square().sum(), phrase, retain_graph=True)[0]
    assert (text.abs().amax(1) > 0).all(), "the masks do not learn from the phrase"
    loss = sum(
        g.mask_logits.square().mean() + network.similarity(g.query_embedding, phrase).square().mean() for g in outputs
    )
    loss.backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_equal_seeds_give_equal_networks():
    torch.manual_seed(3)
    one = XDecoder(micro(PAPER_RULE)).state_dict()
    torch.manual_seed(3)
    two = XDecoder(micro(PAPER_RULE)).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_nano_is_as_small_as_it_says():
    network = XDecoder(nano(PAPER_RULE))
    words = network.text_encoder.token_embedding.weight.numel()
    total = sum(parameter.numel() for parameter in network.parameters())
    assert total < 5_000_000
    assert 0.6 < words / total < 0.7


def test_best_masks_are_those_of_the_most_similar_queries():
    network = micro_network()
    with torch.no_grad():
        (grounding,), _ = network(random_pictures(1, 72), random_phrases(2))
    similarity = torch.zeros(2, 6)
    similarity[0, 4] = similarity[1, 1] = 1
    best = best_masks(grounding, similarity)
    assert torch.equal(best, torch.stack([grounding.mask_logits[0, 4], grounding.mask_logits[1, 1]]))


def test_resize_canvas_has_half_pixel_centres_and_no_antialias():
    canvas = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 3, 8, 8)
    assert resize_canvas(canvas, 2)[0, 0, 0].tolist() == [1.5, 5.5]


def _oracle(logits: np.ndarray, res: int, canvas: int) -> np.ndarray:
    """One pixel after the other: where its centre lies on the input, then among the centres of the 4x4 cells."""
    side = len(logits)

    def neighbours(pixel: int) -> tuple[int, int, float]:
        cell = min(max((pixel + 0.5) * res / canvas / 4 - 0.5, 0), side - 1)
        low = int(cell)
        return low, min(low + 1, side - 1), cell - low

    out = np.zeros((canvas, canvas))
    for y in range(canvas):
        top, bottom, down = neighbours(y)
        for x in range(canvas):
            left, right, across = neighbours(x)
            upper = logits[top, left] * (1 - across) + logits[top, right] * across
            lower = logits[bottom, left] * (1 - across) + logits[bottom, right] * across
            out[y, x] = upper * (1 - down) + lower * down
    return out


@pytest.mark.parametrize("res", [64, 70, 99, 100, 131, 128, 200])
def test_cropped_masks_are_sampled_where_an_oracle_does(res):
    side = math.ceil(res / 4)
    logits = torch.randn(side, side, generator=torch.Generator().manual_seed(res))
    large = masks_to_canvas(logits[None], res, 96, "crop")[0]
    np.testing.assert_allclose(large.numpy(), _oracle(logits.double().numpy(), res, 96), atol=1e-4)


@pytest.mark.parametrize("res", [64, 196, 320, 784, 1024])
def test_both_rules_are_a_plain_resize_where_four_divides_res(res):
    logits = torch.randn(1, res // 4, res // 4, generator=torch.Generator().manual_seed(res))
    plain = F.interpolate(logits[None], size=(1024, 1024), mode="bilinear")[0]
    for rule in RULES:
        torch.testing.assert_close(masks_to_canvas(logits, res, 1024, rule), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("res", [590, 591, 1023])
def test_stretched_masks_are_a_plain_resize_at_every_size_and_cropped_ones_are_not(res):
    side = math.ceil(res / 4)
    logits = torch.randn(1, side, side, generator=torch.Generator().manual_seed(res))
    plain = F.interpolate(logits[None], size=(1024, 1024), mode="bilinear")[0]
    assert torch.equal(masks_to_canvas(logits, res, 1024, "stretch"), plain)
    assert not torch.allclose(masks_to_canvas(logits, res, 1024, "crop"), plain, atol=0.1)


def test_masks_to_canvas_fills_the_canvas_at_every_size():
    for res in range(64, 1025):
        column = torch.zeros(1, math.ceil(res / 4), 1)  # one cell wide, to be quick: rows and columns are alike
        assert all(masks_to_canvas(column, res, 1024, rule).shape[1] == 1024 for rule in RULES), res


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("res", [320, 590, 591, 593])
def test_a_training_target_comes_back_as_the_mask_it_was(res, rule):
    y, x = torch.meshgrid(torch.arange(1024), torch.arange(1024), indexing="ij")
    for mask in ((y - 500) ** 2 + (x - 420) ** 2 < 250**2, (y > 700) & (x > 600), (y < 90) & (x < 1024)):
        share = soft_target(mask, res, rule)
        assert share.shape == (math.ceil(res / 4),) * 2
        back = masks_to_canvas(torch.logit(share, eps=1e-4)[None], res, 1024, rule)[0] > 0
        assert ((back & mask).sum() / (back | mask).sum()).item() > 0.95
