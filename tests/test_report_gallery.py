"""Pictures for people: masks drawn over photographs, which are picked, the sheet and the page's gallery."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_samples import HOSTILE, box, noise, png

from promptseg.datasets.preprocess import mask_to_canvas
from promptseg.datasets.records import Picture, Rle, Sample
from promptseg.report.gallery import (
    PICTURES_BYTES,
    SHEET_BYTES,
    Example,
    Shown,
    difference,
    draw_examples,
    gallery_sheet,
    layer,
    make_tiles,
    pick,
)
from promptseg.report.overlay import PREDICTION_RGB, encode_jpeg, hatching, outline, overlay
from promptseg.scoring import score

KINDS = ("keyword", "short", "sentence")


def rows_of(ious, images=None):
    names = [str(index) for index in range(len(ious))]
    images = images or [f"a/{name}" for name in names]
    return pd.DataFrame({"sample_id": names, "image": images, "iou": ious, "phrase": HOSTILE})


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
    rows = rows_of([iou for iou, _ in pairs], [f"a/{image}" for _, image in pairs])
    chosen = pick(rows, each)
    images = [row.image for _, row in chosen]
    assert len(images) == len(set(images)) == min(3 * each, rows["image"].nunique())
    groups = [group for group, _ in chosen]
    assert groups == sorted(groups)  # best, median, worst
    assert all(groups.count(group) <= each for group in groups)
    if pairs:
        assert chosen[0][1].iou == rows["iou"].max()
    assert [row for group, row in pick(rows[::-1], each) if group == "best"] == [
        row for group, row in chosen if group == "best"
    ]


def test_picked_phrases_are_best_middle_and_worst():
    chosen = pick(rows_of([index / 10 for index in range(11)]), 1)
    assert [(group, row.iou) for group, row in chosen] == [("best", 1.0), ("median", 0.5), ("worst", 0.0)]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 700), (1500, 20), (640, 480)])
def test_examples_of_any_size_are_drawn(height, width):
    mask = Rle.from_mask(np.ones((height, width), bool))
    sample = Sample("0", "val", "a/0", height, width, "all", "keyword", mask)
    predictions = {"0": Rle.from_mask(mask_to_canvas(np.ones((height, width), bool)))}
    shown = Shown([sample], predictions, lambda _: png(noise(height, width)))
    (example,) = draw_examples(pick(rows_of([1.0]), 2), shown)
    assert max(example.picture.shape) == 480
    assert example.picture.shape[:2] == example.truth.shape == example.prediction.shape


def test_jpeg_stays_within_the_limit_as_far_as_quality_can():
    image = noise(300, 300)
    assert len(encode_jpeg(image, 60_000)) <= 60_000 < len(encode_jpeg(image, 10**6))
    assert encode_jpeg(image, 60_000) == encode_jpeg(image, 60_000)


@pytest.mark.filterwarnings("error")
def test_gallery_sheet_is_a_small_repeatable_jpeg_whatever_the_phrase():
    ((_, row),) = pick(rows_of([0.5]), 1)
    mask = box(360, 480, 20, 20, 100)
    examples = [Example(group, row, noise(360, 480), mask, ~mask) for _ in range(4) for group in ("best", "worst")]
    sheet = gallery_sheet(examples)
    assert len(sheet) <= SHEET_BYTES
    assert Image.open(io.BytesIO(sheet)).format == "JPEG"
    assert gallery_sheet(examples) == sheet


def test_gallery_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        gallery_sheet([])


def tiles(count=9, each=1):
    truth = box(90, 120, 20, 20, 30)
    samples = [
        Sample(f"{n}-{kind}", "val", f"a/{n}.png", 90, 120, "a cup", kind, Rle.from_mask(truth))
        for n in range(count)
        for kind in KINDS
    ]
    pictures = [Picture(f"a/{n}.png", "val", 90, 120, (Rle.from_mask(truth),)) for n in range(count)]
    predictions = {
        sample.sample_id: Rle.from_mask(mask_to_canvas(box(90, 120, 20, 20 + 4 * (index // 3), 30)))
        for index, sample in enumerate(samples)
    }
    scores = score(samples, pictures, predictions, seed=0)
    return make_tiles(scores.rows, Shown(samples, predictions, lambda _: png(noise())), each)


def test_strokes_say_what_is_painted_where():
    """Each is a mask of its own: none is read back from colours."""
    truth, prediction = box(60, 60, 10, 10, 20), box(60, 60, 10, 20, 20)
    found, missed, extra = (pixels for _, pixels in difference(truth, prediction))
    assert found[15, 25]
    assert missed[15, 12]
    assert extra[15, 35]
    assert (found.astype(int) + missed + extra == (truth | prediction)).all()
    assert all(not (pixels & ~prediction).any() for _, pixels in hatching(prediction))
    assert all(not (pixels & truth).any() for _, pixels in outline(truth))


def test_a_layer_shows_its_strokes_the_last_on_top_and_nothing_else():
    below, above = box(60, 60, 10, 10, 20), box(60, 60, 10, 20, 20)
    content = layer([((1, 2, 3), below), ((4, 5, 6), above)], alpha=190)
    drawn = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    assert (drawn[above] == (4, 5, 6, 190)).all()
    assert (drawn[below & ~above] == (1, 2, 3, 190)).all()
    assert (drawn[~(above | below)][:, 3] == 0).all()


def test_a_picture_under_its_layers_looks_as_the_overlay_does():
    picture, truth, prediction = noise(60, 60), box(60, 60, 5, 5, 20), box(60, 60, 15, 15, 30)
    stack = Image.fromarray(picture).convert("RGBA")
    for strokes in (hatching(prediction), outline(truth)):
        stack.alpha_composite(Image.open(io.BytesIO(layer(strokes))).convert("RGBA"))
    assert np.array_equal(np.asarray(stack.convert("RGB")), overlay(picture, truth, prediction))


def test_each_kind_has_its_best_median_and_worst_and_no_picture_comes_twice():
    made = tiles()
    assert [tile.group for tile in made] == ["best"] * 3 + ["median"] * 3 + ["worst"] * 3
    assert {tile.row.phrase_kind for tile in made if tile.group == "best"} == set(KINDS)
    assert len({tile.row.image for tile in made}) == 9
    assert made[0].row.iou > made[-1].row.iou


def test_layers_have_their_pictures_size():
    tile = tiles()[0]
    sizes = {
        Image.open(io.BytesIO(content)).size for content in (tile.picture, tile.prediction, tile.truth, tile.difference)
    }
    assert sizes == {(480, 360)}


def test_many_pictures_share_the_pages_bytes():
    """Noise is the worst that a JPEG can be asked to hold; base64 takes a third more."""
    made = tiles(count=60, each=12)
    assert len(made) == 54
    assert sum(len(tile.picture) for tile in made) <= PICTURES_BYTES
    layers = sum(len(layer) for tile in made for layer in (tile.prediction, tile.truth, tile.difference))
    assert 4 / 3 * (PICTURES_BYTES + layers) < 4_800_000
