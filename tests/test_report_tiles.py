"""The page's gallery: layers that lie over their picture."""

import io

import numpy as np
from PIL import Image
from report_samples import box, noise, png

from promptseg.datasets.preprocess import mask_to_canvas
from promptseg.datasets.records import Picture, Rle, Sample
from promptseg.report.overlay import PREDICTION_RGB
from promptseg.report.tiles import EXTRA_RGB, HIT_RGB, MISSED_RGB, PICTURES_BYTES, difference_layer, make_tiles
from promptseg.scoring import score

KINDS = ("keyword", "short", "sentence")


def rgba(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


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
    return make_tiles(scores.rows, samples, predictions, lambda _: png(noise()), each)


def test_the_difference_tells_found_missed_and_too_much_apart():
    truth, prediction = box(60, 60, 10, 10, 20), box(60, 60, 10, 20, 20)
    drawn = rgba(difference_layer(truth, prediction))
    assert tuple(drawn[15, 25, :3]) == HIT_RGB
    assert tuple(drawn[15, 12, :3]) == MISSED_RGB
    assert tuple(drawn[15, 35, :3]) == EXTRA_RGB
    assert (drawn[..., 3] > 0).sum() == (truth | prediction).sum()
    assert drawn[5, 5, 3] == 0


def test_each_kind_has_its_best_median_and_worst_and_no_picture_comes_twice():
    made = tiles()
    assert [tile.group for tile in made] == ["best"] * 3 + ["median"] * 3 + ["worst"] * 3
    assert {tile.row.phrase_kind for tile in made if tile.group == "best"} == set(KINDS)
    assert len({tile.row.image for tile in made}) == 9
    assert made[0].row.iou > made[-1].row.iou


def test_layers_have_their_pictures_size_and_show_it_between_their_lines():
    tile = tiles()[0]
    size = Image.open(io.BytesIO(tile.picture)).size
    prediction, truth = rgba(tile.prediction), rgba(tile.truth)
    for layer in (prediction, truth, rgba(tile.difference)):
        assert layer.shape[1::-1] == size
    striped = (prediction[..., :3] == PREDICTION_RGB).all(axis=2) & (prediction[..., 3] == 255)
    assert 0.1 < striped.mean() / (rgba(tile.difference)[..., 3] > 0).mean() < 0.9
    assert not ((prediction[..., 3] > 0) & ~(rgba(tile.difference)[..., 3] > 0)).any()
    assert (truth[..., 3] > 0).any()


def test_many_pictures_share_the_pages_bytes():
    """Noise is the worst that a JPEG can be asked to hold; base64 takes a third more."""
    made = tiles(count=60, each=12)
    assert len(made) == 54
    assert sum(len(tile.picture) for tile in made) <= PICTURES_BYTES
    layers = sum(len(layer) for tile in made for layer in (tile.prediction, tile.truth, tile.difference))
    assert 4 / 3 * (PICTURES_BYTES + layers) < 4_800_000
