"""The pixel decoder: what it hands out, and in which order."""

import torch
from torch.nn import functional as F

from promptseg.networks.xdecoder.layers import sine_positions
from promptseg.networks.xdecoder.pixel_decoder import EncoderLayer, PixelDecoder, PixelDecoderConfig

CONFIG = PixelDecoderConfig(dim=16, mask_dim=12, heads=2, ffn_dim=32, encoder_layers=2, norm_groups=4)
CHANNELS = (4, 8, 12, 20)
SIDES = (17, 9, 5, 3)


def _decoder_and_maps() -> tuple[PixelDecoder, list[torch.Tensor]]:
    torch.manual_seed(0)
    decoder = PixelDecoder(CHANNELS, CONFIG)
    return decoder, [torch.randn(2, channels, side, side + 1) for channels, side in zip(CHANNELS, SIDES, strict=True)]


def test_sizes_coarsest_first():
    decoder, maps = _decoder_and_maps()
    mask_features, pyramid = decoder(maps)
    assert mask_features.shape == (2, 12, 17, 18)
    assert [tuple(each.shape) for each in pyramid] == [(2, 16, 3, 4), (2, 16, 5, 6), (2, 16, 9, 10)]


def test_each_finer_map_adds_the_coarser_one_by_nearest_neighbour():
    decoder, maps = _decoder_and_maps()
    _, pyramid = decoder(maps)
    rows, columns = (torch.arange(5) * 3 // 5), (torch.arange(6) * 4 // 6)
    coarser = pyramid[0][:, :, rows][..., columns]
    expected = F.relu(decoder.output[1](decoder.lateral[0](maps[2]) + coarser))
    torch.testing.assert_close(pyramid[1], expected)


def test_only_the_coarsest_map_reaches_the_coarsest_output():
    decoder, maps = _decoder_and_maps()
    before = decoder(maps)[1][0]
    after = decoder([*(torch.zeros_like(each) for each in maps[:3]), maps[3]])[1][0]
    assert torch.equal(before, after)


def test_mask_features_keep_their_sign():
    decoder, maps = _decoder_and_maps()
    mask_features, pyramid = decoder(maps)
    assert (mask_features < 0).any()
    assert all((each >= 0).all() for each in pyramid)


def test_an_encoder_layer_adds_positions_to_queries_and_keys_only():
    torch.manual_seed(0)
    layer, x = EncoderLayer(CONFIG), torch.randn(2, 6, 16)
    positions = sine_positions(2, 3, 16, x)
    y = layer.norm1(x + layer.attention(x + positions, x + positions, x))
    expected = layer.norm2(y + layer.ffn[2](F.relu(layer.ffn[0](y))))
    torch.testing.assert_close(layer(x, positions), expected)
    assert not torch.allclose(layer(x, positions), layer(x, torch.zeros(6, 16)), atol=1e-3)
