"""Mirrored and zoomed views: what they show, what is said of them, and when one is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainings import few_scenes, short_training

from promptseg.datasets.preprocess import CANVAS
from promptseg.training.data import GroundingData
from promptseg.training.views import CANDIDATES, WHOLE, View, draw_views, swap_sides

CONFIG = short_training()


@pytest.fixture(scope="module")
def data() -> GroundingData:
    return GroundingData(**few_scenes(), split="train", sizes=CONFIG.res, cache_bytes=10**8, canvas_rule="crop")


@pytest.mark.parametrize(
    ("phrase", "mirrored"),
    [
        ("the cup on the left", "the cup on the right"),
        ("Left of the rightmost star", "right of the leftmost star"),
        ("the left-hand one, right side", "the right-hand one, left side"),
        ("a bright copyright sign, cleft and upright", "a bright copyright sign, cleft and upright"),
        ("the star above the moon", "the star above the moon"),
        ("rightside up", "leftside up"),
    ],
)
def test_sides_are_swapped_and_other_words_are_not(phrase, mirrored):
    assert swap_sides(phrase) == mirrored


@given(st.text(alphabet="leftrighmos ", max_size=40))
def test_swapping_twice_gives_the_phrase_back(phrase):
    assert swap_sides(swap_sides(phrase)) == phrase


def test_without_changes_there_is_only_the_whole():
    assert draw_views(np.random.default_rng(0), False, (1.0, 1.0)) == (WHOLE,)


@given(st.integers(0, 999), st.floats(0.1, 4), st.floats(0.1, 4))
def test_windows_lie_on_the_canvas_or_around_it_and_the_last_one_shows_all(seed, one, other):
    zoom = (min(one, other), max(one, other))
    views = draw_views(np.random.default_rng(seed), True, zoom)
    assert (views[-1].left, views[-1].top, views[-1].side) == (0, 0, CANVAS)
    assert len({view.mirrored for view in views}) == 1
    for view in views[:-1]:
        assert round(CANVAS / zoom[1]) <= view.side <= round(CANVAS / zoom[0])
        assert view.left >= 0 <= view.top
        assert max(view.left, view.top) + view.side <= max(CANVAS, view.side)


def test_half_of_the_pictures_are_mirrored():
    rng = np.random.default_rng(1)
    assert 60 < sum(draw_views(rng, True, (1.0, 1.0))[0].mirrored for _ in range(200)) < 140


def test_a_window_cuts_and_pads():
    canvas = torch.arange(CANVAS**2).view(CANVAS, CANVAS).float()
    assert torch.equal(View(False, 3, 7, 5).window(canvas), canvas[7:12, 3:8])
    padded = View(False, 0, 0, CANVAS + 6).window(canvas)
    assert torch.equal(padded[:CANVAS, :CANVAS], canvas)
    assert padded[CANVAS:].sum() == padded[:, CANVAS:].sum() == 0


def test_pictures_masks_and_phrases_are_mirrored_together(data):
    view = View(True, 0, 0, CANVAS)
    index = next(i for i, s in enumerate(data.samples) if "left" in s.phrase or "right" in s.phrase)
    sample = data.samples[index]
    picture = data.images.index(sample.image)
    batch = data.batch([picture], [[index]], [[view]], 64)
    plain = data.batch([picture], [[index]], [[WHOLE]], 64)
    width = round(64 * sample.width / max(sample.width, sample.height))
    shown, expected = batch.pictures[0, :, :, :width], plain.pictures[0, :, :, :width].flip(-1)
    assert (shown - expected).abs().mean() < 8  # resizing has no middle at odd widths
    cells = batch.targets.view(16, 16)
    columns = torch.arange(16) + 0.5
    centre = (cells.sum(0) * columns).sum() / cells.sum()
    before = (plain.targets.view(16, 16).sum(0) * columns).sum() / plain.targets.sum()
    assert float(centre + before) == pytest.approx(width / 4, abs=0.3)
    assert batch.token_ids.tolist() != plain.token_ids.tolist()


def test_zooming_in_enlarges_the_target(data):
    mask = data.samples[0].mask
    whole = data.target(0, 64).sum()
    rows, columns = np.nonzero(np.asarray(data._mask(0, WHOLE)))
    side = 512
    view = View(
        False,
        int(np.clip(columns.mean() - side / 2, 0, CANVAS - side)),
        int(np.clip(rows.mean() - side / 2, 0, CANVAS - side)),
        side,
    )
    assert mask.area
    assert data.target(0, 64, view).sum() > 2 * whole
    assert data.picture(0, 64, view).shape == (3, 64, 64)


def test_a_view_that_hides_a_mask_is_passed_over(data):
    rows, columns = np.nonzero(np.asarray(data._mask(0, WHOLE)))
    far = CANVAS - 64 if columns.mean() < CANVAS / 2 else 0
    hiding = View(False, far, CANVAS - 64 if rows.mean() < CANVAS / 2 else 0, 64)
    picture = data.images.index(data.samples[0].image)
    chosen = data.batch([picture], [[0]], [[hiding, WHOLE]], 64)
    assert torch.equal(chosen.targets, data.batch([picture], [[0]], [[WHOLE]], 64).targets)


def test_what_is_zoomed_is_not_kept_in_memory(data):
    held = len(data._memory)
    data.picture(1, 64, View(False, 0, 0, 700))
    assert len(data._memory) == held
    assert CANDIDATES > 1
