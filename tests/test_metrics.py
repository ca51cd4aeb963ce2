import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from promptseg.metrics import (
    EPSILON,
    BaselineIous,
    Overlap,
    baseline_ious,
    bootstrap_interval,
    cumulative_iou,
    mean_iou,
    overlap,
    precision_at,
    size_class,
)

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def mask_lists(draw, count):
    shape = draw(SHAPES)
    return [draw(arrays.arrays(bool, shape)) for _ in range(count)]


def slow_iou(prediction, truth):
    inside = {(y, x) for y in range(truth.shape[0]) for x in range(truth.shape[1]) if truth[y, x]}
    said = {(y, x) for y in range(truth.shape[0]) for x in range(truth.shape[1]) if prediction[y, x]}
    return len(inside & said) / (len(inside | said) + EPSILON)


@given(mask_lists(2))
def test_iou_equals_the_slow_oracle_and_is_symmetric(masks):
    prediction, truth = masks
    assert overlap(prediction, truth).iou == slow_iou(prediction, truth)
    assert overlap(prediction, truth) == overlap(truth, prediction)


@given(mask_lists(2))
def test_memory_order_does_not_matter(masks):
    prediction, truth = masks
    assert overlap(np.asfortranarray(prediction), truth) == overlap(prediction, truth)


@given(mask_lists(6))
def test_baselines_equal_the_slow_oracle(masks):
    truth, *objects = masks
    areas = [sum(map(int, each.ravel())) for each in objects]
    largest = objects[areas.index(max(areas))]
    found = baseline_ious(truth, objects)
    assert found.everything == slow_iou(np.ones(truth.shape, bool), truth)
    assert found.largest_object == slow_iou(largest, truth)
    assert math.isclose(found.random_object, sum(slow_iou(each, truth) for each in objects) / 5, abs_tol=1e-12)


def test_iou_of_known_masks():
    truth = np.zeros((4, 4), bool)
    truth[:2] = True
    prediction = np.zeros((4, 4), bool)
    prediction[1:3] = True
    assert overlap(prediction, truth) == Overlap(4, 12)
    assert overlap(truth, truth).iou == pytest.approx(1, abs=1e-6)
    assert overlap(truth, ~truth).iou == 0


def test_two_empty_masks_score_zero_as_the_formula_says():
    empty = np.zeros((3, 3), bool)
    assert overlap(empty, empty).iou == 0


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.zeros((4, 4), np.float32), "threshold it first"),
        (np.zeros((1, 4, 4), bool), r"wanted bool \[h, w\]"),
        (np.zeros((4, 5), bool), "equal shapes"),
    ],
)
def test_overlap_refuses_what_is_no_mask(prediction, message):
    with pytest.raises(ValueError, match=message):
        overlap(prediction, np.zeros((4, 4), bool))


def test_mean_weighs_phrases_alike_and_cumulative_weighs_pixels():
    large, small = Overlap(900, 1000), Overlap(0, 10)
    assert mean_iou([large.iou, small.iou]) == pytest.approx(0.45)
    assert cumulative_iou([large, small]) == pytest.approx(900 / 1010)


def test_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no IoU"):
        mean_iou([])


def test_precision_counts_the_threshold_itself():
    assert precision_at([0.2, 0.5, 0.7, 0.9], 0.5) == 0.75


@pytest.mark.parametrize(
    ("area", "expected"),
    [(1, "small"), (1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large"), (10**8, "large")],
)
def test_size_classes_are_cocos(area, expected):
    assert size_class(area) == expected


def test_baselines_never_see_which_object_is_meant():
    left, right = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :3], right[:, 3] = True, True
    found = baseline_ious(right, [left, right])
    assert found == BaselineIous(overlap(right | left, right).iou, 0.0, overlap(right, right).iou / 2)


def test_baselines_without_objects_are_refused():
    with pytest.raises(ValueError, match="without objects"):
        baseline_ious(np.ones((2, 2), bool), [])


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcd")), min_size=1, max_size=20), st.integers(0, 5))
def test_interval_is_ordered_within_range_and_repeatable(pairs, seed):
    values, groups = [value for value, _ in pairs], [group for _, group in pairs]
    low, high = bootstrap_interval(values, groups, seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert bootstrap_interval(values, groups, seed) == (low, high)


def test_interval_of_independent_phrases_is_the_normal_one():
    values = np.random.default_rng(0).uniform(size=400)
    low, high = bootstrap_interval(values.tolist(), [str(index) for index in range(400)], seed=1)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_is_wider_when_phrases_share_pictures():
    values = np.repeat(np.random.default_rng(0).uniform(size=50), 8).tolist()
    together = bootstrap_interval(values, [str(index // 8) for index in range(400)], seed=1)
    apart = bootstrap_interval(values, [str(index) for index in range(400)], seed=1)
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_interval_of_one_picture_is_its_mean():
    assert bootstrap_interval([0.2, 0.4], ["a", "a"], seed=0) == pytest.approx((0.3, 0.3))


def test_interval_wants_a_group_for_each_value():
    with pytest.raises(ValueError, match="one group for each"):
        bootstrap_interval([0.5], [], seed=0)
