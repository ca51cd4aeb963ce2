"""What a step sees and how fast it learns: draws, rates, mirrored and zoomed views."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainings import few_scenes, short_training

from promptseg.datasets.preprocess import CANVAS
from promptseg.training.data import GroundingData
from promptseg.training.sampling import CANDIDATES, WHOLE, View, draw, draw_views, lr_factor, swap_sides

samples_lists = st.lists(st.integers(1, 5), min_size=1, max_size=9)


def _samples_of(counts: list[int]) -> list[list[int]]:
    """Pictures with so many samples each, numbered through."""
    return [list(range(sum(counts[:i]), sum(counts[: i + 1]))) for i in range(len(counts))]


@given(samples_lists, st.integers(1, 5), st.integers(0, 1000))
def test_every_picture_comes_once_an_epoch(counts, per_step, seed):
    config, samples_of = short_training(batch_size=per_step, seed=seed), _samples_of(counts)
    steps = 3 * len(counts)
    seen = [picture for step in range(steps) for picture in draw(config, step, samples_of).pictures]
    assert len(seen) == steps * per_step
    for start in range(0, len(seen), len(counts)):
        assert sorted(seen[start : start + len(counts)]) == list(range(len(counts)))


def test_epochs_have_orders_of_their_own():
    config, samples_of = short_training(batch_size=20), _samples_of([1] * 20)
    assert len({tuple(draw(config, step, samples_of).pictures) for step in range(5)}) == 5


@given(samples_lists, st.integers(1, 6), st.integers(0, 50))
def test_samples_are_the_pictures_own_and_repeat_only_where_they_must(counts, phrases, step):
    config, samples_of = short_training(phrases_per_picture=phrases), _samples_of(counts)
    drawn = draw(config, step, samples_of)
    assert drawn.res in config.res
    for picture, chosen in zip(drawn.pictures, drawn.samples, strict=True):
        assert len(chosen) == phrases
        assert set(chosen) <= set(samples_of[picture])
        if len(samples_of[picture]) >= phrases:
            assert len(set(chosen)) == phrases


def test_a_step_depends_on_nothing_before_it():
    config, samples_of = short_training(), _samples_of([2, 3, 4, 5])
    forwards = [draw(config, step, samples_of) for step in range(10)]
    backwards = [draw(config, step, samples_of) for step in reversed(range(10))]
    assert forwards == backwards[::-1]
    assert draw(short_training(steps=99, learning_rate=1.0), 7, samples_of) == forwards[7]


def test_seeds_differ():
    samples_of = _samples_of([5] * 9)
    one, two = ([draw(short_training(seed=seed), step, samples_of) for step in range(5)] for seed in (1, 2))
    assert one != two
    assert [each.pictures for each in one] != [each.pictures for each in two]


def test_every_size_and_every_phrase_gets_its_turn():
    config, samples_of = short_training(res=(64, 96, 128)), _samples_of([5, 5])
    drawn = [draw(config, step, samples_of) for step in range(60)]
    assert {each.res for each in drawn} == {64, 96, 128}
    assert {sample for each in drawn for chosen in each.samples for sample in chosen} == set(range(10))


def test_learning_rate_warms_up_and_decays():
    config = short_training(steps=12, warmup_steps=4)
    rates = [lr_factor(config, step) for step in range(12)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.5)
    assert rates[10] == pytest.approx((1 + math.cos(math.pi * 6 / 8)) / 2)
    assert all(one > other for one, other in pairwise(rates[4:]))
    assert lr_factor(config, 12) == pytest.approx(0)


@given(st.integers(1, 50), st.integers(0, 60))
def test_learning_rate_is_positive_and_never_above_the_wanted(steps, warmup):
    config = short_training(steps=steps, warmup_steps=warmup)
    assert all(0 < lr_factor(config, step) <= 1 for step in range(steps))


def test_without_warm_up_the_first_step_is_the_fastest():
    assert lr_factor(short_training(warmup_steps=0), 0) == 1


def test_rates_fall_to_a_tenth_at_each_drop():
    config = short_training(steps=10, warmup_steps=0, lr_milestones=(0.5, 0.8))
    assert [lr_factor(config, step) for step in range(10)] == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)


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
