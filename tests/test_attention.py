"""Attention against torch's own and against a loop."""

import torch
from torch import nn

from promptseg.networks.xdecoder.layers import BLOCKED, Attention, causal_bias


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
