"""What a step sees and how fast it learns."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainings import short_training

from promptseg.training.sampling import draw, lr_factor

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
