"""The deployment graph: the network's function with the contract's border, in forms that an NPU likes.

The network itself stays plain; `export/rewrites` holds the forms that take its parts' places. Each computes the same,
up to rounding; docs/graph.md says what each is worth.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar, cast, get_args

from torch import Tensor, nn

from promptseg.datasets.preprocess import CANVAS
from promptseg.export.rewrites.backbone import FoldedBlock, FoldedStem
from promptseg.export.rewrites.convolutions import MatrixConvNorm
from promptseg.export.rewrites.decoder import MatrixDecoder, PlainDecoder
from promptseg.export.rewrites.features import CanvasMask, LevelFeatures, ProductMask, ResizedFeatures, TapMask
from promptseg.networks.xdecoder.backbone import FocalBackbone, FocalBlock, FocalStage
from promptseg.networks.xdecoder.mask_decoder import LEVELS
from promptseg.networks.xdecoder.model import MASK_STRIDE, XDecoder, resize_canvas
from promptseg.networks.xdecoder.pixel_decoder import ConvNorm

Maker = Callable[[Any], nn.Module]
Part = TypeVar("Part", bound=nn.Module)
Rewrite = Literal["stem", "blocks", "group_norms", "decoder", "features"]
REWRITES: tuple[Rewrite, ...] = get_args(Rewrite)
PARTS: dict[Rewrite, tuple[type[nn.Module], Maker]] = {
    "blocks": (FocalBlock, FoldedBlock),
    "group_norms": (ConvNorm, MatrixConvNorm),
}


class DeployedGraph(nn.Module):
    """image_input, text_input -> pred_mask, as hubs/contract.py has them, at one `res`.

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
        if isinstance(backbone, FocalBackbone) and self.stem_is_folded:
            first = cast(FocalStage, backbone.stages[0])
            stem = FoldedStem(first.downsample, network.mean, network.std, res)
            first.downsample = stem  # type: ignore[assignment]  # called alike
        conv, decoder = network.pixel_decoder.mask_features, network.mask_decoder
        cells = -(-res // MASK_STRIDE)
        sizes = [-(-cells // 2 ** (LEVELS - level)) for level in range(LEVELS)]
        self.best_mask: nn.Module = ProductMask()
        features: nn.Module = ResizedFeatures(decoder, cells, sizes)
        if "features" in rewrites and LevelFeatures.pays(decoder, cells):
            self.best_mask, features = TapMask(conv), LevelFeatures(conv, decoder, cells, sizes)
            self.network.pixel_decoder.mask_features = nn.Identity()  # type: ignore[assignment]
        self.decoder = MatrixDecoder(decoder, sizes, features) if "decoder" in rewrites else PlainDecoder(decoder)
        self.to_canvas = CanvasMask(res, network.config.canvas_rule)

    def forward(self, image_input: Tensor, text_input: Tensor) -> Tensor:
        """Float [1, 3, CANVAS, CANVAS], int32 [2, 1, 77] -> float [CANVAS, CANVAS]."""
        return self.to_canvas(self.best_mask_logits(image_input, text_input))

    def best_mask_logits(self, image_input: Tensor, text_input: Tensor) -> Tensor:
        """Logits [h, w] at stride 4 of the query that is most like the phrase."""
        network = self.network
        picture = resize_canvas(image_input, self.res)
        if not self.stem_is_folded:
            picture = (picture - network.mean) / network.std
        finest, pyramid = network.pixel_decoder(network.backbone(picture))  # mask features, or the map they come from
        phrase = network.text_encoder(text_input[0])
        return self.best_mask(self.decoder(finest, pyramid, phrase), finest)


def plain_mask(network: XDecoder, image_input: Tensor, text_input: Tensor, res: int) -> Tensor:
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
