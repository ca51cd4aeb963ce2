"""Published names and ours: there and back, bit for bit; and everything that is refused."""

import json
from pathlib import Path

import pytest
import torch
from networks import PAPER_RULE, drawn, micro, micro_vit
from published import published_weights
from torch import Tensor

from benchmarks.recipe import made_up
from promptseg.checkpoints.convert import Conversion, convert, published_shapes, restore
from promptseg.checkpoints.published_keys import DROPPED, key_table
from promptseg.networks.xdecoder.model import XDecoderConfig, build_on_meta, focal_t, tiny, vit_b

# The keys and shapes of published checkpoints: of Focal-T's grounding path, and of SAM's ViT-B with its pyramid.
DATA = Path(__file__).parent / "data"
HEAD = "sem_seg_head.predictor."
OTHER_TASKS = {  # as the published code stores them, by its names
    f"{HEAD}caping_embed": torch.ones(64, 64),
    f"{HEAD}pos_embed_caping.weight": torch.ones(77, 64),
    f"{HEAD}bbox_embed.layers.2.bias": torch.ones(4),
    f"{HEAD}self_attn_mask": torch.zeros(1, 94, 94, dtype=torch.bool),
    "backbone_proj": torch.ones(256, 64),
    "criterion.empty_weight": torch.ones(134),
    "pixel_mean": torch.tensor([123.675, 116.280, 103.530]).view(3, 1, 1),
    "pixel_std": torch.tensor([58.395, 57.120, 57.375]).view(3, 1, 1),
}


def keys_of(name: str) -> dict[str, list[int]]:
    return json.loads((DATA / name).read_text(encoding="utf-8"))["keys"]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return published_weights()


@pytest.fixture(scope="module")
def converted(weights: dict[str, Tensor]) -> Conversion:
    return convert(weights, tiny(PAPER_RULE))


def assert_bit_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        assert got[key].dtype == value.dtype, key
        assert torch.equal(got[key], value), key


def test_focal_t_has_the_published_keys_and_shapes():
    published = keys_of("focal_t_checkpoint_keys.json")
    assert {key: list(shape) for key, shape in published_shapes(focal_t(PAPER_RULE)).items()} == published
    assert len(published) == 721


def test_focal_t_has_the_published_number_of_weights():
    sizes = {key: value.numel() for key, value in build_on_meta(focal_t(PAPER_RULE)).state_dict().items()}
    parts = ("backbone", "pixel_decoder", "text_encoder", "")
    counted = [sum(size for key, size in sizes.items() if key.startswith(part)) / 1e6 for part in parts]
    assert [round(count, 1) for count in counted] == [29.9, 31.5, 63.4, 163.8]


def test_vit_b_has_the_published_keys_and_shapes_and_focal_ts_decoders():
    ours = {key: list(shape) for key, shape in published_shapes(vit_b(PAPER_RULE)).items()}
    of_backbone = {key: shape for key, shape in ours.items() if key.startswith("backbone.")}
    assert of_backbone == keys_of("sam_vit_b_backbone_keys.json")
    of_focal_t = published_shapes(focal_t(PAPER_RULE))
    others = set(ours) - set(of_backbone)
    assert others == {key for key in of_focal_t if not key.startswith("backbone.")}
    assert {key for key in others if ours[key] != list(of_focal_t[key])} == {
        "sem_seg_head.pixel_decoder.input_proj.weight",
        *(f"sem_seg_head.pixel_decoder.adapter_{level}.weight" for level in (1, 2, 3)),
    }


@pytest.mark.parametrize("config", [tiny(PAPER_RULE), focal_t(PAPER_RULE), vit_b(PAPER_RULE), micro_vit(PAPER_RULE)])
def test_the_table_fills_every_key_of_ours_once(config: XDecoderConfig):
    targets = [target.key for target in key_table(config).values()]
    assert sorted(targets) == sorted(build_on_meta(config).state_dict())
    assert not set(key_table(config)) & set(DROPPED)


@pytest.mark.slow
def test_focal_t_goes_there_and_back_bit_for_bit():
    config = focal_t(PAPER_RULE)
    weights = made_up(keys_of("focal_t_checkpoint_keys.json"), seed=0)
    conversion = convert(weights, config)
    build_on_meta(config).load_state_dict(conversion.weights, strict=True, assign=True)
    assert_bit_equal(restore(conversion.weights, config, conversion), weights)


def test_published_to_ours_and_back_is_bit_equal(weights, converted):
    assert_bit_equal(restore(converted.weights, tiny(PAPER_RULE), converted), weights)


@pytest.mark.parametrize("build", [micro, micro_vit])
def test_ours_to_published_and_back_is_bit_equal(build):
    config = build(PAPER_RULE)
    ours = drawn(config, seed=4).state_dict()
    published = restore(ours, config, None)
    assert {key: tuple(value.shape) for key, value in published.items()} == published_shapes(config)
    assert_bit_equal(convert(published, config).weights, ours)


def test_what_is_dropped_comes_back_too(weights):
    everything = weights | OTHER_TASKS
    conversion = convert(everything, tiny(PAPER_RULE))
    assert_bit_equal(restore(conversion.weights, tiny(PAPER_RULE), conversion), everything)
    assert set(conversion.dropped) == {*OTHER_TASKS, f"{HEAD}query_feat.weight", f"{HEAD}query_embed.weight"}


def test_the_class_query_is_the_last_row_and_the_only_one_cut(weights, converted):
    name = f"{HEAD}query_feat.weight"
    assert converted.weights["mask_decoder.query_content"].shape == (16, 64)
    assert torch.equal(converted.dropped[name], weights[name][16:])
    assert converted.dropped[name].shape == (1, 64)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_a_wrappers_prefix_is_taken_off_and_put_back(weights, converted, prefix):
    wrapped = {prefix + key: value for key, value in weights.items()}
    conversion = convert(wrapped, tiny(PAPER_RULE))
    assert_bit_equal(conversion.weights, converted.weights)
    assert conversion.ledger.prefix == prefix
    assert_bit_equal(restore(conversion.weights, tiny(PAPER_RULE), conversion), wrapped)


def test_the_ledger_names_every_key_once_and_says_why(weights):
    everything = weights | OTHER_TASKS
    ledger = convert(everything, tiny(PAPER_RULE)).ledger.to_json()
    named = [key for kind in ("renamed", "transformed", "dropped") for key in ledger[kind]]
    assert sorted(named) == sorted(everything)
    assert ledger["dropped"] == {key: DROPPED[key] for key in OTHER_TASKS}
    assert ledger["renamed"][f"{HEAD}class_embed"] == "mask_decoder.class_projection"
    assert ledger["transformed"][f"{HEAD}query_feat.weight"]["to"] == "mask_decoder.query_content"
    assert "class query" in ledger["transformed"][f"{HEAD}query_feat.weight"]["how"]
    assert len(ledger["transformed"]) == 2 + 5  # and the 1x1 convolution of each Focal block
    assert json.loads(json.dumps(ledger)) == ledger


def test_nothing_is_copied(weights, converted):
    places = {value.untyped_storage().data_ptr() for value in weights.values()}
    assert {value.untyped_storage().data_ptr() for value in converted.weights.values()} <= places


def refusal(weights: dict[str, Tensor], config: XDecoderConfig | None = None) -> str:
    with pytest.raises(ValueError, match=r"does not fit the .* keys of this model") as caught:
        convert(weights, config or tiny(PAPER_RULE))
    return str(caught.value)


def test_unknown_keys_are_refused_and_all_named(weights):
    more = {"head.weight": torch.ones(1), **{f"extra.{n}.bias": torch.ones(1) for n in range(3)}}
    message = refusal(weights | more)
    assert "not understood: head.weight, extra.*.bias (3 keys); wanted" in message


def test_a_layer_that_would_change_the_function_is_not_dropped(weights):
    assert f"not understood: {HEAD}input_proj.0.weight" in refusal(
        weights | {f"{HEAD}input_proj.0.weight": torch.ones(64, 64, 1, 1)}
    )


def test_missing_keys_are_refused_and_all_named(weights):
    half = dict(list(weights.items())[: len(weights) // 2])
    message = refusal(half)
    assert f"got a published checkpoint of {len(half)} keys" in message
    assert "missing: " in message
    assert f"{HEAD}decoder_norm.weight" in message


def test_wrong_shapes_are_refused_and_all_named(weights):
    wrong = {f"{HEAD}class_embed": torch.ones(64, 32), f"{HEAD}query_feat.weight": torch.ones(16, 64)}
    message = refusal(weights | wrong)
    assert f"{HEAD}class_embed (got [64, 32], wanted [64, 64])" in message
    assert f"{HEAD}query_feat.weight (got [16, 64], wanted [17, 64])" in message


def test_whole_numbers_are_refused(weights):
    name = f"{HEAD}class_embed"
    assert f"not of a floating type: {name}" in refusal(weights | {name: weights[name].to(torch.int8)})


@pytest.mark.parametrize("value", [torch.tensor([103.53, 116.28, 123.675]), torch.ones(1)])
def test_another_normalisation_is_refused(weights, value):
    assert "not the constants of this network: pixel_mean" in refusal(weights | {"pixel_mean": value})


def test_another_architecture_is_refused_with_what_differs(weights):
    message = refusal(weights, micro_vit(PAPER_RULE))
    assert "not understood: " in message
    assert "backbone.layers.*.blocks.*.gamma_* (10 keys)" in message
    assert "missing: backbone.pos_embed" in message
