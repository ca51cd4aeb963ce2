"""Photographs: their tables, the phrases made from them, composites, crops, and how answers about them are scored."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from networks import PAPER_RULE, drawn, micro, micro_phrase
from numpy.typing import NDArray
from PIL import Image
from trainings import short_training

from promptseg.__main__ import main
from promptseg.checkpoints.checkpoint import Provenance, load_checkpoint, save_checkpoint
from promptseg.datasets.records import Rle, Sample, read_pictures, read_samples
from promptseg.datasets.tokenizer import ClipTokenizer, write_tokens
from promptseg.params import PhotosConfig, read_data_config
from promptseg.quality import auroc, calibration_error, read_scored, summary
from promptseg.sources.build import build_dataset
from promptseg.sources.photos.composites import Photo, compose, draw_composites
from promptseg.sources.photos.phrases import Thing, colour_of, wordings
from promptseg.training.crops import choose, picture_of, targets_of

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 120, 160
CONFIG = replace(read_data_config(ROOT, "photos"), composites=3, variants=2, absent=2)
assert isinstance(CONFIG, PhotosConfig)


def box(left: int, top: int, width: int, height: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def thing(key: int, name: str, *place: int, crowd: bool = False) -> Thing:
    return Thing(key, name, Rle.from_mask(box(*place)), crowd)


DOGS = (thing(1, "dog", 5, 10, 60, 60), thing(2, "dog", 100, 10, 45, 45))
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def said(things: tuple[Thing, ...], picture: NDArray[np.uint8] | None = None) -> dict[str, tuple[int, ...]]:
    return {phrase: wording.keys for wording in wordings(things, picture) for phrase in wording.phrases}


def test_names_mean_all_and_places_and_sizes_one():
    phrases = said(DOGS)
    assert phrases["dog"] == phrases["all dogs"] == phrases["puppy"] == (1, 2)
    assert phrases["the dog on the left"] == phrases["the largest dog"] == (1,)
    assert phrases["right dog"] == phrases["the smallest dog"] == (2,)
    assert not any("top" in phrase for phrase in phrases), "they are level"


def test_three_in_a_row_are_counted_from_both_ends():
    phrases = said(tuple(thing(key, "cup", 50 * key, 20, 30, 30) for key in range(3)))
    assert phrases["the leftmost cup"] == (0,)
    assert phrases["the second cup from the left"] == phrases["the cup in the middle"] == (1,)
    assert phrases["the second cup from the right"] == (1,)


def test_where_a_crowd_is_nobody_is_told_apart():
    assert set(map(len, said((*DOGS, thing(3, "dog", 0, 90, 20, 20, crowd=True))).values())) == {3}


def test_a_colour_is_said_where_it_tells_apart():
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    picture[DOGS[0].mask.to_mask()] = (190, 30, 30)
    picture[DOGS[1].mask.to_mask()] = (20, 20, 20)
    phrases = said(DOGS, picture)
    assert (phrases["the red dog"], phrases["the black dog"]) == ((1,), (2,))
    assert "the grey dog" not in phrases
    assert colour_of(PICTURE.reshape(-1, 3)) is None, "of many colours"


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def test_composites_are_what_their_masks_say():
    grey, red = np.full((HEIGHT, WIDTH, 3), 128, np.uint8), np.full((HEIGHT, WIDTH, 3), (200, 20, 20), np.uint8)
    ground = Photo("ground.jpg", HEIGHT, WIDTH, (thing(1, "table", 0, 0, 160, 120),), complete=True)
    source = Photo("source.jpg", HEIGHT, WIDTH, (thing(1, "dog", 20, 20, 60, 60),), complete=True)
    read = {"ground.jpg": jpeg(grey), "source.jpg": jpeg(red)}.__getitem__
    for composite in draw_composites([source], [ground], 4, seed=0):
        shown = np.asarray(Image.open(io.BytesIO(compose(composite, read)))).astype(int)
        dogs = np.any([each.mask.to_mask() for each in composite.result.things if each.name == "dog"], axis=0)
        table = np.any([each.mask.to_mask() for each in composite.result.things if each.name == "table"], axis=0)
        is_red = shown[..., 0] - shown[..., 1] > 90
        assert (is_red != dogs).mean() < 0.04, "but for soft edges"
        assert not (dogs & table).any()
    again = draw_composites([source], [ground], 4, seed=0)
    assert [each.result for each in again] == [each.result for each in draw_composites([source], [ground], 4, seed=0)]


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """Three pictures in the layout of a mirror, one of each split."""
    folder = tmp_path / "mirror"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, split in enumerate(("train", "val", "val_clothes"), start=1):
        picture = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        (folder / "images" / f"{number}.jpg").write_bytes(jpeg(picture))
        images.append(
            {"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH, "split": split,
             "source": "COCO 2017", "annotated": "all 80 COCO names"}
        )  # fmt: skip
        for at, (category, each) in enumerate(zip((1, 1, 2), (*DOGS, thing(3, "cat", 20, 80, 30, 30)), strict=True)):
            if split == "train" or category == 1:
                annotations.append(
                    {"id": 10 * number + at, "image_id": number, "category_id": category, "iscrowd": 0,
                     "segmentation": {"size": [HEIGHT, WIDTH], "counts": each.mask.counts}}
                )  # fmt: skip
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    tables = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(tables), encoding="utf-8")
    return folder


def build(mirror: Path, out: Path) -> list[Sample]:
    build_dataset(CONFIG, str(mirror), str(mirror), out / "cache", out / "images", out / "samples", out / "objects")
    return read_samples(out / "samples")


def test_a_mirror_becomes_phrases_of_what_is_there_and_of_what_is_not(mirror: Path, tmp_path: Path) -> None:
    samples = build(mirror, tmp_path)
    scored = {sample.phrase: sample for sample in samples if sample.split == "val"}
    assert np.array_equal(scored["dog"].mask.to_mask(), DOGS[0].mask.to_mask() | DOGS[1].mask.to_mask())
    assert np.array_equal(scored["the dog on the left"].mask.to_mask(), DOGS[0].mask.to_mask())
    assert not scored["cat"].means_something
    assert scored["dog"].means_something
    composites = {picture.image for picture in read_pictures(tmp_path / "objects") if "composite" in picture.image}
    assert len(composites) == 3
    assert all(sample.split == "train" for sample in samples if sample.image in composites)
    assert build(mirror, tmp_path / "again") == samples


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("split", "tset", "instances.json, image 1: split: got 'tset', wanted one of train, val, val_clothes"),
        ("file_name", "9.jpg", "9.jpg: got no such picture in"),
        ("width", None, "image 1: width, height: got none"),
    ],
)
def test_a_wrong_table_is_told_by_its_place(
    mirror: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    tables = json.loads((mirror / "instances.json").read_text(encoding="utf-8"))
    tables["images"][0][key] = value
    (mirror / "instances.json").write_text(json.dumps(tables), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        build(mirror, tmp_path)
    assert not (tmp_path / "samples").exists()


def test_without_such_a_mirror_cocos_pictures_come_one_by_one(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder laid out as COCO's addresses are; the real ones are fetched alike."""
    folder, rows = tmp_path / "coco-mirror", []
    tables = json.loads((mirror / "instances.json").read_text(encoding="utf-8"))
    (folder / "coco/annotations").mkdir(parents=True)
    with zipfile.ZipFile(folder / "coco/annotations/annotations_trainval2017.zip", "w") as archive:
        for place, split in (("train2017", ("train",)), ("val2017", ("val", "val_clothes"))):
            (folder / "coco" / place).mkdir()
            images = [row for row in tables["images"] if row["split"] in split]
            for row in images:
                (folder / "coco" / place / row["file_name"]).write_bytes(
                    (mirror / "images" / row["file_name"]).read_bytes()
                )
                rows.append({"coco_id": row["id"], "folder": place, "split": row["split"], "looked_for": ""})
            kept = [row for row in tables["annotations"] if row["image_id"] in {image["id"] for image in images}]
            part = {"images": images, "annotations": kept, "categories": tables["categories"]}
            archive.writestr(f"annotations/instances_{place}.json", json.dumps(part))
    pd.DataFrame(rows).to_csv(tmp_path / "pictures.csv", index=False)
    monkeypatch.setattr("promptseg.sources.photos.tables.PICTURES", tmp_path / "pictures.csv")
    fetched, whole = build(folder, tmp_path / "a"), build(mirror, tmp_path / "b")
    assert {sample.sample_id for sample in fetched if sample.split == "val"} == {
        sample.sample_id for sample in whole if sample.split == "val"
    }


def sample(phrase: str, mask: NDArray[np.bool_], kind: str = "keyword") -> Sample:
    return Sample(phrase, "train", "a.zip/a.jpg", HEIGHT, WIDTH, phrase, kind, Rle.from_mask(mask))  # type: ignore[arg-type]


def test_a_crop_asks_for_what_it_shows_and_for_what_the_picture_lacks() -> None:
    corner = sample("corner", box(0, 0, 30, 30))
    samples = [corner, sample("other corner", box(130, 90, 30, 30)), sample("nothing", np.zeros((HEIGHT, WIDTH), bool))]
    config = short_training(crop=(0.4, 0.5), absent_share=0.3, phrases_per_picture=4, flip=True)
    seen = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        asked = choose(rng, samples, 64, config)
        targets, picture = targets_of(asked, 64), picture_of(rng, PICTURE, asked.crop, 64, 0.2)
        assert (targets.shape, picture.shape) == ((4, 256), (3, 64, 64))
        for at, target in zip(asked.samples, targets, strict=True):
            assert (target.sum() > 0) == samples[at].means_something
            seen.add((samples[at].phrase, asked.crop.mirrored))
    assert len(seen) == 6, "both ways round"


def test_targets_lie_where_the_picture_shows_them() -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask = box(40, 30, 50, 40)
    picture[mask] = 255
    config = short_training(crop=(0.7, 1.2), phrases_per_picture=1, flip=True)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        asked = choose(rng, [sample("box", mask)], 64, config)
        shown = picture_of(rng, picture, asked.crop, 64, 0.0)[0] / 255
        small = shown.view(16, 4, 16, 4).mean((1, 3)).flatten()
        assert (small - targets_of(asked, 64)[0]).abs().max() < 0.5
        assert (small - targets_of(asked, 64)[0]).abs().mean() < 0.03


def test_the_ranking_of_present_before_absent_equals_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, present = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[present] for b in scores[~present]]
    assert auroc(scores, present) == pytest.approx(np.mean(pairs))


def test_calibration_is_perfect_where_shares_are_what_is_said() -> None:
    said_, present = np.repeat([0.2, 0.8], 50), np.zeros(100, bool)
    present[:10], present[50:90] = True, True
    assert calibration_error(said_, present) == pytest.approx(0, abs=1e-9)
    assert calibration_error(1 - said_, present) == pytest.approx(0.6, abs=1e-9)


def test_figures_are_by_name_size_and_how_often_a_name_was_seen() -> None:
    rows = pd.DataFrame(
        [
            ("a", "person", "keyword", True, 0.9, "large", 0.6, 0.5, 0.1),
            ("a", "kite", "keyword", True, 0.4, "small", 0.2, 0.0, 0.0),
            ("a", "the left person", "short", True, 0.5, "large", 0.4, 0.3, 0.1),
            ("a", "dog", "keyword", False, 0.1, None, None, None, None),
        ],
        columns=[
            "image",
            "phrase",
            "phrase_kind",
            "present",
            "presence",
            "size",
            "iou",
            "largest_object",
            "everything",
        ],
    )
    figures = summary(rows, {"person": 100, "kite": 2})
    assert figures["names"] == {"phrases": 2, "miou": 0.4, "largest_object": 0.25, "everything": 0.05}
    assert figures["names_seen_30_times"]["miou"] == figures["person"]["miou"] == 0.6
    assert (figures["names_small"]["miou"], figures["objects"]["miou"]) == (0.2, 0.4)
    assert figures["saying_no"]["auroc"] == 1


def test_what_the_pipeline_scored_falls_into_the_same_groups(mirror: Path, tmp_path: Path) -> None:
    samples = build(mirror, tmp_path)
    meant = [sample for sample in samples if sample.split == "val" and sample.means_something]
    assert any(sample.split == "val" and not sample.means_something for sample in samples)
    columns = ["sample_id", "image", "phrase", "phrase_kind", "size", "iou", "largest_object", "everything"]
    scored = pd.DataFrame(
        [(each.sample_id, each.image, each.phrase, each.phrase_kind, "large", 0.5, 0.2, 0.1) for each in meant],
        columns=columns,
    )
    scored.to_csv(tmp_path / "scores.csv", index=False)
    figures = summary(read_scored(tmp_path / "scores.csv", samples, "val"), {})
    names = sum(sample.phrase_kind == "keyword" for sample in meant)
    assert figures["names"] == {"phrases": names, "miou": 0.5, "largest_object": 0.2, "everything": 0.1}
    assert figures["objects"]["phrases"] == len(meant) - names
    assert "saying_no" not in figures
    scored[1:].to_csv(tmp_path / "scores.csv", index=False)
    with pytest.raises(ValueError, match="got 0 rows of no phrase of val and 1 of its phrases without a row"):
        read_scored(tmp_path / "scores.csv", samples, "val")


def test_weights_are_blended_by_their_mean(mirror: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = build(mirror, tmp_path)
    (tmp_path / "samples").rename(tmp_path / "samples.jsonl")
    write_tokens(tmp_path / "tokens.npy", ClipTokenizer().encode_all([each.phrase for each in samples]))
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    networks = [drawn(micro_phrase(PAPER_RULE), seed) for seed in range(2)]
    for path, network in zip(paths, networks, strict=True):
        save_checkpoint(path, network, Provenance("photo", None, {"val_res": 64}, 1, None), torch.float32)
    out = tmp_path / "mean.safetensors"
    assert main(["blend", str(out), *map(str, paths), "--data", str(tmp_path)]) == 0
    mean = load_checkpoint(out)[0].mask_decoder.norm.weight
    wanted = (networks[0].mask_decoder.norm.weight + networks[1].mask_decoder.norm.weight) / 2
    torch.testing.assert_close(mean, wanted, atol=1e-3, rtol=1e-3)
    save_checkpoint(paths[1], drawn(micro(PAPER_RULE), 0), Provenance("nano", None, {}, 1, None), torch.float32)
    assert main(["blend", str(out), *map(str, paths), "--data", str(tmp_path)]) == 1
    assert "got another architecture" in caplog.text
