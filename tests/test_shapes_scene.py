import numpy as np
import pytest
from shapes_oracle import covers

from promptseg.sources.shapes.geometry import SHAPES
from promptseg.sources.shapes.scene import (
    COLOURS,
    PICTURE_SIZES,
    RADII,
    SMALLEST_VISIBLE_SHARE,
    Layout,
    SceneObject,
    make_masks,
    sample_count,
    sample_layout,
)


def layouts(count: int, seed: int = 0) -> list[Layout]:
    rng = np.random.default_rng(seed)
    drawn = (sample_layout(rng, sample_count(rng, 2, 6)) for _ in range(count))
    return [layout for layout in drawn if layout]


def crowded() -> Layout:
    rng = np.random.default_rng(4)
    shapes = rng.permutation(SHAPES)
    places = [(18, 20), (30, 26), (52, 20), (60, 30), (40, 52), (20, 62), (30, 72), (58, 62), (66, 74)]
    radii = rng.uniform(8, 12, 9)
    angles = rng.uniform(-180, 180, 9)
    return Layout(
        90,
        80,
        tuple(
            SceneObject(str(shape), "red", "small", float(x), float(y), float(radius), float(angle))
            for shape, (x, y), radius, angle in zip(shapes, places, radii, angles, strict=True)
        ),
    )


def test_a_pixel_belongs_to_the_topmost_object_that_covers_its_centre():
    layout = crowded()
    masks = make_masks(layout)
    assert masks is not None
    assert masks.hidden.sum() > 100  # or nothing is overlapping, and this test is empty
    expected = np.zeros_like(masks.visible)
    for row in range(layout.height):
        for column in range(layout.width):
            for index in reversed(range(len(layout.objects))):
                if covers(layout.objects[index], column + 0.5, row + 0.5):
                    expected[index, row, column] = True
                    break
    assert np.count_nonzero(expected != masks.visible) == 0


def test_hidden_counts_pixels_of_the_lower_object_under_the_upper_one():
    below = SceneObject("square", "red", "small", 20.0, 20.0, 10 / 0.82, 0.0)  # 20 x 20 pixels
    above = SceneObject("square", "blue", "small", 36.0, 20.0, 10 / 0.82, 0.0)
    masks = make_masks(Layout(40, 60, (below, above)))
    assert masks is not None
    assert masks.hidden.tolist() == [[0, 4 * 20], [0, 0]]
    assert masks.visible.sum(axis=(1, 2)).tolist() == [400 - 80, 400]


@pytest.mark.parametrize("x", [20.0, 2.0])
def test_a_layout_that_hides_too_much_is_refused(x):
    """Under another object, or beyond the picture's border."""
    cover = SceneObject("circle", "blue", "small", 30.0, 25.0, 10.0, 0.0)
    assert make_masks(Layout(50, 60, (SceneObject("circle", "red", "small", x, 25.0, 10.0, 0.0), cover))) is None


def test_masks_are_disjoint_and_mostly_visible():
    for layout in layouts(40):
        masks = make_masks(layout)
        if masks is None:
            continue
        assert masks.visible.sum(axis=0).max() == 1
        areas = masks.visible.sum(axis=(1, 2))
        assert (masks.hidden.sum(axis=1) <= areas / SMALLEST_VISIBLE_SHARE * (1 - SMALLEST_VISIBLE_SHARE) + 1).all()


def test_layouts_have_photo_like_sizes_and_every_look():
    drawn = layouts(300)
    objects = [item for layout in drawn for item in layout.objects]
    sizes = {(layout.height, layout.width) for layout in drawn}
    assert sizes == set(PICTURE_SIZES)
    assert {np.sign(width - height) for height, width in sizes} == {-1, 0, 1}
    assert {item.shape for item in objects} == set(SHAPES)
    assert {item.colour for item in objects} == set(COLOURS)
    assert {item.size for item in objects} == set(RADII)
    assert {len(layout.objects) for layout in drawn} == {2, 3, 4, 5, 6}


def test_radii_are_relative_to_the_longest_edge_and_small_is_small():
    for layout in layouts(60):
        for item in layout.objects:
            low, high = RADII[item.size]
            assert low <= item.radius / max(layout.height, layout.width) <= high
    assert RADII["small"][1] <= 0.05


def test_no_two_objects_look_the_same():
    for layout in layouts(100):
        looks = [(item.shape, item.colour, item.size) for item in layout.objects]
        assert len(set(looks)) == len(looks)


def test_objects_of_one_colour_never_overlap():
    for layout in layouts(150):
        masks = make_masks(layout)
        for below, above in zip(*np.nonzero(masks.hidden), strict=True) if masks else ():
            assert layout.objects[below].colour != layout.objects[above].colour


def test_objects_overlap_in_a_good_part_of_the_scenes():
    masks = [made for layout in layouts(100) if (made := make_masks(layout))]
    overlapping = sum(bool(made.hidden.any()) for made in masks)
    assert 0.1 * len(masks) < overlapping < 0.7 * len(masks)


def test_crowded_scenes_are_more_common_and_every_count_occurs():
    rng = np.random.default_rng(5)
    counts = np.bincount([sample_count(rng, 2, 6) for _ in range(3000)], minlength=7)[2:]
    assert (np.diff(counts) > 0).all()
    assert counts[0] > 100
