import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from promptseg.datasets.preprocess import CANVAS, mask_from_canvas, mask_to_canvas
from promptseg.datasets.records import Picture, Rle, Sample
from promptseg.files import write_table
from promptseg.metrics import overlap
from promptseg.scoring import RECORDED, check_records, score, tradeoff_table, with_fidelity

HEIGHT, WIDTH = 300, 400


def box(top, left, height, width):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


SMALL, MEDIUM, LARGE = box(5, 5, 20, 20), box(100, 50, 60, 60), box(90, 200, 150, 180)


def world():
    """Three pictures; in each a small, a medium and a large object, and one phrase for each."""
    samples, pictures = [], []
    for index in range(3):
        image = f"val.zip/{index}.jpg"
        pictures.append(
            Picture(image, "val", HEIGHT, WIDTH, tuple(Rle.from_mask(each) for each in (SMALL, MEDIUM, LARGE)))
        )
        for kind, mask in (("keyword", SMALL), ("short", MEDIUM), ("sentence", LARGE)):
            sample_id = f"{index}-{kind}"
            samples.append(Sample(sample_id, "val", image, HEIGHT, WIDTH, f"a {kind}", kind, Rle.from_mask(mask)))
    return samples, pictures


def predict(masks):
    return {sample_id: Rle.from_mask(mask_to_canvas(mask)) for sample_id, mask in masks.items()}


def perfect(samples):
    return predict({sample.sample_id: sample.mask.to_mask() for sample in samples})


def test_perfect_predictions_score_near_one_both_ways():
    samples, pictures = world()
    summary = score(samples, pictures, perfect(samples), seed=0).summary
    assert summary["miou_canvas"] == pytest.approx(1, abs=1e-5)
    assert summary["miou"] > 0.99  # the canvas is larger than the picture: nothing but edges can be lost
    assert summary["p_at_90"] == 1
    assert summary["phrases"] == 9
    assert summary["pictures"] == 3
    assert summary["phrases_without_prediction"] == 0


def test_figures_equal_a_slow_sum():
    samples, pictures = world()
    rng = np.random.default_rng(0)
    predictions = {each.sample_id: Rle.from_mask(rng.random((CANVAS, CANVAS)) > 0.7) for each in samples}
    scores = score(samples, pictures, predictions, seed=0)
    pairs = [(mask_from_canvas(predictions[s.sample_id].to_mask(), HEIGHT, WIDTH), s.mask.to_mask()) for s in samples]
    ious = [(a & b).sum() / (a | b).sum() for a, b in pairs]
    assert scores.summary["miou"] == pytest.approx(np.mean(ious), abs=1e-5)
    assert scores.summary["miou_small"] == pytest.approx(np.mean(ious[::3]), abs=1e-5)
    assert scores.summary["miou_sentence"] == pytest.approx(np.mean(ious[2::3]), abs=1e-5)
    cumulative = sum((a & b).sum() for a, b in pairs) / sum((a | b).sum() for a, b in pairs)
    assert scores.summary["ciou"] == pytest.approx(cumulative, abs=1e-5)
    canvas = [overlap(predictions[s.sample_id].to_mask(), mask_to_canvas(s.mask.to_mask())).iou for s in samples]
    assert scores.summary["miou_canvas"] == pytest.approx(np.mean(canvas), abs=1e-5)


def test_padding_counts_on_the_canvas_only():
    samples, pictures = world()
    spills = mask_to_canvas(LARGE)
    spills[800:] = True  # below the picture
    summary = score(samples, pictures, {"0-sentence": Rle.from_mask(spills)}, seed=0).summary
    assert summary["miou"] > 0.99
    assert summary["miou_canvas"] < 0.6


def test_baselines_are_those_of_the_original_picture():
    samples, pictures = world()
    summary = score(samples, pictures, perfect(samples), seed=0).summary
    assert summary["baseline_everything"] == pytest.approx((400 + 3600 + 27000) / (HEIGHT * WIDTH) / 3, abs=1e-5)
    assert summary["baseline_largest_object"] == pytest.approx(1 / 3, abs=1e-5)
    assert summary["baseline_random_object"] == pytest.approx(1 / 3, abs=1e-5)
    assert summary["miou_over_best_baseline"] == pytest.approx(3 * summary["miou"], abs=1e-3)


def test_predictions_define_the_set():
    samples, pictures = world()
    scores = score(samples, pictures, predict({"1-sentence": LARGE, "0-sentence": SMALL}), seed=0)
    assert list(scores.rows["sample_id"]) == ["0-sentence", "1-sentence"]
    assert scores.summary["phrases_without_prediction"] == 7
    assert scores.summary["miou"] == pytest.approx(0.5, abs=0.01)
    assert scores.summary["miou_keyword"] is None
    assert scores.summary["phrases_keyword"] == 0


def test_samples_of_other_splits_are_not_missed():
    samples, pictures = world()
    train = dataclasses.replace(samples[0], sample_id="t", split="train")
    assert score([*samples, train], pictures, perfect(samples), seed=0).summary["phrases_without_prediction"] == 0


def test_groups_partition_the_phrases():
    samples, pictures = world()
    groups = score(samples, pictures, perfect(samples), seed=0).groups
    assert list(groups.index) == ["all", "small", "medium", "large", "keyword", "short", "sentence"]
    assert groups.loc[["small", "medium", "large"], "phrases"].sum() == groups.at["all", "phrases"] == 9
    assert groups.at["large", "largest_object"] == pytest.approx(1, abs=1e-5)
    assert groups.at["small", "largest_object"] == 0


def test_order_of_samples_changes_nothing_but_the_order_of_rows():
    samples, pictures = world()
    predictions = predict({sample.sample_id: MEDIUM for sample in samples})
    forward, backward = (score(each, pictures, predictions, seed=3) for each in (samples, samples[::-1]))
    assert forward.summary == backward.summary
    assert forward.rows.equals(backward.rows[::-1].reset_index(drop=True))


def test_the_summary_is_flat_json_with_the_headline_first():
    samples, pictures = world()
    summary = score(samples, pictures, perfect(samples), seed=0).summary
    assert next(iter(summary)) == "miou"
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert all(value is None or round(value, 5) == value for value in summary.values())
    assert summary["miou_ci_low"] <= summary["miou"] <= summary["miou_ci_high"]


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({}, "got no predictions"),
        ({"0-short": None, "ghost": None}, "1 predictions of samples that do not exist, 'ghost'"),
    ],
)
def test_predictions_that_cannot_be_joined_are_refused(predictions, message):
    samples, pictures = world()
    with pytest.raises(ValueError, match=message):
        score(samples, pictures, predictions, seed=0)


def test_a_sample_of_an_unknown_picture_is_refused():
    samples, pictures = world()
    with pytest.raises(ValueError, match=r"'val.zip/2.jpg', which the objects file does not list"):
        score(samples, pictures[:2], perfect(samples), seed=0)


def test_samples_with_equal_ids_are_refused():
    samples, pictures = world()
    with pytest.raises(ValueError, match="10 samples with 9 ids"):
        score([*samples, samples[0]], pictures, perfect(samples), seed=0)


def test_an_empty_truth_is_refused():
    samples, pictures = world()
    empty = dataclasses.replace(samples[0], mask=Rle.from_mask(np.zeros((HEIGHT, WIDTH), bool)))
    with pytest.raises(ValueError, match="0-keyword: got an empty mask as truth"):
        score([empty], pictures, perfect([empty]), seed=0)


def test_rows_become_a_table(tmp_path):
    samples, pictures = world()
    samples[0] = dataclasses.replace(samples[0], phrase='the "red", one\nnext to 狗')
    scores = score(samples, pictures, perfect(samples), seed=0)
    write_table(tmp_path / "rows.csv", scores.rows)
    table = pd.read_csv(tmp_path / "rows.csv")
    assert list(table["sample_id"]) == [sample.sample_id for sample in samples]
    assert table["phrase"][0] == samples[0].phrase
    assert list(table["iou"]) == [round(iou, 5) for iou in scores.rows["iou"]]


def test_a_table_rounds_as_people_do_and_leaves_cells_without_a_value_empty(tmp_path):
    """0.285655 is a little less than it says, and so is rounded down: numpy would round it up."""
    table = pd.DataFrame({"name": ["a", "b"], "value": [0.285655, None], "count": [3, 17]})
    write_table(tmp_path / "a.csv", table)
    assert (tmp_path / "a.csv").read_bytes() == f"name,value,count\na,{round(0.285655, 5)},3\nb,,17\n".encode()


def summary_of_one():
    samples, pictures = world()
    return score(samples, pictures, perfect(samples[:3]), seed=0).summary


@pytest.mark.parametrize(
    ("latency", "cells"),
    [
        ({"latency_ms_estimated": 12.5, "latency_ms_device": None}, ["12.5", "estimated"]),
        ({"latency_ms_estimated": None, "latency_ms_device": 9.75}, ["9.75", "device"]),
        ({"latency_ms_estimated": 12.5, "latency_ms_device": 9.75}, ["9.75", "device"]),
        ({}, ["80.25", "cpu"]),
    ],
)
def test_the_tradeoff_point_joins_score_and_latency_and_names_which(latency, cells, tmp_path):
    summary = summary_of_one()
    fidelity = {"binary": {"iou_mean": 0.99}}
    table = tradeoff_table(512, summary, {**latency, "host": {"latency_ms_cpu": 80.25}}, fidelity)
    write_table(tmp_path / "a.csv", table)
    header, line = (tmp_path / "a.csv").read_text().splitlines()
    assert header == "res,latency_ms,latency_source,latency_ms_cpu,miou,miou_small,miou_medium,miou_large"
    assert line.split(",")[:5] == ["512", *cells, "80.25", str(summary["miou"])]


@pytest.mark.parametrize("latency", [{}, {"host": None, "latency_ms_estimated": None}, {"host": {}}])
def test_latency_that_was_not_measured_is_an_empty_cell(latency, tmp_path):
    write_table(tmp_path / "a.csv", tradeoff_table(512, summary_of_one(), latency, {}))
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith("512,,,,1.0,")


@pytest.mark.parametrize("fidelity", [{}, {"binary": None}, {"binary": {"iou_mean": None}}])
def test_a_latency_whose_masks_nobody_compared_is_a_kind_of_its_own(fidelity):
    """`dvc plots` draws a panel for each kind."""
    for latency, source in (({"latency_ms_estimated": 1.0}, "estimated"), ({"latency_ms_device": 1.0}, "device")):
        table = tradeoff_table(512, summary_of_one(), latency, fidelity)
        assert table["latency_source"][0] == f"{source}, masks not compared"
    assert (
        tradeoff_table(512, summary_of_one(), {"host": {"latency_ms_cpu": 1.0}}, fidelity)["latency_source"][0] == "cpu"
    )


FILED_UNDER = {"model": "nano", "res": 320, "device": "X", "precision": "fp16", "graph_sha256": "a"}
FILED_UNDER |= {"predictions_sha256": "b"}


@pytest.mark.parametrize("artefact", RECORDED)
def test_records_are_held_to_what_they_are_filed_under(artefact):
    records = {each: {**FILED_UNDER, "more": 1} for each in RECORDED}
    check_records(FILED_UNDER, records)
    for name in RECORDED[artefact]:
        for wrong in ({name: 152}, {name: None}):
            with pytest.raises(ValueError, match=f"^{artefact}: got {name} {wrong[name]}, wanted .*; run `dvc repro`$"):
                check_records(FILED_UNDER, {**records, artefact: {**FILED_UNDER, **wrong}})


def test_every_record_that_differs_is_named_at_once():
    records = {each: {"res": 152} for each in RECORDED}
    with pytest.raises(ValueError, match="run `dvc repro`") as caught:
        check_records(FILED_UNDER, records)
    assert str(caught.value).count("got res 152, wanted 320") == 4
    assert "fidelity: got graph_sha256 None, wanted 'a'" in str(caught.value)


def test_a_score_heads_with_what_made_the_masks_and_how_far_the_binarys_are():
    summary = score(*(world()), perfect(world()[0]), seed=0).summary
    binary = {"samples": 8, "iou_mean": 0.995, "iou_worst": 0.94, "miou_change": -0.001}
    binary |= {"miou_change_low": -0.002, "miou_change_high": 0.0}
    fidelity = {"binary": binary, "scored_by": "x", "precision": "fp16"}
    content = with_fidelity(summary, fidelity)
    assert list(content)[:7] == [
        "miou", "miou_ci_low", "miou_ci_high", "scored_by", "precision", "binary_samples", "binary_iou_mean"
    ]  # fmt: skip
    assert (content["binary_iou_worst"], content["binary_miou_change_low"]) == (0.94, -0.002)
    assert (content["scored_by"], content["precision"]) == ("x", "fp16")
    assert summary.items() <= content.items()
    assert with_fidelity(summary, {"binary": None, "scored_by": "x", "precision": "fp32"})["binary_iou_mean"] is None
