import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptseg.hubs.contract import IMAGE_INPUT, TEXT_INPUT, TensorSpec, mask_of


def test_borders_are_the_challenges():
    assert TensorSpec("image_input", "float32", (1, 3, 1024, 1024)) == IMAGE_INPUT
    assert TensorSpec("text_input", "int32", (2, 1, 77)) == TEXT_INPUT


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((2, 1, 77), np.int64), "int64 [2, 1, 77]"),
        (np.zeros((1, 2, 77), np.int32), "int32 [1, 2, 77]"),
    ],
)
def test_check_names_owner_got_and_wanted(array, got):
    with pytest.raises(ValueError, match="sample 7") as caught:
        TEXT_INPUT.check(array, "sample 7")
    assert got in str(caught.value)
    assert "int32 [2, 1, 77]" in str(caught.value)


@given(st.lists(st.integers(1, 4), max_size=4), st.sampled_from(["float32", "int32", "bool"]))
def test_check_takes_exactly_its_own_arrays(shape, dtype):
    spec = TensorSpec("tensor", dtype, tuple(shape))
    spec.check(np.zeros(shape, dtype), "owner")
    with pytest.raises(ValueError, match="owner"):
        spec.check(np.zeros([*shape, 1], dtype), "owner")


def test_a_half_and_a_nan_are_outside():
    decided = mask_of(np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), np.nan, 1.0], np.float32))
    assert decided.tolist() == [False, True, False, True]
