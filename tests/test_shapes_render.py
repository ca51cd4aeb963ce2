import numpy as np
import pytest

from promptseg.sources.shapes.render import COLOUR_RGB, render
from promptseg.sources.shapes.scene import COLOURS, PICTURE_SIZES, RADII, Layout, SceneObject, make_masks


def one_object(colour: str, radius: float = 60.0) -> Layout:
    return Layout(240, 320, (SceneObject("circle", colour, "medium", 160.0, 120.0, radius, 0.0),))


def test_equal_seeds_give_equal_pixels_and_others_do_not():
    layout = one_object("red")
    first, again, other = (render(layout, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.dtype == np.uint8
    assert first.shape == (240, 320, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


@pytest.mark.parametrize("size", PICTURE_SIZES)
def test_every_size_is_painted(size):
    assert render(Layout(*size, ()), np.random.default_rng(0)).shape == (*size, 3)


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_has_the_colour_it_is_called_by(colour):
    """The nearest of all named colours, light and finish taken out by comparing directions; greys by brightness."""
    layout = one_object(colour)
    masks = make_masks(layout)
    assert masks is not None
    names = [name for name in COLOUR_RGB if name not in ("white", "black")]
    for seed in range(12):
        inside = render(layout, np.random.default_rng(seed))[masks.visible[0]].mean(axis=0) / 255
        if np.ptp(inside) < 0.15:
            assert colour == ("white" if inside.mean() > 0.5 else "black")
            continue
        likeness = [
            inside @ COLOUR_RGB[name] / np.linalg.norm(inside) / np.linalg.norm(COLOUR_RGB[name]) for name in names
        ]
        assert names[int(np.argmax(likeness))] == colour


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_stands_out_from_the_ground(colour):
    layout = one_object(colour, radius=20.0)
    masks = make_masks(layout)
    assert masks is not None
    rows, columns = np.ogrid[:240, :320]
    distance = np.hypot(rows + 0.5 - 120, columns + 0.5 - 160)
    around = (distance > 23) & (distance < 32)
    for seed in range(25):
        pixels = render(layout, np.random.default_rng(seed)).astype(float)
        difference = pixels[masks.visible[0]].mean(axis=0) - pixels[around].mean(axis=0)
        assert np.linalg.norm(difference) > 40


def test_edges_are_smooth_and_split_at_half_coverage():
    """Between ground and object colour, a pixel is nearer to the object's exactly where the mask is set."""
    layout = one_object("yellow")
    masks = make_masks(layout)
    assert masks is not None
    with_object = render(layout, np.random.default_rng(3)).astype(float)
    rows, columns = np.ogrid[:240, :320]
    distance = np.hypot(rows + 0.5 - 120, columns + 0.5 - 160) - 60
    inner = with_object[(distance < -1) & (distance > -4)].mean(axis=0)
    outer = with_object[(distance > 1) & (distance < 4)].mean(axis=0)
    share = (with_object - outer) @ (inner - outer) / ((inner - outer) @ (inner - outer))
    expected = np.clip(0.5 - distance, 0, 1)
    edge = np.abs(distance) < 1
    assert np.abs(share - expected)[edge].mean() < 0.12  # what texture and noise leave
    np.testing.assert_array_equal(masks.visible[0], distance <= 0)


def test_the_ground_is_textured_and_muted():
    for seed in range(10):
        pixels = render(Layout(240, 320, ()), np.random.default_rng(seed)).astype(float)
        assert pixels.std(axis=(0, 1)).max() > 4
        assert np.ptp(pixels.mean(axis=(0, 1))) < 45  # close to grey
        assert 30 < pixels.mean() < 225


def test_radius_names_cover_every_size():
    assert set(RADII) == {"small", "medium", "large"}
