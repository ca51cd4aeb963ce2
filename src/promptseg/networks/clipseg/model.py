"""transformers' CLIPSeg without what segmenting does not need, its configuration, and one literal builder per size.

Sources: Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts" (CVPR 2022); the layers and their names
are those of transformers' `CLIPSegForImageSegmentation`. CLIP's blocks behind the last that the decoder reads, its
pooling and its projection of pictures are left out: no mask depends on them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.networks.network import Network, Prediction
from promptseg.networks.xdecoder.layers import causal_bias

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class BlockConfig:
    """Sizes of a stack of transformer blocks."""

    width: int
    heads: int
    layers: int
    ffn_dim: int


@dataclass(frozen=True)
class ClipSegConfig:
    """Everything that decides the network's function, save its weights.

    vision: the blocks that are needed, the last of `extract_layers` (blocks counted from 0) being the last of them; the
    decoder reads from the last to the first, and applies the phrase before its layer `conditional_layer`. Positions are
    learnt for `position_side` x `position_side` patches. refined: masks through two small transposed convolutions
    behind a 3x3 one, in place of one large. mean, std: of pictures, RGB 0..255.
    """

    vision: BlockConfig
    text: BlockConfig
    decoder: BlockConfig
    patch: int
    position_side: int
    phrase_dim: int
    context_length: int
    vocab_size: int
    extract_layers: tuple[int, ...]
    conditional_layer: int
    refined: bool
    mean: Triple
    std: Triple


class ClipSeg(Network):
    """Pictures and phrases in, one map of mask logits for each phrase out; CLIP itself does not learn."""

    config: ClipSegConfig
    mean: Tensor
    std: Tensor
    causal: Tensor

    def __init__(self, config: ClipSegConfig) -> None:
        super().__init__()
        from transformers import CLIPSegForImageSegmentation  # a second: only where there is such a network

        self.config = config
        model = CLIPSegForImageSegmentation(transformers_config(config))
        self.vision, self.text, self.decoder = model.clip.vision_model, model.clip.text_model, model.decoder
        self.text_projection = model.clip.text_projection
        del self.vision.post_layernorm
        for part in (self.vision, self.text):
            del part.embeddings.position_ids  # counted here: a buffer that is not stored stays without values on meta
        buffers = {"mean": torch.tensor(config.mean, device="cpu").view(3, 1, 1),
                   "std": torch.tensor(config.std, device="cpu").view(3, 1, 1),
                   "causal": causal_bias(config.context_length)}  # fmt: skip
        for name, value in buffers.items():  # real also where the weights are shapes only
            self.register_buffer(name, value, persistent=False)
        for part in (self.vision, self.text, self.text_projection):
            part.requires_grad_(False)

    def forward(self, picture: Tensor, token_ids: Tensor) -> Tensor:
        """Find a mask for each phrase.

        picture: float [P, 3, res, res], RGB 0..255, as `resize_canvas` makes it, `res` a multiple of a patch's side.
        token_ids: int [B, T], B a multiple of P; the phrases of a picture follow each other, and it is encoded once.
        Returns mask logits float [B, res, res], above 0 inside.
        """
        return self.decode(self.encode(picture), self.phrase(token_ids))

    def check_res(self, key: str, res: int) -> None:
        """Whole patches only: what lies beyond the last would not be seen."""
        patch = self.config.patch
        if res % patch:
            near = [side for side in (res - res % patch, res - res % patch + patch) if side]
            raise ValueError(
                f"{key}: got {res}, wanted a multiple of {patch}, the side of a patch, such as "
                f"{' or '.join(map(str, near))}"
            )

    def predict(self, picture: Tensor, token_ids: Tensor, canvas: int) -> Prediction:
        """See `Network`; masks are bilinear, half-pixel centres, as for X-Decoder."""
        logits = self(picture, token_ids).float()
        return Prediction(F.interpolate(logits[:, None], size=(canvas, canvas), mode="bilinear")[:, 0], None)

    def static_parts(self) -> list[nn.Module]:
        """Return CLIP's blocks."""
        return [*self.vision.encoder.layers, *self.text.encoder.layers]

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the decoder's blocks: nothing else keeps activations."""
        yield from self.decoder.layers

    def encode(self, picture: Tensor) -> list[Tensor]:
        """Picture as in `forward` -> of each extracted layer, the last first, [P, 1 + patches, C]."""
        res = picture.shape[-1]
        self.check_res("res", res)
        embeddings = self.vision.embeddings
        patches = embeddings.patch_embedding((picture - self.mean) / self.std).flatten(2).transpose(1, 2)
        x = torch.cat((embeddings.class_embedding.expand(len(patches), 1, -1), patches), 1) + self.positions(res)
        x = self.vision.pre_layrnorm(x)
        states = []
        for block in self.vision.encoder.layers:
            x = block(x, None)
            states.append(x)
        return [states[layer] for layer in reversed(self.config.extract_layers)]

    def positions(self, res: int) -> Tensor:
        """Encodings of the class token and of every patch, [1 + patches, C]: bicubic where the sides differ."""
        weight, side = self.vision.embeddings.position_embedding.weight, self.config.position_side
        cells = res // self.config.patch
        if cells == side:
            return weight
        grid = weight[1:].T.reshape(1, -1, side, side)
        return torch.cat((weight[:1], F.interpolate(grid, (cells, cells), mode="bicubic")[0].flatten(1).T))

    def phrase(self, token_ids: Tensor) -> Tensor:
        """Int [B, T], T at most the context's length -> phrase embeddings [B, C], read at the first end of text.

        The causal mask keeps what follows out of it, whatever rows are padded with. Every row must hold it.
        """
        length = token_ids.shape[1]
        embeddings = self.text.embeddings
        x = embeddings.token_embedding(token_ids) + embeddings.position_embedding.weight[:length]
        for block in self.text.encoder.layers:
            x = block(x, self.causal[None, None, :length, :length])
        end = (token_ids == self.end_of_text).int().argmax(1)
        return self.text_projection(self.text.final_layer_norm(x[torch.arange(len(x), device=x.device), end]))

    @property
    def end_of_text(self) -> int:
        """The last id of the vocabulary, CLIP's token for it; it pads, too."""
        return self.config.vocab_size - 1

    def decode(self, states: list[Tensor], phrase: Tensor) -> Tensor:
        """Maps of P pictures as of `encode`, phrases [B, C] -> mask logits [B, res, res]."""
        decoder, repeats = self.decoder, len(phrase) // len(states[0])
        x: Tensor | None = None
        for index, (state, reduce, block) in enumerate(zip(states, decoder.reduces, decoder.layers, strict=True)):
            reduced = reduce(state).repeat_interleave(repeats, 0)
            x = reduced if x is None else reduced + x
            if index == self.config.conditional_layer:
                x = decoder.film_mul(phrase).unsqueeze(1) * x + decoder.film_add(phrase).unsqueeze(1)
            x = block(x, None)
        assert x is not None
        side = math.isqrt(x.shape[1] - 1)
        maps = x[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        logits: Tensor = decoder.transposed_convolution(maps).squeeze(1)
        return logits


def config_from_json(fields: Mapping[str, Any]) -> ClipSegConfig:
    """Inverse of `dataclasses.asdict` on a ClipSegConfig that went through JSON (tuples became lists)."""
    values: dict[str, Any] = {
        key: BlockConfig(**value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
        for key, value in fields.items()
    }
    return ClipSegConfig(**values)


def transformers_config(config: ClipSegConfig) -> Any:
    """Return transformers' configuration of the same network, `CLIPSegConfig`."""
    from transformers import CLIPSegConfig

    def sizes(block: BlockConfig) -> dict[str, int]:
        return {"hidden_size": block.width, "num_attention_heads": block.heads,
                "num_hidden_layers": block.layers, "intermediate_size": block.ffn_dim}  # fmt: skip

    image_size = config.patch * config.position_side
    return CLIPSegConfig(
        vision_config={**sizes(config.vision), "patch_size": config.patch, "image_size": image_size},
        text_config={
            **sizes(config.text),
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context_length,
        },
        projection_dim=config.phrase_dim,
        extract_layers=list(config.extract_layers),
        conditional_layer=config.conditional_layer,
        reduce_dim=config.decoder.width,
        decoder_num_attention_heads=config.decoder.heads,
        decoder_intermediate_size=config.decoder.ffn_dim,
        use_complex_transposed_convolution=config.refined,
    )


def rd64_refined() -> ClipSegConfig:
    """CIDAS/clipseg-rd64-refined: CLIP's ViT-B/16 and a decoder of 64 channels; 134.5 million parameters of 150.7."""
    return ClipSegConfig(
        vision=BlockConfig(width=768, heads=12, layers=10, ffn_dim=3072),
        text=BlockConfig(width=512, heads=8, layers=12, ffn_dim=2048),
        decoder=BlockConfig(width=64, heads=4, layers=3, ffn_dim=2048),
        patch=16,
        position_side=14,
        phrase_dim=512,
        context_length=77,
        vocab_size=49408,
        extract_layers=(3, 6, 9),
        conditional_layer=0,
        refined=True,
        mean=(123.675, 116.280, 103.530),
        std=(58.395, 57.120, 57.375),
    )
