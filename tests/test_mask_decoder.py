"""The mask decoder's rules: where a query may look, which map each layer sees, what reaches what."""

import itertools

import pytest
import torch
from networks import micro
from torch import Tensor
from torch.nn import functional as F

from promptseg.networks.xdecoder.layers import BLOCKED
from promptseg.networks.xdecoder.mask_decoder import MaskAttention, MaskDecoder

RULES = [MaskAttention(*pair) for pair in itertools.product(("inside", "outside"), ("bicubic", "bilinear"))]
SIZES = ((2, 3), (4, 5), (7, 9))  # of the maps, coarsest first
MASK_SIZE = (13, 17)


def _decoder(rule: MaskAttention) -> MaskDecoder:
    torch.manual_seed(0)
    return MaskDecoder(micro(rule).mask_decoder).eval()


def _inputs(pictures: int, phrases: int) -> tuple[Tensor, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return draw(pictures, 16, *MASK_SIZE), [draw(pictures, 16, *size) for size in SIZES], draw(phrases, 16)


def _may_look(mask: Tensor, query: int, rule: MaskAttention) -> list[bool]:
    """The rules in words, for one query's mask logits at the map's size."""
    inside = [logit >= 0 for logit in mask.flatten().tolist()]
    if query == 0:
        return [True] * len(inside)
    if rule.attends == "inside":
        return inside if any(inside) else [True] * len(inside)
    outside = [not each for each in inside]
    return outside if any(outside) else [True] * len(inside)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_query_looks_where_the_rule_says(rule):
    decoder = _decoder(rule)
    state = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2))
    features = _inputs(2, 2)[0] + 0.3  # not symmetric around zero
    features = F.pad(features[:, :15], (0, 0, 0, 0, 0, 1), value=1.0)  # a channel that is 1 everywhere shifts a mask
    with torch.no_grad():
        embedded = decoder.mask_embedding(state)
    embedded[:, 1, 15] = -100  # an empty mask
    embedded[:, 2, 15] = 100  # a full one
    decoder.mask_embedding = torch.nn.Identity()
    full_size = torch.einsum("bqm,bmhw->bqhw", embedded, features)
    mode = {"mode": "bilinear"} if rule.resize == "bilinear" else {"mode": "bicubic", "antialias": True}
    for size in SIZES:
        masks = F.interpolate(full_size, size=size, **mode)
        bias = decoder._attention_bias(embedded, decoder._resize_features(features, torch.Size(size)).flatten(2))
        for row, query in itertools.product(range(2), range(6)):
            may = torch.tensor(_may_look(masks[row, query], query, rule))
            expected = torch.where(may, 0.0, BLOCKED).softmax(0)
            torch.testing.assert_close(bias[row, query].softmax(0), expected)
        assert (bias[:, 3:] == BLOCKED).any(), "no query was limited"


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_levels_take_turns_and_what_is_blocked_is_not_seen(rule):
    decoder, (features, pyramid, phrase) = _decoder(rule), _inputs(1, 1)
    with torch.no_grad():
        before = decoder.forward_layers(features, pyramid, phrase)
        for level in range(3):
            changed = [torch.randn_like(each) if index == level else each for index, each in enumerate(pyramid)]
            after = decoder.forward_layers(features, changed, phrase)
            same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
            assert same == [state <= level for state in range(5)]


def test_a_layer_is_cross_attention_then_self_attention_then_feed_forward():
    decoder, (features, pyramid, phrase) = _decoder(RULES[0]), _inputs(1, 1)
    layer, queries = decoder.layers[0], decoder.query_content[None]
    with torch.no_grad():
        keys, values = decoder._keys_and_values(pyramid[0], 0)
        small = F.interpolate(features, size=SIZES[0], mode="bicubic", antialias=True).flatten(2)
        bias = decoder._attention_bias(decoder.norm(queries), small)
        placed = queries + decoder.query_position
        x = layer.cross_norm(queries + layer.cross_attention(placed, keys, values, bias[:, None]))
        x = torch.cat((x, phrase[None]), dim=1)
        placed = x + torch.cat((decoder.query_position[None], phrase[None]), dim=1)
        x = layer.self_norm(x + layer.self_attention(placed, placed, x))
        x = layer.ffn_norm(x + layer.ffn(x))
        torch.testing.assert_close(decoder.forward_layers(features, pyramid, phrase)[1], decoder.norm(x[:, :6]))


def test_keys_carry_positions_and_values_only_where_the_configuration_says_so():
    decoder = _decoder(RULES[0])
    keys, values = decoder._keys_and_values(torch.zeros(1, 16, 2, 3), 1)
    assert torch.equal(values[0], decoder.level_embedding[1].expand(6, 16))
    assert len(torch.unique(keys[0].detach(), dim=0)) == 6
    decoder.values_carry_positions = True
    placed_keys, placed_values = decoder._keys_and_values(torch.zeros(1, 16, 2, 3), 1)
    assert torch.equal(placed_keys, keys)
    assert torch.equal(placed_values, keys)


def test_masks_are_products_of_queries_and_pixels():
    decoder, (features, pyramid, phrase) = _decoder(RULES[0]), _inputs(2, 4)
    with torch.no_grad():
        states = decoder.forward_layers(features, pyramid, phrase)
        outputs = decoder(features, pyramid, phrase, every_layer=True)
        for state, grounding in zip(states, outputs, strict=True):
            own_features = features.repeat_interleave(2, dim=0)
            masks = torch.einsum("bqm,bmhw->bqhw", decoder.mask_embedding(state), own_features)
            torch.testing.assert_close(grounding.mask_logits, masks)
            torch.testing.assert_close(grounding.query_embedding, state @ decoder.class_projection)


def test_attention_masks_pass_no_gradient_to_the_features():
    decoder, (features, pyramid, phrase) = _decoder(RULES[0]), _inputs(1, 1)
    features.requires_grad_()
    state = decoder.forward_layers(features, pyramid, phrase)[-1]
    assert torch.autograd.grad(state.sum(), features, allow_unused=True) == (None,)


@pytest.mark.parametrize(("attends", "resize"), [("Inside", "bilinear"), ("inside", "nearest"), (None, "bicubic")])
def test_an_unknown_rule_is_refused(attends, resize):
    with pytest.raises(ValueError, match=r"wanted attends of \('inside', 'outside'\) and resize of"):
        MaskAttention(attends, resize)
