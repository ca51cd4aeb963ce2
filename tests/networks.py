"""Networks for the tests: very small, with weights that make every part of them matter."""

from dataclasses import replace

import torch
from torch import Tensor

from promptseg.datasets.tokenizer import END_OF_TEXT
from promptseg.networks.xdecoder.backbone import FocalConfig
from promptseg.networks.xdecoder.mask_decoder import MaskAttention, MaskDecoderConfig
from promptseg.networks.xdecoder.model import XDecoder, XDecoderConfig
from promptseg.networks.xdecoder.pixel_decoder import PixelDecoderConfig
from promptseg.networks.xdecoder.text_encoder import TextConfig
from promptseg.networks.xdecoder.vit_backbone import VitConfig

PAPER_RULE = MaskAttention("inside", "bicubic")


def micro(mask_attention: MaskAttention) -> XDecoderConfig:
    """A third of a million parameters, nearly all of them CLIP's vocabulary."""
    return XDecoderConfig(
        backbone=FocalConfig(
            8, (1, 1, 1, 1), focal_levels=(2, 2, 2, 2), focal_windows=(3, 3, 3, 3), layer_scale_init=0.5
        ),
        text=TextConfig(width=4, heads=2, layers=1, context_length=77, vocab_size=49408),
        pixel_decoder=PixelDecoderConfig(dim=16, mask_dim=16, heads=2, ffn_dim=32, encoder_layers=1, norm_groups=4),
        mask_decoder=MaskDecoderConfig(
            dim=16,
            mask_dim=16,
            heads=2,
            ffn_dim=32,
            layers=4,
            object_queries=6,
            values_carry_positions=False,
            mask_attention=mask_attention,
        ),
        canvas_rule="crop",
    )


def micro_vit(mask_attention: MaskAttention) -> XDecoderConfig:
    """The micro decoders on a very small ViT, with a block that looks at windows and one that looks at everything."""
    backbone = VitConfig(16, depth=2, heads=2, window=3, global_blocks=(1,), position_side=4, channels=(8, 16, 32, 64))
    return replace(micro(mask_attention), backbone=backbone)


def micro_phrase(mask_attention: MaskAttention) -> XDecoderConfig:
    """The micro network with one query, that starts from the phrase, and positions in its maps."""
    config = micro(mask_attention)
    return replace(
        config,
        pixel_decoder=replace(config.pixel_decoder, maps_carry_positions=True),
        mask_decoder=replace(config.mask_decoder, object_queries=1, phrase_query=True),
    )


def micro_network(mask_attention: MaskAttention = PAPER_RULE, seed: int = 0) -> XDecoder:
    """A micro network, biases and norms drawn too, in evaluation mode."""
    return drawn(micro(mask_attention), seed)


def drawn(config: XDecoderConfig, seed: int) -> XDecoder:
    """A network of a configuration, biases and norms drawn too, in evaluation mode."""
    torch.manual_seed(seed)
    network = XDecoder(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def random_pictures(count: int, res: int, seed: int = 1) -> Tensor:
    """Float32 [count, 3, res, res], 0..255."""
    return torch.rand(count, 3, res, res, generator=torch.Generator().manual_seed(seed)) * 255


def random_phrases(count: int, seed: int = 2) -> Tensor:
    """Int32 [count, 77]: ids of random phrases of different lengths, padded with END_OF_TEXT."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((count, 77), END_OF_TEXT, dtype=torch.int32)
    for row in ids:
        length = int(torch.randint(1, 20, (), generator=generator))
        row[: length + 1] = torch.randint(0, END_OF_TEXT, (length + 1,), generator=generator)
    return ids
