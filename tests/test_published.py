"""Published files: read as weights only, in any float type, converted bit for bit, and everything that is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import PAPER_RULE, drawn, micro, micro_network, micro_vit
from published import published_weights
from torch import Tensor

from benchmarks.recipe import made_up
from promptseg.checkpoints.published import (
    Conversion,
    convert,
    load_published,
    published_shapes,
    read_published,
    restore,
)
from promptseg.checkpoints.published_keys import DROPPED, key_table
from promptseg.networks import build_on_meta
from promptseg.networks.xdecoder.model import XDecoderConfig, focal_t, tiny, vit_b

CONFIG = micro(PAPER_RULE)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return restore(micro_network().state_dict(), CONFIG, None)


def stored(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def test_weights_come_back_bit_for_bit(tmp_path, weights):
    network, ledger = load_published(stored(tmp_path / "a.pt", weights), CONFIG)
    assert not network.training
    assert network.config == replace(CONFIG, canvas_rule="stretch")
    for key, value in micro_network().state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    assert ledger["dtypes"] == ["float32"]
    assert len(ledger["renamed"]) + len(ledger["transformed"]) == len(weights)


def test_a_file_of_old_torch_is_read_too(tmp_path, weights):
    network, _ = load_published(stored(tmp_path / "a.pth", weights, _use_new_zipfile_serialization=False), CONFIG)
    assert torch.equal(network.mask_decoder.query_content, micro_network().mask_decoder.query_content)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(tmp_path, weights, dtype):
    path = stored(tmp_path / "a.pt", {key: value.to(dtype) for key, value in weights.items()})
    network, ledger = load_published(path, CONFIG)
    assert ledger["dtypes"] == [str(dtype).removeprefix("torch.")]
    for key, value in micro_network().state_dict().items():
        assert network.state_dict()[key].dtype == torch.float32
        assert torch.equal(network.state_dict()[key], value.to(dtype).float()), key


def test_weights_under_model_are_found_and_the_rest_is_named(tmp_path, weights):
    content = {"model": weights, "optimizer": {"state": {}}, "iteration": 3}
    _, ledger = load_published(stored(tmp_path / "a.pt", content), CONFIG)
    assert set(ledger["beside_the_model"]) == {"optimizer", "iteration"}


def test_the_network_can_be_trained_and_the_file_stays_as_it_is(tmp_path, weights):
    path = stored(tmp_path / "a.pt", weights)
    before = path.read_bytes()
    network, _ = load_published(path, CONFIG)
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before
    assert torch.equal(network.mask_decoder.query_content, micro_network().mask_decoder.query_content + 1)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux lists what is mapped")
def test_float32_weights_are_mapped_and_not_copied(tmp_path, weights):
    path = stored(tmp_path / "mapped.pt", weights)
    network, _ = load_published(path, CONFIG)
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("mapped.pt")
    ]
    places = [value.data_ptr() for value in network.state_dict().values()]
    assert all(any(low <= place < high for low, high in ranges) for place in places)


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=rf"^{path}: ") as caught:
        load_published(path, CONFIG)
    assert "weights_only" not in str(caught.value), "torch's own words advise to load the file unsafely"
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    assert "no such file; wanted a published checkpoint (.pt or .pth)" in refusal(tmp_path / "none.pt")


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_file_is_refused(tmp_path, weights, kept, new):
    path = stored(tmp_path / "a.pt", weights, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "fetch it again" in refusal(path) or "damaged file" in refusal(path)


@pytest.mark.filterwarnings("ignore")  # torch warns of what it makes of some of them
@pytest.mark.parametrize("new", [True, False])
def test_damage_anywhere_is_refused_or_leaves_tensors(tmp_path, new):
    """Cut at each byte, and with bytes changed by chance: torch raises what its parser happens to fall over."""
    path = stored(tmp_path / "a.pt", {"a": torch.ones(3), "b": torch.ones(2, 2)}, _use_new_zipfile_serialization=new)
    content, random = path.read_bytes(), np.random.default_rng(0)
    damaged = [content[:length] for length in range(len(content))]
    for _ in range(1000):
        changed = bytearray(content)
        changed[random.integers(len(content))] = random.integers(256)
        damaged.append(bytes(changed))
    refused = 0
    for each in damaged:
        path.write_bytes(each)
        try:
            read_published(path)
        except ValueError as error:
            refused += str(error).startswith(f"{path}: ")
    assert refused >= len(content)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80", b"<html>not found</html>"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    assert "wanted" in refusal(path) or "fetch it again" in refusal(path)


class Harmful:
    """Unpickled, it would run a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickled_object_is_refused_and_not_run(tmp_path, weights, new):
    content = {**weights, "note": Harmful(tmp_path / "made")}
    message = refusal(stored(tmp_path / "a.pt", content, _use_new_zipfile_serialization=new))
    assert "mkdir" in message
    assert "wanted tensors only: anything else would be run as code" in message
    assert not (tmp_path / "made").exists()


def test_a_whole_network_is_no_checkpoint(tmp_path):
    assert "an object of promptseg.networks.xdecoder.model.XDecoder" in refusal(
        stored(tmp_path / "a.pt", micro_network())
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "got list without weights"),
        ({}, "got dict without weights"),
        (torch.ones(2), "got Tensor without weights"),
        ({"model": {}}, "got dict without weights"),
        ({"step": 3, "note": "text"}, "got step, note, which are no tensors"),
        ({"model": {"a": torch.ones(1)}, "ema": {}}, "got ema beside 'model', which is not understood"),
    ],
)
def test_content_that_is_no_weights_is_refused(tmp_path, content, message):
    assert message in refusal(stored(tmp_path / "a.pt", content))


def test_weights_of_another_architecture_are_refused(tmp_path):
    config = micro_vit(PAPER_RULE)
    path = tmp_path / "a.pt"
    with pytest.raises(ValueError, match=r"missing: backbone\.pos_embed"):
        load_published(stored(path, restore(micro_network().state_dict(), CONFIG, None)), config)


def test_reading_says_what_lies_beside(tmp_path):
    weights, beside = read_published(stored(tmp_path / "a.pt", {"model": {"a": torch.ones(1)}, "epoch": 1}))
    assert list(weights) == ["a"]
    assert beside == {"epoch": "how far a training run was"}


# Converts Focal-T as `finetune` does, runs it at res 590, and says how much memory the process had at most.
_FOCAL_T = """
import resource, sys
from pathlib import Path
import torch
from promptseg.checkpoints.published import load_published
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import focal_t, resize_canvas
network, _ = load_published(Path(sys.argv[1]), focal_t(MaskAttention("outside", "bilinear")))
with torch.inference_mode():
    (grounding,), phrase = network(resize_canvas(torch.rand(1, 3, 1024, 1024) * 255, 590), torch.full((1, 77), 49407))
assert grounding.mask_logits.shape == (1, 100, 148, 148)
assert grounding.mask_logits.isfinite().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_focal_t_loads_and_runs_within_6_gib(tmp_path):
    root = Path(__file__).resolve().parent.parent
    made = [sys.executable, "-m", "benchmarks.recipe", "--model", "focal_t", str(tmp_path / "focal_t.pt")]
    subprocess.run(made, cwd=root, check=True)
    run = [sys.executable, "-c", _FOCAL_T, str(tmp_path / "focal_t.pt")]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run(run, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 6 * 2**30


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
def tiny_weights() -> dict[str, Tensor]:
    return published_weights()


@pytest.fixture(scope="module")
def converted(tiny_weights: dict[str, Tensor]) -> Conversion:
    return convert(tiny_weights, tiny(PAPER_RULE))


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
    tiny_weights = made_up(keys_of("focal_t_checkpoint_keys.json"), seed=0)
    conversion = convert(tiny_weights, config)
    build_on_meta(config).load_state_dict(conversion.weights, strict=True, assign=True)
    assert_bit_equal(restore(conversion.weights, config, conversion), tiny_weights)


def test_published_to_ours_and_back_is_bit_equal(tiny_weights, converted):
    assert_bit_equal(restore(converted.weights, tiny(PAPER_RULE), converted), tiny_weights)


@pytest.mark.parametrize("build", [micro, micro_vit])
def test_ours_to_published_and_back_is_bit_equal(build):
    config = build(PAPER_RULE)
    ours = drawn(config, seed=4).state_dict()
    published = restore(ours, config, None)
    assert {key: tuple(value.shape) for key, value in published.items()} == published_shapes(config)
    assert_bit_equal(convert(published, config).weights, ours)


def test_what_is_dropped_comes_back_too(tiny_weights):
    everything = tiny_weights | OTHER_TASKS
    conversion = convert(everything, tiny(PAPER_RULE))
    assert_bit_equal(restore(conversion.weights, tiny(PAPER_RULE), conversion), everything)
    assert set(conversion.dropped) == {*OTHER_TASKS, f"{HEAD}query_feat.weight", f"{HEAD}query_embed.weight"}


def test_the_class_query_is_the_last_row_and_the_only_one_cut(tiny_weights, converted):
    name = f"{HEAD}query_feat.weight"
    assert converted.weights["mask_decoder.query_content"].shape == (16, 64)
    assert torch.equal(converted.dropped[name], tiny_weights[name][16:])
    assert converted.dropped[name].shape == (1, 64)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_a_wrappers_prefix_is_taken_off_and_put_back(tiny_weights, converted, prefix):
    wrapped = {prefix + key: value for key, value in tiny_weights.items()}
    conversion = convert(wrapped, tiny(PAPER_RULE))
    assert_bit_equal(conversion.weights, converted.weights)
    assert conversion.ledger.prefix == prefix
    assert_bit_equal(restore(conversion.weights, tiny(PAPER_RULE), conversion), wrapped)


def test_the_ledger_names_every_key_once_and_says_why(tiny_weights):
    everything = tiny_weights | OTHER_TASKS
    ledger = convert(everything, tiny(PAPER_RULE)).ledger.to_json()
    named = [key for kind in ("renamed", "transformed", "dropped") for key in ledger[kind]]
    assert sorted(named) == sorted(everything)
    assert ledger["dropped"] == {key: DROPPED[key] for key in OTHER_TASKS}
    assert ledger["renamed"][f"{HEAD}class_embed"] == "mask_decoder.class_projection"
    assert ledger["transformed"][f"{HEAD}query_feat.weight"]["to"] == "mask_decoder.query_content"
    assert "class query" in ledger["transformed"][f"{HEAD}query_feat.weight"]["how"]
    assert len(ledger["transformed"]) == 2 + 5  # and the 1x1 convolution of each Focal block
    assert json.loads(json.dumps(ledger)) == ledger


def test_nothing_is_copied(tiny_weights, converted):
    places = {value.untyped_storage().data_ptr() for value in tiny_weights.values()}
    assert {value.untyped_storage().data_ptr() for value in converted.weights.values()} <= places


def conversion_refusal(tiny_weights: dict[str, Tensor], config: XDecoderConfig | None = None) -> str:
    with pytest.raises(ValueError, match=r"does not fit the .* keys of this model") as caught:
        convert(tiny_weights, config or tiny(PAPER_RULE))
    return str(caught.value)


def test_unknown_keys_are_refused_and_all_named(tiny_weights):
    more = {"head.weight": torch.ones(1), **{f"extra.{n}.bias": torch.ones(1) for n in range(3)}}
    message = conversion_refusal(tiny_weights | more)
    assert "not understood: head.weight, extra.*.bias (3 keys); wanted" in message


def test_a_layer_that_would_change_the_function_is_not_dropped(tiny_weights):
    assert f"not understood: {HEAD}input_proj.0.weight" in conversion_refusal(
        tiny_weights | {f"{HEAD}input_proj.0.weight": torch.ones(64, 64, 1, 1)}
    )


def test_missing_keys_are_refused_and_all_named(tiny_weights):
    half = dict(list(tiny_weights.items())[: len(tiny_weights) // 2])
    message = conversion_refusal(half)
    assert f"got a published checkpoint of {len(half)} keys" in message
    assert "missing: " in message
    assert f"{HEAD}decoder_norm.weight" in message


def test_wrong_shapes_are_refused_and_all_named(tiny_weights):
    wrong = {f"{HEAD}class_embed": torch.ones(64, 32), f"{HEAD}query_feat.weight": torch.ones(16, 64)}
    message = conversion_refusal(tiny_weights | wrong)
    assert f"{HEAD}class_embed (got [64, 32], wanted [64, 64])" in message
    assert f"{HEAD}query_feat.weight (got [16, 64], wanted [17, 64])" in message


def test_whole_numbers_are_refused(tiny_weights):
    name = f"{HEAD}class_embed"
    assert f"not of a floating type: {name}" in conversion_refusal(
        tiny_weights | {name: tiny_weights[name].to(torch.int8)}
    )


@pytest.mark.parametrize("value", [torch.tensor([103.53, 116.28, 123.675]), torch.ones(1)])
def test_another_normalisation_is_refused(tiny_weights, value):
    assert "not the constants of this network: pixel_mean" in conversion_refusal(tiny_weights | {"pixel_mean": value})


def test_another_architecture_is_refused_with_what_differs(tiny_weights):
    message = conversion_refusal(tiny_weights, micro_vit(PAPER_RULE))
    assert "not understood: " in message
    assert "backbone.layers.*.blocks.*.gamma_* (10 keys)" in message
    assert "missing: backbone.pos_embed" in message
