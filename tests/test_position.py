"""Sine positions against a loop over the formula."""

import math

import pytest
import torch

from promptseg.networks.xdecoder.position import sine_positions


@pytest.mark.parametrize(("height", "width", "dim"), [(1, 1, 4), (3, 5, 16), (4, 2, 8)])
def test_equals_the_formula(height, width, dim):
    expected = []
    for y in range(height):
        for x in range(width):
            row = []
            for place, length in ((y, height), (x, width)):
                share = (place + 1) / (length + 1e-6) * 2 * math.pi
                for channel in range(dim // 2):
                    angle = share / 10_000 ** (2 * (channel // 2) / (dim // 2))
                    row.append(math.cos(angle) if channel % 2 else math.sin(angle))
            expected.append(row)
    got = sine_positions(height, width, dim, torch.zeros(1))
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=0)


def test_takes_the_dtype_of_the_map_but_computes_in_float32():
    half = sine_positions(9, 9, 16, torch.zeros(1, dtype=torch.float16))
    assert half.dtype == torch.float16
    assert torch.equal(half, sine_positions(9, 9, 16, torch.zeros(1)).half())


def test_no_two_places_are_alike():
    assert len(torch.unique(sine_positions(8, 12, 16, torch.zeros(1)), dim=0)) == 96
