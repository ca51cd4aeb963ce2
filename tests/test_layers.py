"""Attention against torch's own and against a loop; sine positions against a loop over the formula."""

import math

import pytest
import torch
from torch import nn

from promptseg.networks.xdecoder.layers import BLOCKED, Attention, causal_bias, sine_positions


def _attention_and_inputs() -> tuple[Attention, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    attention = Attention(12, heads=3)
    nn.init.normal_(attention.in_proj.bias)
    nn.init.normal_(attention.out_proj.bias)
    return attention, torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)


def _torchs_own(attention: Attention) -> nn.MultiheadAttention:
    own = nn.MultiheadAttention(12, 3, batch_first=True)
    own.load_state_dict(
        {
            "in_proj_weight": attention.in_proj.weight,
            "in_proj_bias": attention.in_proj.bias,
            "out_proj.weight": attention.out_proj.weight,
            "out_proj.bias": attention.out_proj.bias,
        }
    )
    return own


def test_equals_torchs_multi_head_attention():
    attention, query, key, value = _attention_and_inputs()
    expected, _ = _torchs_own(attention)(query, key, value)
    torch.testing.assert_close(attention(query, key, value), expected)


def test_a_bias_equals_torchs_boolean_mask():
    attention, query, key, value = _attention_and_inputs()
    blocked = torch.rand(2, 5, 7) < 0.5
    blocked[..., 0] = False
    expected, _ = _torchs_own(attention)(query, key, value, attn_mask=blocked.repeat_interleave(3, dim=0))
    torch.testing.assert_close(attention(query, key, value, (blocked * BLOCKED).unsqueeze(1)), expected)


def test_equals_a_loop_over_heads_and_queries():
    attention, query, key, value = _attention_and_inputs()
    weights, biases = attention.in_proj.weight.chunk(3), attention.in_proj.bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    mixed = torch.zeros(2, 5, 12)
    for row in range(2):
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            for place in range(5):
                scores = k[row, :, part] @ q[row, place, part] / 4**0.5
                mixed[row, place, part] = scores.softmax(0) @ v[row, :, part]
    torch.testing.assert_close(attention(query, key, value), attention.out_proj(mixed))


def test_blocked_is_nothing_in_every_float_format():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        bias = torch.tensor([0.0, BLOCKED], dtype=dtype)
        assert bias.isfinite().all()
        assert bias.softmax(0).tolist() == [1.0, 0.0]


def test_the_causal_bias_hides_what_follows():
    assert causal_bias(3).tolist() == [[0, BLOCKED, BLOCKED], [0, 0, BLOCKED], [0, 0, 0]]


@pytest.mark.parametrize(("height", "width", "dim"), [(1, 1, 4), (3, 5, 16), (4, 2, 8)])
def test_equals_the_formula(height, width, dim):
    expected = []
    for y in range(height):
        for x in range(width):
            row = []
            for place, length in ((y, height), (x, width)):
                share = (place + 1) / (length + 1e-6) * 2 * math.pi
                for channel in range(dim // 2):
                    angle = share / 10_000 ** (2 * (channel // 2) / (dim // 2))
                    row.append(math.cos(angle) if channel % 2 else math.sin(angle))
            expected.append(row)
    got = sine_positions(height, width, dim, torch.zeros(1))
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=0)


def test_takes_the_dtype_of_the_map_but_computes_in_float32():
    half = sine_positions(9, 9, 16, torch.zeros(1, dtype=torch.float16))
    assert half.dtype == torch.float16
    assert torch.equal(half, sine_positions(9, 9, 16, torch.zeros(1)).half())


def test_no_two_places_are_alike():
    assert len(torch.unique(sine_positions(8, 12, 16, torch.zeros(1)), dim=0)) == 96
