"""COCO's masks against slow and obvious drawings, and malformed ones, which crash pycocotools."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from promptseg.datasets.records import Rle
from promptseg.sources.coco import decompress_counts, segmentation_to_rle

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def run_lengths(mask: np.ndarray) -> list[int]:
    """Count by walking down the columns, pixels outside first."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def rectangle(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


@given(masks)
def test_run_lengths_compressed_or_not(mask: np.ndarray) -> None:
    counts = run_lengths(mask)
    compressed = Rle.from_mask(mask).counts
    assert decompress_counts(compressed) == counts
    for written in (counts, compressed, compressed.encode()):
        rle = segmentation_to_rle({"size": list(mask.shape), "counts": written}, *mask.shape)
        assert (rle.to_mask() == mask).all()
        assert rle == Rle.from_mask(mask)


def test_a_rectangle_covers_its_pixels() -> None:
    expected = np.zeros((20, 30), bool)
    expected[5:15, 10:20] = True
    assert (segmentation_to_rle([rectangle(10, 5, 20, 15)], 20, 30).to_mask() == expected).all()


def test_overlapping_polygons_are_united() -> None:
    first, second = rectangle(2, 2, 12, 12), rectangle(8, 8, 18, 18)
    both = segmentation_to_rle([first, second], 20, 20).to_mask()
    assert both[10, 10]
    assert (
        both == segmentation_to_rle([first], 20, 20).to_mask() | segmentation_to_rle([second], 20, 20).to_mask()
    ).all()


def test_a_polygon_across_the_border_is_clipped() -> None:
    assert segmentation_to_rle([rectangle(-10, -10, 30, 30)], 20, 20).area == 400


@pytest.mark.parametrize("segmentation", [[], [[]], [[3, 3, 9, 9]], {"size": [20, 30], "counts": [600]}])
def test_nothing_inside_is_an_empty_mask(segmentation: Any) -> None:
    mask = segmentation_to_rle(segmentation, 20, 30).to_mask()
    assert mask.shape == (20, 30)
    assert not mask.any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "wanted polygons, or run lengths"),
        ({"size": [20, 30]}, "with 'counts'"),
        ({"size": [30, 20], "counts": [600]}, r"got run lengths of the size \[30, 20\], wanted \[20, 30\]"),
        ({"size": [20, 30], "counts": [1, 2]}, "add up to 20x30"),
        ({"size": [20, 30], "counts": [-1, 601]}, "add up to 20x30"),
        ({"size": [20, 30], "counts": [599.5, 0.5]}, "whole numbers"),
        ({"size": [20, 30], "counts": "0"}, "add up to 20x30"),
        ({"size": [20, 30], "counts": "P"}, "end inside a number"),
        ({"size": [20, 30], "counts": "zzz"}, "got the character 'z'"),
        ([[1, 2, 3]], "wanted \\[x, y, x, y"),
        ([[0, 0, 5, 5, float("nan"), 5]], "wanted \\[x, y, x, y"),
        ([[0, 0, 5, 5, 1e9, 5]], "none beyond 60 px"),
        ([1, 2, 3, 4], "wanted \\[x, y, x, y"),
    ],
)
def test_malformed_segmentations_are_refused(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmentation_to_rle(segmentation, 20, 30)


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12))
def test_any_compressed_string_is_a_mask_or_refused(counts: str) -> None:
    try:
        rle = segmentation_to_rle({"size": [9, 7], "counts": counts}, 9, 7)
    except ValueError:
        return
    assert rle.to_mask().sum() == rle.area
