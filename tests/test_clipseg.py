"""CLIPSeg: equal to transformers' own, from weights in the hub's layout; in NPU forms; trained on in part."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import micro_network, random_phrases, random_pictures
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from trainings import short_training, splits

from promptseg.checkpoints.checkpoint import Provenance, load_checkpoint, save_checkpoint
from promptseg.checkpoints.clipseg_weights import UNREAD_BLOCK, load_clipseg
from promptseg.checkpoints.start import starting_point
from promptseg.datasets.preprocess import CANVAS
from promptseg.datasets.tokenizer import END_OF_TEXT, ClipTokenizer
from promptseg.export.deployed_graph import deployed, plain_mask
from promptseg.export.onnx_export import trace_graph
from promptseg.export.rewrites.clipseg import FoldedDecoder, FoldedText, FoldedVision
from promptseg.export.rewrites.integers import BlockPatches
from promptseg.hubs.contract import IMAGE_INPUT, MASK_THRESHOLD, TEXT_INPUT
from promptseg.hubs.devices import devices
from promptseg.hubs.local.session import qnn_available
from promptseg.hubs.local.tensors import TOLERANCE, compare_borders
from promptseg.networks.clipseg.model import BlockConfig, ClipSeg, ClipSegConfig, rd64_refined, transformers_config
from promptseg.training.data import Batch
from promptseg.training.loop import finetune
from promptseg.training.losses import OBJECTIVES
from promptseg.training.processes import make_accelerator
from promptseg.training.snapshots import Snapshots

RELATIVE = 1e-4  # of the largest logit
PUBLISHED_BLOCKS = 5  # of the vision model, of which the decoder reads the third at last


def tiny(refined: bool = True) -> ClipSegConfig:
    """Every part of the published size, small; positions for 3x3 patches."""
    return replace(
        rd64_refined(),
        vision=BlockConfig(32, 4, 3, 64),
        text=BlockConfig(32, 4, 2, 64),
        decoder=BlockConfig(16, 4, 2, 32),
        position_side=3,
        phrase_dim=24,
        extract_layers=(0, 2),
        refined=refined,
    )


def write_hub_folder(folder: Path, config: ClipSegConfig, end_of_text: int = END_OF_TEXT) -> Any:
    """Save transformers' own network, weights drawn, as the hub has it -> that network."""
    from transformers import CLIPSegForImageSegmentation

    torch.manual_seed(3)
    theirs = transformers_config(config)
    theirs.vision_config.num_hidden_layers = PUBLISHED_BLOCKS
    theirs.text_config.eos_token_id = end_of_text
    network = CLIPSegForImageSegmentation(theirs).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    preprocessor = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": {"height": 352}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return network


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clipseg")
    return folder, write_hub_folder(folder, tiny(), end_of_text=2)


def close(got: Tensor, wanted: Tensor) -> None:
    assert wanted.std() > 0.1, "a constant compares nothing"
    assert (got - wanted).abs().max() <= RELATIVE * wanted.abs().max()


def logits_of(theirs: Any, ours: ClipSeg, pictures: Tensor, ids: Tensor) -> Tensor:
    """Transformers' own forward on what its own image processor would hand it."""
    return theirs(input_ids=ids, pixel_values=(pictures - ours.mean) / ours.std).logits


@pytest.mark.parametrize("res", [48, 96, 128])
def test_it_is_transformers_own_network(hub: tuple[Path, Any], res: int) -> None:
    """Also where positions are interpolated, and with each picture asked twice, which transformers encodes twice."""
    ours, _ = load_clipseg(str(hub[0]))
    pictures, ids = random_pictures(2, res), random_phrases(4)
    with torch.inference_mode():
        close(ours(pictures, ids), logits_of(hub[1], ours, pictures.repeat_interleave(2, 0), ids))


@pytest.mark.parametrize("refined", [True, False])
def test_sizes_are_those_of_the_file(tmp_path: Path, refined: bool) -> None:
    theirs = write_hub_folder(tmp_path, tiny(refined))
    ours, _ = load_clipseg(str(tmp_path))
    assert ours.config == tiny(refined)
    pictures, ids = random_pictures(1, 64), random_phrases(1)
    with torch.inference_mode():
        close(ours(pictures, ids), logits_of(theirs, ours, pictures, ids))


def test_what_pads_a_phrase_does_not_matter(hub: tuple[Path, Any]) -> None:
    """Promptseg pads with the end of text; transformers' older tokenizers padded with zeros."""
    ours, _ = load_clipseg(str(hub[0]))
    ids = torch.from_numpy(ClipTokenizer().encode("the dog on the left")[0])
    end = int((ids[0] == END_OF_TEXT).int().argmax())
    zeros = ids.clone()
    zeros[0, end + 1 :] = 0
    with torch.inference_mode():
        assert torch.equal(ours.phrase(ids), ours.phrase(zeros))
        torch.testing.assert_close(ours.phrase(ids), ours.phrase(ids[:, : end + 1]), atol=1e-5, rtol=1e-4)
        theirs = hub[1].clip.get_text_features(zeros).pooler_output
        torch.testing.assert_close(ours.phrase(ids), theirs, atol=1e-5, rtol=1e-4)


def test_a_side_that_patches_do_not_fill_is_refused(hub: tuple[Path, Any]) -> None:
    ours, _ = load_clipseg(str(hub[0]))
    with pytest.raises(ValueError, match=r"res: got 100, wanted a multiple of 16, .* such as 96 or 112"):
        ours(random_pictures(1, 100), random_phrases(1))


def test_the_published_size() -> None:
    with torch.device("meta"):
        network = ClipSeg(rd64_refined())
    assert sum(parameter.numel() for parameter in network.parameters()) == 136_177_249


def test_every_key_is_accounted_for(hub: tuple[Path, Any]) -> None:
    _, ledger = load_clipseg(str(hub[0]))
    keys = set(load_file(hub[0] / "model.safetensors"))
    assert keys == {*ledger["renamed"], *ledger["dropped"]}
    behind = {key for key in keys if key.startswith("clip.vision_model.encoder.layers.") and key[33] in "34"}
    assert behind == {key for key, why in ledger["dropped"].items() if why == UNREAD_BLOCK}
    assert len(ledger["values_sha256"]) == 64


def test_without_a_preprocessor_it_is_imagenets(hub: tuple[Path, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(hub[0], tmp_path / "copy")
    (folder / "preprocessor_config.json").unlink()
    ours, ledger = load_clipseg(str(folder))
    assert ours.config.mean == rd64_refined().mean
    assert ledger["preprocessor_config.json"] == "missing: ImageNet's"


def test_other_weights_are_refused(hub: tuple[Path, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(hub[0], tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.film_mul.weight"]
    weights |= {"decoder.film_add.weight": torch.zeros(3, 3), "another": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="do not fit") as refused:
        load_clipseg(str(folder))
    for key in ("decoder.film_mul.weight", "decoder.film_add.weight", "another"):
        assert key in str(refused.value)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged file of weights"):
        load_clipseg(str(folder))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "clip"}, "model of type 'clip', wanted 'clipseg'"),
        ({"vision_config": {"hidden_act": "gelu"}}, "vision_config.hidden_act: got 'gelu', wanted 'quick_gelu'"),
    ],
)
def test_another_network_is_refused(hub: tuple[Path, Any], tmp_path: Path, changes: Any, said: str) -> None:
    folder = shutil.copytree(hub[0], tmp_path / "copy")
    fields = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=said):
        load_clipseg(str(folder))


def test_without_network_it_says_how_to_bring_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hf download CIDAS/none .*set finetune\.init and"):
        load_clipseg("CIDAS/none")
    with pytest.raises(ValueError, match=r"got no config\.json, wanted a folder"):
        load_clipseg(str(tmp_path))


def drawn(config: ClipSegConfig) -> ClipSeg:
    torch.manual_seed(1)
    network = ClipSeg(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def test_our_checkpoint_rebuilds_it(tmp_path: Path) -> None:
    path, network = tmp_path / "clipseg.safetensors", drawn(tiny())
    save_checkpoint(path, network, Provenance("clipseg", None, {}, 0, None), torch.float32)
    again, _ = load_checkpoint(path)
    assert again.config == network.config
    assert json.loads(path.with_suffix(".json").read_text())["family"] == "clipseg"
    pictures, ids = random_pictures(1, 48), random_phrases(1)
    with torch.inference_mode():
        close(again.predict(pictures, ids, 64).mask_logits, network.predict(pictures, ids, 64).mask_logits)


def test_where_training_starts(hub: tuple[Path, Any], tmp_path: Path) -> None:
    """From the hub's layout or a checkpoint of ours, each of any size; the learning part is the decoder."""
    sizes = {"res": (64,), "val_res": 64}
    start = starting_point("clipseg", short_training(init=str(hub[0]), **sizes), tmp_path)
    assert start.network.config == tiny()
    assert start.ledger["kind"] == "published"
    assert start.init_sha256 == start.ledger["values_sha256"]
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, start.network, Provenance("clipseg", None, {}, 0, None), torch.float32)
    again = starting_point("clipseg", short_training(init=str(path), **sizes), tmp_path).network
    learning = {key.partition(".")[0] for key, value in again.named_parameters() if value.requires_grad}
    assert learning == {"decoder"}


def test_what_it_does_not_start_from(hub: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"finetune\.res: got 81, wanted a multiple of 16"):
        starting_point("clipseg", short_training(init=str(hub[0])), tmp_path)
    with pytest.raises(ValueError, match=r"finetune\.init, for model 'clipseg': CIDAS/none: got no such model"):
        starting_point("clipseg", short_training(init="CIDAS/none"), tmp_path)
    path = tmp_path / "nano.safetensors"
    save_checkpoint(path, micro_network(), Provenance("nano", None, {}, 0, None), torch.float32)
    with pytest.raises(ValueError, match="a network of the family xdecoder, wanted one of clipseg"):
        starting_point("clipseg", short_training(init=str(path)), tmp_path)


def test_terms_are_those_of_each_phrases_own_mask() -> None:
    """Against transformers' own loss, and dice written out."""
    network = drawn(tiny())
    generator = torch.Generator().manual_seed(4)
    targets = torch.rand(2, 2, 16 * 16, generator=generator).round()
    batch = Batch(random_pictures(2, 64), random_phrases(4), targets, torch.tensor([0, 1, 0, 1]))
    terms = OBJECTIVES[ClipSeg](network, batch, short_training().loss_weights)
    logits = network(batch.pictures, batch.token_ids)
    masks = F.interpolate(targets.view(4, 1, 16, 16), size=(64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(terms.mask_bce, F.binary_cross_entropy_with_logits(logits, masks))
    inside = logits.sigmoid()
    dice = 1 - (2 * (inside * masks).sum((1, 2)) + 1) / (inside.sum((1, 2)) + masks.sum((1, 2)) + 1)
    torch.testing.assert_close(terms.mask_dice, dice.mean())
    assert (terms.contrast, terms.region) == (0, 0)


def test_the_decoder_learns_and_clip_does_not(tmp_path: Path) -> None:
    network = drawn(tiny())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    config = short_training(res=(64,), steps=30, learning_rate=3e-3, val_every=30)
    with torch.device("cpu"):
        outcome = finetune(
            network, splits(config), config, Snapshots(tmp_path, 1e9), make_accelerator(bfloat16=False), None
        )
    losses = [row["loss"] for row in outcome.curve if row["loss"] is not None]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    after = network.state_dict()
    assert {key.partition(".")[0] for key in after if not torch.equal(after[key], before[key])} == {"decoder"}


@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("res", [48, 80])
def test_npu_forms_compute_the_same(refined: bool, res: int) -> None:
    network = drawn(tiny(refined)).requires_grad_(False)
    picture, ids = random_pictures(1, res), random_phrases(1)
    phrase = FoldedText(network)(ids)
    torch.testing.assert_close(phrase, network.phrase(ids), atol=1e-5, rtol=1e-4)
    close(FoldedDecoder(network)(FoldedVision(network, res)(picture), phrase), network(picture, ids)[0])


def test_patches_on_blocks_are_the_patches() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, 4, 4)
    picture = torch.rand(1, 3, 12, 20) * 255
    assert torch.allclose(BlockPatches(conv)(picture), conv(picture), atol=1e-4)


@pytest.mark.parametrize("integers", [False, True])
def test_the_deployed_graph_decides_alike(integers: bool) -> None:
    """Also in the forms that integers want, in float; those hold no constant that would swallow a range of 8 bits."""
    network = drawn(tiny()).requires_grad_(False)
    picture, ids = random_pictures(1, CANVAS), torch.stack((random_phrases(1), torch.ones(1, 77, dtype=torch.int32)))
    with torch.inference_mode():
        graph = deployed(network, 96, integers)
        mask = graph(picture, ids) > MASK_THRESHOLD
        plain = plain_mask(network, picture, ids, 96)
    assert 0.05 < plain.float().mean() < 0.95
    assert (mask != plain).float().mean() < 2e-5
    assert bool(min(each.min() for each in graph.buffers()) < -1000) is not integers


@pytest.mark.skipif(not qnn_available(), reason="no onnxruntime-qnn with an HTP library here")
@pytest.mark.slow
def test_the_emulator_computes_every_part(tmp_path: Path) -> None:
    network = drawn(tiny()).requires_grad_(False)
    trace_graph(deployed(network, 96), 18, tmp_path / "graph.onnx")
    picture = F.interpolate(random_pictures(1, 16), size=(CANVAS, CANVAS), mode="bicubic").clamp(0, 255)
    ids = random_phrases(1)
    inputs = {IMAGE_INPUT.name: picture.numpy(), TEXT_INPUT.name: torch.stack((ids, torch.ones_like(ids))).numpy()}
    compared = compare_borders(tmp_path / "graph.onnx", inputs, devices()[0])
    assert len(compared) > 70
    assert [str(tensor) for tensor in compared if not tensor.error <= TOLERANCE] == []
