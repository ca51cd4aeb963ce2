import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes_oracle import covers

from promptseg.sources.shapes.geometry import REACH, SHAPES, distance_px
from promptseg.sources.shapes.scene import SceneObject

ROUNDING_PX = 1e-3  # float32 against double: only points this close to an outline may differ


def grid(side: int, step: float):
    axis = (np.arange(side, dtype=np.float32) - np.float32(side / 2 - 0.5)) * np.float32(step)
    return axis[None, :], axis[:, None]


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=8, deadline=None)
@given(radius=st.floats(9, 15), angle=st.floats(-180, 180))
def test_inside_is_where_the_slow_oracle_says(shape, radius, angle):
    x, y = grid(40, 1.0)
    distance = distance_px(shape, x, y, radius, angle)
    item = SceneObject(shape, "red", "small", 0.0, 0.0, radius, angle)
    expected = np.array([[covers(item, float(px), float(py)) for px in x[0]] for py in y[:, 0]])
    clear = np.abs(distance) > ROUNDING_PX
    assert distance.dtype == np.float32
    assert clear.mean() > 0.9
    np.testing.assert_array_equal((distance <= 0)[clear], expected[clear])


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_reaches_beyond_the_reach(shape):
    x, y = grid(400, 0.01)
    outside = np.hypot(x, y) > REACH
    inside = distance_px(shape, x, y, 1.0, 0.0) <= 0
    assert inside.any()
    assert not (inside & outside).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_near_the_outline_is_in_pixels(shape):
    """A step of one pixel changes the distance by one pixel at most, and by nearly one along its gradient."""
    x, y = grid(200, 1.0)
    distance = distance_px(shape, x, y, 70.0, 17.0)
    down, right = np.diff(distance, axis=0), np.diff(distance, axis=1)
    assert max(np.abs(down).max(), np.abs(right).max()) <= 1.001
    assert np.median(np.hypot(down[:, 1:], right[1:])) == pytest.approx(1, abs=0.01)


def test_turning_is_clockwise():
    x, y = np.float32([[0.0]]), np.float32([[-0.9]])  # where a crescent turned by 90 degrees is thickest or bitten
    assert distance_px("crescent", x, y, 1.0, 90.0)[0, 0] < 0 < distance_px("crescent", x, y, 1.0, -90.0)[0, 0]


def test_area_of_a_star_is_that_of_a_pentagram():
    x, y = grid(600, 0.004)
    area = np.count_nonzero(distance_px("star", x, y, 1.0, 0.0) <= 0) * 0.004**2
    inner = (3 - math.sqrt(5)) / 2
    assert area == pytest.approx(5 * inner * math.sin(math.pi / 5), rel=5e-3)
