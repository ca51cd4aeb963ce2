"""What the network trains on: the right pictures, phrases and masks, prepared once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import few_scenes, short_training, splits

from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import mask_to_canvas, picture_to_canvas, read_picture
from promptseg.datasets.records import Rle, Sample, read_samples, write_records
from promptseg.datasets.tokenizer import END_OF_TEXT, ClipTokenizer
from promptseg.networks.xdecoder.model import resize_canvas
from promptseg.networks.xdecoder.text_encoder import TextConfig, TextEncoder
from promptseg.training import data as data_module
from promptseg.training.data import Batch, GroundingData, soft_target
from promptseg.training.sampling import WHOLE

CONFIG = short_training()


def _open(split: str = "train", cache_bytes: int = 10**8, **paths: Path) -> GroundingData:
    return GroundingData(
        **{**few_scenes(), **paths}, split=split, sizes=CONFIG.res, cache_bytes=cache_bytes, canvas_rule="crop"
    )


@pytest.mark.parametrize(("split", "pictures"), [("train", 6), ("val", 2), ("test", 1)])
def test_a_split_holds_its_samples_by_picture(split, pictures):
    data = _open(split)
    assert data.samples == [sample for sample in read_samples(few_scenes()["samples"]) if sample.split == split]
    assert len(data.images) == len(data.samples_of) == pictures
    assert sorted(index for indices in data.samples_of for index in indices) == list(range(len(data.samples)))
    for image, indices in zip(data.images, data.samples_of, strict=True):
        assert {data.samples[index].image for index in indices} == {image}


@pytest.mark.parametrize("split", ["train", "val"])
def test_token_ids_are_the_samples_own(split):
    data = _open(split)
    expected = ClipTokenizer().encode_all([sample.phrase for sample in data.samples])[:, 0]
    assert (data.token_ids == expected).all()


@pytest.mark.parametrize("res", CONFIG.res)
def test_a_picture_is_its_canvas_at_the_networks_size(res):
    data = _open()
    image = data.images[2]
    canvas = picture_to_canvas(read_picture(PictureArchives(few_scenes()["images"]).read(image), image))
    expected = resize_canvas(torch.from_numpy(canvas).float()[None], res)[0]
    picture = data.picture(2, res)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, res, res)
    assert (picture.float() - expected).abs().max() <= 0.5


@pytest.mark.parametrize("res", CONFIG.res)
def test_a_target_is_its_mask_at_stride_four(res):
    data = _open()
    mask = torch.from_numpy(mask_to_canvas(data.samples[5].mask.to_mask()))
    target = data.target(5, res)
    assert target.dtype == torch.uint8
    torch.testing.assert_close(target.float() / 255, soft_target(mask, res, "crop"), atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_batch_holds_what_was_chosen():
    data = _open()
    chosen = [data.samples_of[4][:3], data.samples_of[1][-3:]]
    batch = data.batch([4, 1], chosen, [[WHOLE]] * 2, 81)
    assert batch.phrases_per_picture == 3
    assert (batch.pictures.dtype, batch.pictures.shape) == (torch.float32, (2, 3, 81, 81))
    assert (batch.token_ids.dtype, len(batch.token_ids)) == (torch.int32, 6)
    assert (batch.targets.dtype, batch.targets.shape) == (torch.float32, (2, 3, 21 * 21))
    assert torch.equal(batch.pictures[1], data.picture(1, 81).float())
    for row, index in enumerate([*chosen[0], *chosen[1]]):
        assert (batch.token_ids[row].numpy() == data.token_ids[index][: batch.token_ids.shape[1]]).all()
        assert torch.equal(batch.targets[row // 3, row % 3], data.target(index, 81).flatten().float() / 255)


def test_a_batch_is_as_long_as_its_longest_phrase_and_encodes_to_the_same():
    data, encoder = _open(), TextEncoder(TextConfig(width=8, heads=2, layers=2, context_length=77, vocab_size=49408), 6)
    chosen = data.samples_of[0][:4]
    trimmed = data.batch([0], [chosen], [[WHOLE]], 64).token_ids
    whole = torch.from_numpy(data.token_ids[chosen])
    lengths = [row.index(END_OF_TEXT) + 1 for row in whole.tolist()]
    assert trimmed.shape[1] == max(lengths) < 77
    torch.testing.assert_close(encoder(trimmed), encoder(whole))


def test_masks_are_drawn_once_for_all_phrases_and_sizes(monkeypatch):
    drawn = []
    monkeypatch.setattr(data_module, "mask_to_canvas", lambda mask: (drawn.append(mask), mask_to_canvas(mask))[1])
    data = _open()
    for index in data.samples_of[0]:
        for res in CONFIG.res:
            data.target(index, res)
    assert len(drawn) == len({data.samples[index].mask for index in data.samples_of[0]}) < len(data.samples_of[0])


def test_phrases_of_one_object_share_its_first_mask():
    data = _open()
    by_mask: dict[Rle, list[int]] = {}
    for index in data.samples_of[0]:
        by_mask.setdefault(data.samples[index].mask, []).append(index)
    (a, b, *_), (c, d, *_) = list(by_mask.values())[:2]
    assert data.batch([0], [[a, c, b, d]], [[WHOLE]], 64).own.tolist() == [0, 1, 0, 1]
    assert data.batch([0, 0], [[c, c], [d, a]], [[WHOLE]] * 2, 64).own.tolist() == [0, 0, 0, 1]


def test_to_moves_every_part():
    batch = _open().batch([0], [[0, 1]], [[WHOLE]], 64)
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Batch)
    assert all(value.device.type == "meta" for value in vars(moved).values())


def test_pictures_are_decoded_once_for_all_sizes(monkeypatch):
    decoded = []
    monkeypatch.setattr(
        data_module, "read_picture", lambda content, name: (decoded.append(name), read_picture(content, name))[1]
    )
    data = _open()
    for _ in range(2):
        for res in CONFIG.res:
            data.picture(3, res)
    assert decoded == [data.images[3]]


@pytest.mark.parametrize("budget", [0, 15_000, 40_000])
def test_memory_stays_within_its_budget_and_changes_no_value(budget):
    rich, poor = _open(), _open(cache_bytes=budget)
    for _ in range(2):
        for index in range(3):
            for res in CONFIG.res:
                assert torch.equal(rich.picture(index, res), poor.picture(index, res))
                assert torch.equal(rich.target(index, res), poor.target(index, res))
    held = sum(value.nbytes for value in poor._memory.values())
    assert held <= budget
    assert held == poor._filled


def test_soft_targets_are_shares_of_cells():
    whole = soft_target(torch.ones(1024, 1024, dtype=torch.bool), 66, "crop")
    expected = torch.ones(17, 17)
    expected[16] *= 0.5  # two of this row's four pixels lie beyond the input
    expected[:, 16] *= 0.5
    torch.testing.assert_close(whole, expected)
    assert soft_target(torch.zeros(1024, 1024, dtype=torch.bool), 66, "crop").sum() == 0


@pytest.mark.parametrize("res", [64, 81, 320, 590])
def test_soft_targets_keep_the_area_and_the_place(res):
    mask = torch.zeros(1024, 1024, dtype=torch.bool)
    mask[200:500, 300:900] = True
    share = soft_target(mask, res, "crop")
    scale = res / 4 / 1024  # cells per pixel of the canvas
    centres = torch.arange(len(share)) + 0.5
    assert share.sum().item() == pytest.approx(300 * 600 * scale**2, rel=0.01)
    assert ((share.sum(1) * centres).sum() / share.sum()).item() == pytest.approx(350 * scale, abs=0.02)
    assert ((share.sum(0) * centres).sum() / share.sum()).item() == pytest.approx(600 * scale, abs=0.02)
    assert 0 <= share.min() <= share.max() <= 1 + 1e-6


def test_tokens_of_other_samples_are_refused(tmp_path):
    np.save(tmp_path / "tokens.npy", np.load(few_scenes()["tokens"])[:-1])
    with pytest.raises(ValueError, match=r"tokens\.npy: got \d+ rows for \d+ samples; run `dvc repro tokenize`"):
        _open(tokens=tmp_path / "tokens.npy")


def test_an_empty_split_is_refused(tmp_path):
    samples = [sample for sample in read_samples(few_scenes()["samples"]) if sample.split != "val"]
    write_records(tmp_path / "samples.jsonl", samples)
    np.save(tmp_path / "tokens.npy", np.zeros((len(samples), 2, 77), np.int32))
    with pytest.raises(ValueError, match="has no sample of the split 'val'; choose another data set or its limits"):
        _open("val", samples=tmp_path / "samples.jsonl", tokens=tmp_path / "tokens.npy")


def test_a_missing_archive_names_the_stage(tmp_path):
    with pytest.raises(ValueError, match="no such archive of pictures; run `dvc repro fetch`"):
        _open(images=tmp_path).picture(0, 64)


def test_splitsidation_share_no_picture():
    opened = splits(CONFIG)
    assert not set(opened.train.images) & set(opened.val.images)
    assert all(isinstance(sample, Sample) for sample in (*opened.train.samples, *opened.val.samples))
