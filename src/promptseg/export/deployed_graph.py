"""The deployment graph: the network's function in three parts and with the contract's border, in an NPU's forms.

The network itself stays plain; `export/rewrites` holds the forms that take its parts' places. Each computes the same,
up to rounding; docs/graph.md says what each is worth.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast, get_args

from torch import Tensor, nn

from promptseg.datasets.preprocess import CANVAS
from promptseg.export.rewrites.backbone import FoldedBlock, FoldedStem, norm_conv, reparameterised
from promptseg.export.rewrites.clipseg import FoldedDecoder, FoldedText, FoldedVision
from promptseg.export.rewrites.convolutions import MatrixConvNorm
from promptseg.export.rewrites.decoder import SOFT_BLOCKED, MatrixDecoder, PlainDecoder, SoftDecoder
from promptseg.export.rewrites.features import CanvasMask, LevelFeatures, ProductMask, ResizedFeatures, TapMask
from promptseg.export.rewrites.integers import BlockPatches, BlockStem, MatrixResize, MildMask
from promptseg.networks.clipseg.model import ClipSeg
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.backbone import FocalBackbone, FocalBlock, FocalStage
from promptseg.networks.xdecoder.layers import BLOCKED
from promptseg.networks.xdecoder.mask_decoder import LEVELS
from promptseg.networks.xdecoder.model import MASK_STRIDE, XDecoder, resize_canvas
from promptseg.networks.xdecoder.pixel_decoder import ConvNorm
from promptseg.networks.xdecoder.timm_backbone import TimmBackbone

Maker = Callable[[Any], nn.Module]
Part = TypeVar("Part", bound=nn.Module)
FloatRewrite = Literal["stem", "blocks", "branches", "group_norms", "decoder", "features"]
IntegerRewrite = Literal["picture", "blocking", "decision"]  # what integers want besides
Rewrite = FloatRewrite | IntegerRewrite
REWRITES: tuple[Rewrite, ...] = get_args(FloatRewrite)
INTEGER_FORMS: tuple[Rewrite, ...] = get_args(IntegerRewrite)
INTEGER_REWRITES: tuple[Rewrite, ...] = (*REWRITES, *INTEGER_FORMS)
PARTS: dict[Rewrite, tuple[type[nn.Module], Maker]] = {
    "blocks": (FocalBlock, FoldedBlock),
    "branches": (TimmBackbone, reparameterised),
    "group_norms": (ConvNorm, MatrixConvNorm),
}


class DeployedNetwork(nn.Module, ABC):
    """A network at one `res` in three parts, in forms that an NPU likes; `forward` is their composition.

    The parts are what an app runs apart: a picture is encoded once and asked many phrases, and a phrase is encoded once
    for many pictures. The composition has the challenge's border: image_input, text_input -> pred_mask, as
    hubs/contract.py has them.
    """

    res: int
    to_canvas: nn.Module  # mask logits (h, w) -> float (CANVAS, CANVAS), 1 inside, 0 outside

    def __init__(self) -> None:
        super().__init__()
        self.resize: nn.Module | None = None  # None: `resize_canvas`

    def use_integer_forms(self, names: Collection[str] = INTEGER_FORMS) -> None:
        """Put the forms that integers want into place; here those at the picture and at the mask."""
        if "picture" in names:
            self.resize = MatrixResize(self.res)
        if "decision" in names and isinstance(self.to_canvas, CanvasMask):
            self.to_canvas = MildMask(self.to_canvas)

    @abstractmethod
    def encode_picture(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Float [1, 3, res, res], RGB 0..255 -> features: all that depends on the picture alone."""

    @abstractmethod
    def encode_phrase(self, token_ids: Tensor) -> Tensor:
        """Int32 [1, 77] -> the phrase's embedding [1, C]."""

    @abstractmethod
    def decode(self, features: Sequence[Tensor], phrase: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mask logits [ceil(res / 4), ceil(res / 4)], and the similarity [1, Q] of each query to the phrase.

        The mask is that of the query that is most similar; see `Prediction` of the network.
        """

    def presence(self, similarity: Tensor) -> Tensor | None:  # noqa: ARG002
        """Similarity as of `decode` -> 0..1 [1], how likely the picture shows the thing; None: not learnt."""
        return None

    def forward(self, image_input: Tensor, text_input: Tensor) -> Tensor:
        """Float [1, 3, CANVAS, CANVAS], int32 [2, 1, 77] -> float [CANVAS, CANVAS]."""
        return self.to_canvas(self.best_mask_logits(image_input, text_input))

    def best_mask_logits(self, image_input: Tensor, text_input: Tensor) -> Tensor:
        """Logits [h, w] at stride 4 of the query that is most like the phrase."""
        picture = resize_canvas(image_input, self.res) if self.resize is None else self.resize(image_input)
        features = self.encode_picture(picture)
        return self.decode(features, self.encode_phrase(text_input[0]))[0]


class PictureGraph(nn.Module):
    """The app's first graph: uint8 [1, res, res, 3], RGB as a camera gives it -> features."""

    def __init__(self, deployed: DeployedNetwork) -> None:
        super().__init__()
        self.deployed = deployed

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return self.deployed.encode_picture(picture.float().permute(0, 3, 1, 2))


class PhraseGraph(nn.Module):
    """The app's second graph: int32 [1, 77] -> embedding [1, C]."""

    def __init__(self, deployed: DeployedNetwork) -> None:
        super().__init__()
        self.deployed = deployed

    def forward(self, phrase: Tensor) -> Tensor:
        """See the class."""
        return self.deployed.encode_phrase(phrase)


class DecoderGraph(nn.Module):
    """The app's third graph: embedding, features -> mask logits [1, h, h], similarity [1, Q], presence [1, 1]."""

    def __init__(self, deployed: DeployedNetwork) -> None:
        super().__init__()
        self.deployed = deployed

    def forward(self, embedding: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        mask_logits, similarity = self.deployed.decode(features, embedding)
        if similarity is None:
            return (mask_logits[None],)
        presence = self.deployed.presence(similarity)
        return (mask_logits[None], similarity, *(() if presence is None else (presence[None],)))


class DeployedXDecoder(DeployedNetwork):
    """X-Decoder's deployed form.

    `rewrites` names those to apply, for measuring what each is worth; the rest of the network runs as it is.
    "features" needs "decoder". Always: of the last layer's masks only the chosen query's is computed, by a product that
    an NPU likes; the resize to the canvas is two products with constant matrices; the decision is a steep sigmoid.
    """

    def __init__(self, network: XDecoder, res: int, rewrites: Collection[Rewrite] = REWRITES) -> None:
        super().__init__()
        if "features" in rewrites and "decoder" not in rewrites:
            raise ValueError(
                f"got rewrites {', '.join(rewrites)}, wanted 'decoder' with 'features': only it takes them"
            )
        self.res = res
        self.network = substituted(network, dict(PARTS[name] for name in rewrites if name in PARTS))
        backbone = self.network.backbone
        self.stem_is_folded = "stem" in rewrites and isinstance(backbone, FocalBackbone)
        of_timm = "stem" in rewrites and isinstance(backbone, TimmBackbone)
        self.norm_conv = norm_conv(network.mean, network.std) if of_timm else None
        if isinstance(backbone, FocalBackbone) and self.stem_is_folded:
            first = cast(FocalStage, backbone.stages[0])
            stem = FoldedStem(first.downsample, network.mean, network.std, res)
            first.downsample = BlockStem(stem) if "picture" in rewrites else stem  # type: ignore[assignment]  # called alike
        conv, decoder = network.pixel_decoder.mask_features, network.mask_decoder
        cells = -(-res // MASK_STRIDE)
        sizes = [-(-cells // 2 ** (LEVELS - level)) for level in range(LEVELS)]
        self.best_mask: nn.Module = ProductMask()
        features: nn.Module = ResizedFeatures(decoder, cells, sizes)
        if "features" in rewrites and LevelFeatures.pays(decoder, cells):
            self.best_mask, features = TapMask(conv), LevelFeatures(conv, decoder, cells, sizes)
            self.network.pixel_decoder.mask_features = nn.Identity()  # type: ignore[assignment]
        matrices = SoftDecoder if "blocking" in rewrites else MatrixDecoder
        self.decoder = matrices(decoder, sizes, features) if "decoder" in rewrites else PlainDecoder(decoder)
        if "blocking" in rewrites:
            text = self.network.text_encoder  # a copy
            text.causal = text.causal * (SOFT_BLOCKED / BLOCKED)
        self.to_canvas = CanvasMask(res, network.config.canvas_rule)
        self.use_integer_forms(rewrites)

    def encode_picture(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Return the map that the mask is made from (mask features, or what they come from), and the decoder's."""
        network = self.network
        if self.norm_conv is not None:
            picture = self.norm_conv(picture)
        elif not self.stem_is_folded:
            picture = (picture - network.mean) / network.std
        finest, pyramid = network.pixel_decoder(network.backbone(picture))
        return finest, *self.decoder.picture_features(finest, pyramid)

    def encode_phrase(self, token_ids: Tensor) -> Tensor:
        """See `DeployedNetwork`."""
        embedding: Tensor = self.network.text_encoder(token_ids)
        return embedding

    def decode(self, features: Sequence[Tensor], phrase: Tensor) -> tuple[Tensor, Tensor]:
        """See `DeployedNetwork`."""
        finest, *maps = features
        kernel, cosine = self.decoder(maps, phrase)
        similarity = cosine / phrase.norm(dim=-1) * self.network.log_temperature.exp()
        mask, bias = self.best_mask(kernel, finest), self.network.mask_bias
        return mask if bias is None else mask + bias, similarity

    def presence(self, similarity: Tensor) -> Tensor | None:
        """See `DeployedNetwork`."""
        return self.network.presence(similarity)


class DeployedClipSeg(DeployedNetwork):
    """CLIPSeg's deployed form; its one mask has a value for each pixel of the network's input.

    Features are the maps that the decoder reads, reduced to its few channels already. The similarity is the mask's
    largest logit: CLIPSeg learnt to answer phrases that mean nothing in the picture with an empty mask.
    """

    def __init__(self, network: ClipSeg, res: int) -> None:
        super().__init__()
        self.res = res
        self.backbone, self.text_encoder = FoldedVision(network, res), FoldedText(network)
        self.decoder = FoldedDecoder(network)
        # one value per pixel: as many as a picture four times the side has at stride 4
        self.to_canvas = CanvasMask(MASK_STRIDE * res, network.canvas_rule)

    def use_integer_forms(self, names: Collection[str] = INTEGER_FORMS) -> None:
        """See `DeployedNetwork`; attention is blocked in the text alone."""
        super().use_integer_forms(names)
        if "picture" in names and isinstance(self.backbone.patches, nn.Conv2d):
            self.backbone.patches = BlockPatches(self.backbone.patches)
        if "blocking" in names:
            self.text_encoder.causal = self.text_encoder.causal.clamp(min=SOFT_BLOCKED)

    def encode_picture(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Return [patches + 1, C] for each layer that the decoder reads, the last first."""
        return tuple(self.backbone(picture))

    def encode_phrase(self, token_ids: Tensor) -> Tensor:
        """See `DeployedNetwork`."""
        embedding: Tensor = self.text_encoder(token_ids)
        return embedding

    def decode(self, features: Sequence[Tensor], phrase: Tensor) -> tuple[Tensor, Tensor]:
        """See `DeployedNetwork`; the mask logits are [res, res]."""
        logits: Tensor = self.decoder(features, phrase)
        return logits, logits.amax().view(1, 1)


# Of each kind of network: its deployed form at a `res`.
DEPLOYED: dict[type[Network], Callable[[Any, int], DeployedNetwork]] = {
    XDecoder: DeployedXDecoder,
    ClipSeg: DeployedClipSeg,
}


def deployed(network: Network, res: int, integers: bool = False) -> DeployedNetwork:
    """Return the deployed form of a network at one `res`, in evaluation mode; with `integers`, what they want of it."""
    if integers and isinstance(network, XDecoder):
        graph: DeployedNetwork = DeployedXDecoder(network, res, INTEGER_REWRITES)
    else:
        graph = DEPLOYED[type(network)](network, res)
        if integers:
            graph.use_integer_forms()
    return graph.eval().requires_grad_(False)


def plain_mask(network: Network, image_input: Tensor, text_input: Tensor, res: int) -> Tensor:
    """What the graph must decide, by the network's own code: bool [CANVAS, CANVAS]."""
    return network.predict(resize_canvas(image_input, res), text_input[0], CANVAS).mask_logits[0] > 0


def substituted(module: Part, makers: Mapping[type[nn.Module], Maker]) -> Part:
    """Return `module` with each part inside it of a type in `makers` replaced by what its maker makes of it.

    Modules are copied, their parameters are not: the original shares them and is left untouched.
    """
    clone = copy.copy(module)
    children: dict[str, nn.Module | None] = {}
    for name, child in module._modules.items():
        if child is None:
            children[name] = None
        elif type(child) in makers:
            children[name] = makers[type(child)](child)
        else:
            children[name] = substituted(child, makers)
    clone._modules = children
    clone._parameters, clone._buffers = dict(module._parameters), dict(module._buffers)
    return clone
