"""The whole network, its configuration, and one literal builder per size."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.network import CanvasRule, Network, Prediction
from promptseg.networks.xdecoder.backbone import FocalBackbone, FocalBlock, FocalConfig
from promptseg.networks.xdecoder.mask_decoder import (
    DecoderLayer,
    DecoderOutput,
    MaskAttention,
    MaskDecoder,
    MaskDecoderConfig,
)
from promptseg.networks.xdecoder.pixel_decoder import EncoderLayer, PixelDecoder, PixelDecoderConfig
from promptseg.networks.xdecoder.text_encoder import TextBlock, TextConfig, TextEncoder
from promptseg.networks.xdecoder.timm_backbone import TimmBackbone, TimmConfig, timm_config
from promptseg.networks.xdecoder.vit_backbone import VitBackbone, VitConfig

MASK_STRIDE = 4  # mask logits have one value per 4x4 pixels of the network's input
MEAN = (123.675, 116.280, 103.530)  # of ImageNet, RGB 0..255
STD = (58.395, 57.120, 57.375)


@dataclass(frozen=True)
class XDecoderConfig:
    """Everything that decides the network's function, save its weights.

    canvas_rule: how mask logits reach the canvas where 4 does not divide the input's side, and their last row and
    column therefore reach beyond it. "crop" places every cell where it lies and cuts off what is beyond; "stretch"
    squeezes all cells into the canvas, as the published code does. Part of a checkpoint, because weights are trained
    with one.
    """

    backbone: FocalConfig | VitConfig | TimmConfig
    text: TextConfig
    pixel_decoder: PixelDecoderConfig
    mask_decoder: MaskDecoderConfig
    canvas_rule: CanvasRule

    def __post_init__(self) -> None:
        if self.canvas_rule not in get_args(CanvasRule):
            raise ValueError(f"canvas_rule: got {self.canvas_rule!r}, wanted one of {', '.join(get_args(CanvasRule))}")


class XDecoder(Network):
    """Pictures and phrases in; masks of object queries, and the similarity of each to the phrase, out."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: XDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config.backbone)
        self.text_encoder = TextEncoder(config.text, config.mask_decoder.dim)
        self.pixel_decoder = PixelDecoder(config.backbone.channels, config.pixel_decoder)
        self.mask_decoder = MaskDecoder(config.mask_decoder)
        self.log_temperature = nn.Parameter(torch.tensor(2.66))  # log(1 / 0.07), CLIP's starting point
        calibrated = config.mask_decoder.phrase_query
        self.presence_bias = nn.Parameter(torch.tensor(0.0)) if calibrated else None
        self.mask_bias = (
            nn.Parameter(torch.tensor(0.0), requires_grad=False) if calibrated else None
        )  # set by validation
        backbone = config.backbone
        mean, std = (backbone.mean, backbone.std) if isinstance(backbone, TimmConfig) else (MEAN, STD)
        for name, values in (("mean", mean), ("std", std)):  # real also where the weights are shapes only
            self.register_buffer(name, torch.tensor(values, device="cpu").view(3, 1, 1), persistent=False)

    @property
    def canvas_rule(self) -> CanvasRule:
        """See XDecoderConfig."""
        return self.config.canvas_rule

    @property
    def rules(self) -> dict[str, str]:
        """See `MaskAttention`."""
        rule = self.config.mask_decoder.mask_attention
        return {"attends": rule.attends, "mask_resize": rule.resize}

    @property
    def says_presence(self) -> bool:
        """Where a query starts from the phrase, training tells it what is not there."""
        return self.presence_bias is not None

    @property
    def most_phrases(self) -> int | None:
        """One for each object query: each phrase's object is matched to one of its own, unless it starts from it."""
        decoder = self.config.mask_decoder
        return None if decoder.phrase_query else decoder.object_queries

    def static_parts(self) -> list[nn.Module]:
        """Return all but the mask decoder, whose masks decide what it looks at."""
        return [self.backbone, self.pixel_decoder, self.text_encoder]

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the blocks of the decoders, of the text encoder, and of a Focal or a ViT backbone."""
        if isinstance(self.backbone, VitBackbone):
            yield from self.backbone.encoder.blocks
        yield from (
            part for part in self.modules() if type(part) in (FocalBlock, TextBlock, EncoderLayer, DecoderLayer)
        )

    def forward(
        self, picture: Tensor, token_ids: Tensor, every_layer: bool = False
    ) -> tuple[list[DecoderOutput], Tensor]:
        """Find masks and embeddings of all queries for each phrase.

        picture: float [P, 3, res, res], RGB 0..255, as `resize_canvas` makes it.
        token_ids: int [B, T], B a multiple of P; the phrases of a picture follow each other, and it is encoded once.
        Returns the decoder's outputs (of the last layer, or before the first and after every one) and the phrase
        embeddings float [B, C].
        """
        mask_features, pyramid = self.encode(picture)
        phrase = self.text_encoder(token_ids)
        return self.mask_decoder(mask_features, pyramid, phrase, every_layer), phrase

    def predict(self, picture: Tensor, token_ids: Tensor, canvas: int) -> Prediction:
        """See `Network`."""
        outputs, phrase = self(picture, token_ids)
        similarity = self.similarity(outputs[-1].query_embedding, phrase)
        best = best_masks(outputs[-1], similarity).float()
        best = best if self.mask_bias is None else best + self.mask_bias
        masks = masks_to_canvas(best, picture.shape[-1], canvas, self.config.canvas_rule)
        return Prediction(masks, similarity, self.presence(similarity))

    def presence(self, similarity: Tensor) -> Tensor | None:
        """Similarity as in `Prediction` -> how likely each phrase means something in the picture, float32 [B]."""
        return None if self.presence_bias is None else (similarity.amax(1) + self.presence_bias).sigmoid()

    def encode(self, picture: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Picture as in `forward` -> mask features [P, M, h, w] at stride 4 and maps [P, C, ., .] at 32, 16, 8."""
        mask_features, pyramid = self.pixel_decoder(self.backbone((picture - self.mean) / self.std))
        return mask_features, pyramid

    def describe(self, features: Tensor) -> Tensor:
        """Project features [..., C] of map regions into the space of the phrase embeddings."""
        return self.mask_decoder.norm(features) @ self.mask_decoder.class_projection

    def similarity(self, query_embedding: Tensor, phrase: Tensor) -> Tensor:
        """Cosine between queries [B, Q, C] and phrases [B, C], times the learnt temperature -> float32 [B, Q].

        In float32 under autocast, too: times a temperature of up to 100, bfloat16's cosines would be off by tenths.
        """
        with torch.autocast(query_embedding.device.type, enabled=False):
            cosine = F.normalize(query_embedding.float(), dim=-1) @ F.normalize(phrase.float(), dim=-1).unsqueeze(2)
            return cosine.squeeze(2) * self.log_temperature.exp()


def make_backbone(config: FocalConfig | VitConfig | TimmConfig) -> nn.Module:
    """Build the backbone that a configuration is of."""
    if isinstance(config, TimmConfig):
        return TimmBackbone(config)
    return VitBackbone(config) if isinstance(config, VitConfig) else FocalBackbone(config)


def config_from_json(fields: Mapping[str, Any]) -> XDecoderConfig:
    """Inverse of `dataclasses.asdict` on an XDecoderConfig that went through JSON (tuples became lists).

    Descriptions written before there was a canvas rule do not have it: those networks all cropped.
    """
    backbone: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields["backbone"].items()
    }
    kind: type = VitConfig if "window" in backbone else TimmConfig if "name" in backbone else FocalConfig
    decoder = fields["mask_decoder"]
    return XDecoderConfig(
        backbone=kind(**backbone),
        text=TextConfig(**fields["text"]),
        pixel_decoder=PixelDecoderConfig(**fields["pixel_decoder"]),
        mask_decoder=MaskDecoderConfig(**{**decoder, "mask_attention": MaskAttention(**decoder["mask_attention"])}),
        canvas_rule=fields.get("canvas_rule", "crop"),
    )


def resize_canvas(canvas: Tensor, res: int) -> Tensor:
    """Float [B, 3, S, S] -> [B, 3, res, res]: bilinear, half-pixel centres, no antialias."""
    return F.interpolate(canvas, size=(res, res), mode="bilinear")


def best_masks(output: DecoderOutput, similarity: Tensor) -> Tensor:
    """Mask logits [B, h, w] of each row's most similar query; similarity is [B, Q]."""
    best = similarity.argmax(dim=1)
    return output.mask_logits[torch.arange(len(best), device=best.device), best]


def masks_to_canvas(mask_logits: Tensor, res: int, canvas: int, rule: CanvasRule) -> Tensor:
    """Float [B, h, w] at stride 4 of a res x res input -> [B, canvas, canvas], bilinear, half-pixel centres.

    Where res is no multiple of 4 the last row and column of logits reach beyond the input; see XDecoderConfig for the
    rules.
    """
    logits = mask_logits.unsqueeze(1)
    if (
        rule == "stretch" or res % MASK_STRIDE == 0
    ):  # given as a scale, the size would be rounded down to canvas - 1 for some
        return F.interpolate(logits, size=(canvas, canvas), mode="bilinear")[:, 0]
    scale = canvas * MASK_STRIDE / res
    large = F.interpolate(logits, scale_factor=scale, mode="bilinear", recompute_scale_factor=False)
    return large[:, 0, :canvas, :canvas]


def tiny(mask_attention: MaskAttention) -> XDecoderConfig:
    """The size of the parity fixture, for tests."""
    return XDecoderConfig(
        backbone=FocalConfig(
            32, depths=(1, 1, 2, 1), focal_levels=(3, 3, 3, 3), focal_windows=(3, 3, 3, 3), layer_scale_init=1e-4
        ),
        text=TextConfig(width=64, heads=4, layers=2, context_length=77, vocab_size=49408),
        pixel_decoder=PixelDecoderConfig(dim=64, mask_dim=64, heads=4, ffn_dim=128, encoder_layers=2, norm_groups=32),
        mask_decoder=MaskDecoderConfig(
            dim=64,
            mask_dim=64,
            heads=4,
            ffn_dim=128,
            layers=3,
            object_queries=16,
            values_carry_positions=False,
            mask_attention=mask_attention,
        ),
        canvas_rule="crop",
    )


def nano(mask_attention: MaskAttention) -> XDecoderConfig:
    """Under 5 million parameters, two thirds of them CLIP's vocabulary: trains on a laptop's processor in minutes."""
    return XDecoderConfig(
        backbone=FocalConfig(
            24, depths=(1, 1, 2, 1), focal_levels=(2, 2, 2, 2), focal_windows=(3, 3, 3, 3), layer_scale_init=0.5
        ),
        text=TextConfig(width=64, heads=4, layers=2, context_length=77, vocab_size=49408),
        pixel_decoder=PixelDecoderConfig(dim=64, mask_dim=64, heads=4, ffn_dim=128, encoder_layers=2, norm_groups=16),
        mask_decoder=MaskDecoderConfig(
            dim=64,
            mask_dim=64,
            heads=4,
            ffn_dim=256,
            layers=6,
            object_queries=16,
            values_carry_positions=True,
            mask_attention=mask_attention,
        ),
        canvas_rule="crop",
    )


def mobile(mask_attention: MaskAttention) -> XDecoderConfig:
    """A phone's choice: EfficientNet-Lite0 under small decoders: 7.3 million parameters, 43 % of them vocabulary."""
    return on_timm("tf_efficientnet_lite0", mask_attention)


def on_timm(name: str, mask_attention: MaskAttention) -> XDecoderConfig:
    """The decoders and the text encoder of `mobile` on one of timm's backbones; ValueError as `timm_config` says."""
    return XDecoderConfig(
        backbone=timm_config(name),
        text=TextConfig(width=64, heads=4, layers=2, context_length=77, vocab_size=49408),
        pixel_decoder=PixelDecoderConfig(dim=96, mask_dim=96, heads=6, ffn_dim=192, encoder_layers=2, norm_groups=24),
        mask_decoder=MaskDecoderConfig(
            dim=96,
            mask_dim=96,
            heads=6,
            ffn_dim=384,
            layers=3,
            object_queries=16,
            values_carry_positions=True,
            mask_attention=mask_attention,
        ),
        canvas_rule="crop",
    )


def photo(mask_attention: MaskAttention) -> XDecoderConfig:
    """The backbone of `mobile` under decoders for few photographs: one query, that starts from the phrase."""
    config = mobile(mask_attention)
    return replace(
        config,
        pixel_decoder=PixelDecoderConfig(
            dim=96, mask_dim=96, heads=4, ffn_dim=256, encoder_layers=2, norm_groups=16, maps_carry_positions=True
        ),
        mask_decoder=MaskDecoderConfig(
            dim=96,
            mask_dim=96,
            heads=4,
            ffn_dim=384,
            layers=6,
            object_queries=1,
            values_carry_positions=True,
            mask_attention=mask_attention,
            phrase_query=True,
        ),
    )


def focal_t(mask_attention: MaskAttention) -> XDecoderConfig:
    """X-Decoder with Focal-T as published and as the 2025 challenge's winner used it: 163.8 million parameters."""
    return XDecoderConfig(
        backbone=FocalConfig(
            96, depths=(2, 2, 6, 2), focal_levels=(3, 3, 3, 3), focal_windows=(3, 3, 3, 3), layer_scale_init=1e-4
        ),
        text=TextConfig(width=512, heads=8, layers=12, context_length=77, vocab_size=49408),
        pixel_decoder=PixelDecoderConfig(
            dim=512, mask_dim=512, heads=8, ffn_dim=2048, encoder_layers=6, norm_groups=32
        ),
        mask_decoder=MaskDecoderConfig(
            dim=512,
            mask_dim=512,
            heads=8,
            ffn_dim=2048,
            layers=9,
            object_queries=100,
            values_carry_positions=False,
            mask_attention=mask_attention,
        ),
        canvas_rule="crop",
    )


def vit_b(mask_attention: MaskAttention) -> XDecoderConfig:
    """Focal-T's decoders on SAM's ViT-B: 232.5 million parameters."""
    backbone = VitConfig(
        768,
        depth=12,
        heads=12,
        window=14,
        global_blocks=(2, 5, 8, 11),
        position_side=64,
        channels=(128, 256, 512, 1024),
    )
    return replace(focal_t(mask_attention), backbone=backbone)
