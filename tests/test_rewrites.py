"""Every rewritten part computes what the plain part computes, on inputs that reach both branches."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from promptseg.export.deployed_graph import REWRITES, DeployedXDecoder, plain_mask, substituted
from promptseg.export.onnx_export import MOST_DIFFERING_PIXELS
from promptseg.export.rewrites.backbone import FoldedBlock, FoldedStem
from promptseg.export.rewrites.convolutions import LEAST_INPUTS, PARTS, MatrixConvNorm, SplitConv
from promptseg.export.rewrites.decoder import MatrixDecoder, PlainDecoder
from promptseg.export.rewrites.features import (
    LevelFeatures,
    ProductMask,
    ResizedFeatures,
    TapMask,
)
from promptseg.networks.xdecoder.backbone import Downsample, FocalBlock
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.networks.xdecoder.pixel_decoder import ConvNorm
from tests.networks import drawn, micro_network, micro_vit, random_phrases

INSIDE, OUTSIDE = MaskAttention("inside", "bicubic"), MaskAttention("outside", "bilinear")
RULES = [INSIDE, OUTSIDE, MaskAttention("inside", "bilinear"), MaskAttention("outside", "bicubic")]
by_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.attends}-{rule.resize}")
MOST_FLIPPED = 2e-5  # share of the canvas: 20 pixels whose logits are zero up to rounding


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, atol=2e-5, rtol=2e-4)


def sizes_of(cells: int) -> list[int]:
    return [-(-cells // ratio) for ratio in (8, 4, 2)]


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("size", [5, 8])
def test_folded_block(size: int) -> None:
    block = micro_network().backbone.stages[1].blocks[0]
    assert isinstance(block, FocalBlock)
    x = draw(1, size, size + 2, 16)
    close(FoldedBlock(block)(x), block(x))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_matrix_group_norm_at_any_scale(scale: float, offset: float) -> None:
    """The scale of the kernels only; what eps does to tiny ones is kept."""
    plain = ConvNorm(8, 16, 3, groups=4)
    nn.init.normal_(plain.norm.weight)
    nn.init.normal_(plain.norm.bias)
    plain.conv.weight *= scale
    x = draw(1, 8, 9, 11) + offset
    torch.testing.assert_close(MatrixConvNorm(plain)(x), plain(x), atol=1e-3, rtol=1e-3)


def test_squares_of_a_group_norm_stay_in_reach_of_fp16() -> None:
    plain = ConvNorm(8, 16, 3, groups=4)
    plain.conv.weight *= 1e4
    x = draw(1, 8, 9, 11)
    assert plain.conv(x).square().max() > 65504
    assert MatrixConvNorm(plain).conv(x).square().max() < 100


@pytest.mark.parametrize("res", [16, 17, 18, 19, 22, 590])
def test_folded_stem_at_every_padding(res: int) -> None:
    """Zeros around the normalised picture are no zeros of the picture: each border has its own constant."""
    torch.manual_seed(0)
    stem = Downsample(3, 8, 7, 4, 3)
    mean, std = torch.tensor([120.0, 110.0, 100.0]).view(3, 1, 1), torch.tensor([58.0, 57.0, 56.0]).view(3, 1, 1)
    picture = torch.rand(1, 3, res, res, generator=torch.Generator().manual_seed(res)) * 255
    normalised = ((picture - mean) / std).permute(0, 2, 3, 1)
    close(FoldedStem(stem, mean, std, res)(picture.permute(0, 2, 3, 1)), stem(normalised))


@pytest.mark.parametrize(("inputs", "parts"), [(LEAST_INPUTS - 1, 1), (LEAST_INPUTS, PARTS), (LEAST_INPUTS + 1, PARTS)])
@pytest.mark.parametrize(("stride", "padding", "bias"), [(1, 1, False), (4, 0, True)])
def test_a_split_convolution(inputs: int, parts: int, stride: int, padding: int, bias: bool) -> None:
    conv = nn.Conv2d(inputs, 3, 3, stride, padding, bias=bias)
    x = draw(1, inputs, 12, 9)
    split = SplitConv(conv.weight, conv.bias, stride, padding)
    close(split(x), conv(x))
    assert len(split.weights) == parts


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 20))
def test_level_features_are_the_resized_convolution(quarter: int) -> None:
    decoder, conv, cells = micro_network(OUTSIDE).mask_decoder, nn.Conv2d(6, 5, 3, padding=1), 4 * quarter
    x, sizes = draw(1, 6, cells, cells, seed=cells), sizes_of(cells)
    with torch.inference_mode():
        for made, size in zip(LevelFeatures(conv, decoder, cells, sizes)(x), sizes, strict=True):
            close(made, decoder._resize_features(conv(x), torch.Size((size, size))))


@settings(max_examples=25, deadline=None)
@given(st.integers(16, 60), st.sampled_from(RULES))
def test_resized_features_at_any_size(cells: int, rule: MaskAttention) -> None:
    decoder, x, sizes = micro_network(rule).mask_decoder, draw(1, 6, cells, cells, seed=cells), sizes_of(cells)
    with torch.inference_mode():
        for made, size in zip(ResizedFeatures(decoder, cells, sizes)(x), sizes, strict=True):
            close(made, decoder._resize_features(x, torch.Size((size, size))))


def test_a_matrix_is_made_only_for_the_resize_that_reads_it() -> None:
    buffers = {
        rule.resize: [name for name, _ in ResizedFeatures(micro_network(rule).mask_decoder, 16, [2, 4]).named_buffers()]
        for rule in (INSIDE, OUTSIDE)
    }
    assert buffers == {"bicubic": ["matrix2", "matrix4"], "bilinear": []}


def test_level_features_are_for_means_of_two_by_two() -> None:
    bilinear, bicubic = micro_network(OUTSIDE).mask_decoder, micro_network(INSIDE).mask_decoder
    assert [LevelFeatures.pays(bilinear, cells) for cells in (64, 148, 147, 74)] == [True, True, False, False]
    assert not LevelFeatures.pays(bicubic, 64)


def test_one_mask_by_nine_products() -> None:
    conv, x, kernel = nn.Conv2d(6, 5, 3, padding=1), draw(1, 6, 9, 7), draw(1, 5, seed=1)
    wanted = torch.einsum("m,mhw->hw", kernel[0], conv(x)[0])
    close(TapMask(conv)(kernel, x), wanted)
    close(ProductMask()(kernel, conv(x)), wanted)


@by_rule
@pytest.mark.parametrize("state", ["mixed", "empty", "full", "zero"])
@pytest.mark.parametrize("places", [False, True])
def test_the_decoder_for_every_state_of_the_masks(rule: MaskAttention, state: str, places: bool) -> None:
    """Empty and full masks of all queries, masks of both kinds, and logits of exactly zero, which are inside."""
    network = micro_network(rule)
    decoder = network.mask_decoder
    decoder.values_carry_positions = places
    sizes = [3, 5, 10]
    features = draw(1, 16, 20, 20) * 3
    if state in ("empty", "full"):
        decoder.mask_embedding[-1].weight.zero_()
        decoder.mask_embedding[-1].bias.fill_(-1.0 if state == "empty" else 1.0)
        features = features.abs() + 0.1
    if state == "zero":
        features = torch.zeros_like(features)
    pyramid = [draw(1, 16, size, size, seed=size) for size in sizes]
    phrase = draw(1, 16, seed=9)
    masks = decoder.mask_embedding(decoder.norm(decoder.query_content)) @ features.flatten(2)
    shares = (masks >= 0).float().mean(2)
    assert {"mixed": 0 < shares.min() < shares.max() < 1, "empty": shares.max() == 0}.get(state, shares.min() == 1)
    made, plain = MatrixDecoder(decoder, sizes, ResizedFeatures(decoder, 20, sizes)), PlainDecoder(decoder)
    (kernel, likeness), (wanted, wanted_likeness) = (
        each(each.picture_features(features, pyramid), phrase) for each in (made, plain)
    )
    close(kernel, wanted)
    # A query that is blocked everywhere has scores of -10,000 and a bit, of which float32 keeps a thousandth.
    torch.testing.assert_close(likeness, wanted_likeness, atol=5e-3, rtol=5e-3)


def test_a_comparison_made_of_arithmetic_is_one() -> None:
    decoder = micro_network(OUTSIDE).mask_decoder
    masks = torch.tensor([[-1e4, -1.0, -1e-3, -2e-9, -0.0, 0.0, 2e-9, 1e-3, 1.0, 1e4]])
    inside = MatrixDecoder(decoder, [1, 1, 1], nn.Identity())._blocked(torch.ones(1, 1), masks.T)
    assert inside.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]]


def canvas(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, 1024, 1024)
    coarse = torch.rand(1, 3, 16, 16, generator=generator) * 255
    image[:, :, :700] = F.interpolate(coarse, size=(700, 1024), mode="bicubic").clamp(0, 255).round()
    ids = random_phrases(1, seed)
    return image, torch.stack((ids, torch.ones_like(ids)))


@settings(max_examples=12, deadline=None)
@given(st.integers(128, 1024), st.sampled_from(RULES), st.integers(0, 50))
def test_the_whole_graph_at_any_size(res: int, rule: MaskAttention, seed: int) -> None:
    network, (image, text) = micro_network(rule, seed), canvas(seed)
    with torch.inference_mode():
        plain = plain_mask(network, image, text, res)
        made = DeployedXDecoder(network, res).eval()(image, text) > 0.5
    assert (made != plain).float().mean() <= MOST_DIFFERING_PIXELS


def subsets() -> list[tuple[str, ...]]:
    """None, each alone, and each left out, where "features" is not without "decoder"."""
    chosen = [subset for size in (0, 1, len(REWRITES) - 1) for subset in combinations(REWRITES, size)]
    return [subset for subset in chosen if "features" not in subset or "decoder" in subset]


@pytest.mark.parametrize("subset", subsets(), ids="+".join)
def test_each_rewrite_can_be_left_out(subset: tuple[str, ...]) -> None:
    network, (image, text) = micro_network(OUTSIDE), canvas(3)
    plain = plain_mask(network, image, text, 144)
    assert 0.02 < plain.float().mean() < 0.98
    made = DeployedXDecoder(network, 144, subset).eval()(image, text) > 0.5  # type: ignore[arg-type]
    assert (made != plain).float().mean() <= MOST_FLIPPED


@pytest.mark.parametrize("res", [64, 100])
def test_a_vit_keeps_its_own_stem(res: int) -> None:
    network, (image, text) = drawn(micro_vit(OUTSIDE), 0), canvas(3)
    plain = plain_mask(network, image, text, res)
    assert 0.02 < plain.float().mean() < 0.98
    assert ((DeployedXDecoder(network, res).eval()(image, text) > 0.5) != plain).float().mean() <= MOST_FLIPPED


def test_features_without_their_decoder_are_refused() -> None:
    with pytest.raises(ValueError, match="got rewrites features, wanted 'decoder' with 'features'"):
        DeployedXDecoder(micro_network(), 64, ["features"])


def test_substitution_shares_parameters_and_leaves_the_original() -> None:
    network = micro_network()
    changed: XDecoder = substituted(network, {FocalBlock: FoldedBlock})
    kinds = {type(part) for part in changed.modules()}
    assert FoldedBlock in kinds
    assert FocalBlock not in kinds
    assert FocalBlock in {type(part) for part in network.modules()}
    assert changed.text_encoder.token_embedding.weight is network.text_encoder.token_embedding.weight
