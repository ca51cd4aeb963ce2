import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_samples import HOSTILE, box, noise, png

from promptseg.datasets.preprocess import mask_to_canvas
from promptseg.datasets.records import Rle, Sample
from promptseg.report.gallery import SHEET_BYTES, Example, draw_examples, gallery_sheet, pick
from promptseg.report.overlay import PREDICTION_RGB, encode_jpeg, overlay
from promptseg.scoring import SampleScore


def row(sample_id, iou, image=None):
    return SampleScore(sample_id, image or f"a/{sample_id}", HOSTILE, "short", "small", 1, 2, iou, iou, 0.1, 0.2, 0.3)


def test_overlay_hatches_the_prediction_and_outlines_the_truth():
    picture = np.full((60, 60, 3), 100, np.uint8)
    truth, prediction = box(60, 60, 5, 5, 20), box(60, 60, 35, 35, 20)
    drawn = overlay(picture, truth, prediction)
    inside = drawn[36:54, 36:54]
    assert (inside == PREDICTION_RGB).all(axis=-1).mean() == pytest.approx(2 / 8, abs=0.03)
    assert (inside == 255).all(axis=-1).mean() == pytest.approx(1 / 8, abs=0.03)
    assert (inside == 100).all(axis=-1).mean() == pytest.approx(5 / 8, abs=0.03)
    assert (drawn[35, 35:55] == PREDICTION_RGB).all()
    assert tuple(drawn[4, 15]) == (255, 255, 255)
    assert tuple(drawn[3, 15]) == (0, 0, 0)
    assert (drawn[5:25, 5:25] == 100).all()


def test_overlay_changes_no_input_and_nothing_where_nothing_is():
    picture = noise()
    nothing = np.zeros((90, 120), bool)
    assert np.array_equal(overlay(picture, nothing, nothing), picture)
    overlay(picture, ~nothing, ~nothing)
    assert np.array_equal(picture, noise())
    assert not nothing.any()


def test_overlay_of_unequal_sizes_is_refused():
    with pytest.raises(ValueError, match="wanted one height and width"):
        overlay(noise(), np.zeros((90, 120), bool), np.zeros((120, 90), bool))


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8)), max_size=15), st.integers(1, 4))
def test_picked_phrases_are_ordered_and_of_distinct_pictures(pairs, each):
    rows = [row(str(index), iou, f"a/{image}") for index, (iou, image) in enumerate(pairs)]
    chosen = pick(rows, each)
    images = [member.image for group in chosen.values() for member in group]
    assert len(images) == len(set(images)) == min(3 * each, len({member.image for member in rows}))
    assert all(len(group) <= each for group in chosen.values())
    if rows:
        assert chosen["best"][0].iou == max(member.iou for member in rows)
    assert pick(rows[::-1], each)["best"] == chosen["best"]


def test_picked_phrases_are_best_middle_and_worst():
    chosen = pick([row(str(index), index / 10) for index in range(11)], 1)
    assert {group: member.iou for group, (member,) in chosen.items()} == {"best": 1.0, "median": 0.5, "worst": 0.0}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 700), (1500, 20), (640, 480)])
def test_examples_of_any_size_are_drawn(height, width):
    mask = Rle.from_mask(np.ones((height, width), bool))
    sample = Sample("s", "val", "a/s", height, width, "all", "keyword", mask)
    predictions = {"s": Rle.from_mask(mask_to_canvas(np.ones((height, width), bool)))}
    (example,) = draw_examples([row("s", 1.0)], [sample], predictions, lambda _: png(noise(height, width)), each=2)
    assert max(example.image.shape) == 480


def test_jpeg_stays_within_the_limit_as_far_as_quality_can():
    image = noise(300, 300)
    assert len(encode_jpeg(image, 60_000)) <= 60_000 < len(encode_jpeg(image, 10**6))
    assert encode_jpeg(image, 60_000) == encode_jpeg(image, 60_000)


@pytest.mark.filterwarnings("error")
def test_gallery_sheet_is_a_small_repeatable_jpeg_whatever_the_phrase():
    examples = [
        Example(group, row(str(index), 0.5), noise(360, 480)) for index in range(4) for group in ("best", "worst")
    ]
    sheet = gallery_sheet(examples)
    assert len(sheet) <= SHEET_BYTES
    assert Image.open(io.BytesIO(sheet)).format == "JPEG"
    assert gallery_sheet(examples) == sheet


def test_gallery_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        gallery_sheet([])
