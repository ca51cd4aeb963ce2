"""The Focal backbone: sizes, and each block against its formula written out."""

import pytest
import torch
from networks import PAPER_RULE, micro
from torch.nn import functional as F

from promptseg.networks.xdecoder.backbone import DepthwiseConv, Downsample, FocalBackbone, FocalBlock, FocalModulation


def test_channels_double_with_every_stage():
    config = micro(PAPER_RULE).backbone
    torch.manual_seed(0)
    maps = FocalBackbone(config)(torch.randn(2, 3, 64, 96))
    assert config.channels == (8, 16, 32, 64)
    assert [tuple(each.shape) for each in maps] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]


def test_the_maps_handed_out_are_normalised_and_the_ones_passed_on_are_not():
    torch.manual_seed(0)
    backbone = FocalBackbone(micro(PAPER_RULE).backbone)
    for stage in backbone.stages:
        torch.nn.init.constant_(stage.blocks[-1].norm2.weight, 3.0)
    passed_on = []
    backbone.stages[1].register_forward_pre_hook(lambda _, inputs: passed_on.append(inputs[0]))
    finest = backbone(torch.randn(1, 3, 64, 64))[0]
    assert finest.std(dim=1, correction=0).mean().item() == pytest.approx(1, abs=0.01)
    assert passed_on[0].std(dim=3, correction=0).mean().item() == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("side", [32, 33, 34, 35, 36])
def test_downsampling_pads_with_zeros_to_the_right_and_below(side):
    torch.manual_seed(0)
    layer = Downsample(3, 4, 7, 4, 3)
    picture = torch.randn(1, side, side, 3)
    padded = torch.zeros(1, 36 if side > 32 else 32, 36 if side > 32 else 32, 3)
    padded[:, :side, :side] = picture
    assert torch.equal(layer(picture), layer(padded))
    assert layer(picture).shape == (1, -(-side // 4), -(-side // 4), 4)


def test_depthwise_convolution_treats_channels_alone():
    torch.manual_seed(0)
    conv, x = DepthwiseConv(3, 5, bias=True), torch.randn(1, 6, 7, 3)
    for channel in range(3):
        alone = F.conv2d(x[None, ..., channel], conv.weight[channel, None], conv.bias[channel, None], padding=2)
        torch.testing.assert_close(conv(x)[..., channel], alone[0])


def test_modulation_equals_its_formula():
    torch.manual_seed(0)
    layer, x = FocalModulation(6, levels=2, window=3), torch.randn(1, 5, 4, 6)
    together = layer.input_proj(x)
    query, context, gates = together[..., :6], together[..., 6:12], together[..., 12:]
    first = F.gelu(layer.context_convs[0](context))
    second = F.gelu(layer.context_convs[1](first))
    everywhere = F.gelu(second.mean(dim=(1, 2)))[:, None, None]
    total = first * gates[..., 0, None] + second * gates[..., 1, None] + everywhere * gates[..., 2, None]
    expected = layer.output_proj(query * layer.context_proj(total / 3))
    torch.testing.assert_close(layer(x), expected)
    assert [conv.kernel_size for conv in layer.context_convs] == [(3, 3), (5, 5)]


def test_a_block_is_post_norm_with_layer_scale():
    torch.manual_seed(0)
    block, x = FocalBlock(6, levels=1, window=3, layer_scale_init=0.5), torch.randn(1, 5, 4, 6)
    y = x + block.local1(x)
    y = block.norm1(y + 0.5 * block.modulation(y))
    y = y + block.local2(y)
    torch.testing.assert_close(block(x), block.norm2(y + 0.5 * block.mlp(y)))
