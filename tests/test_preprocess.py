"""Pictures of every kind, good and bad, to RGB; and the way to the canvas and back."""

import io
import struct
import zlib
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import ExifTags, Image

from promptseg.datasets import preprocess
from promptseg.datasets.preprocess import (
    CANVAS,
    Placement,
    canvas_to_square,
    logits_to_canvas,
    logits_to_mask,
    mask_from_canvas,
    mask_to_canvas,
    picture_to_canvas,
    picture_to_square,
    read_picture,
)

edges = st.integers(1, 3000)
small_masks = st.tuples(st.integers(1, 60), st.integers(1, 60)).flatmap(lambda shape: arrays(bool, shape))


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def palette() -> Image.Image:
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("RGB", (1, 1), (10, 20, 30)), "png", (10, 20, 30)),
        (Image.new("L", (1, 1), 77), "png", (77, 77, 77)),
        (Image.new("1", (1, 1), 1), "png", (255, 255, 255)),
        (palette(), "png", (10, 20, 30)),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 255)), "png", (10, 20, 30)),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 51)), "png", (204, 204, 204)),
        (Image.new("LA", (1, 1), (77, 0)), "png", (255, 255, 255)),
        (Image.new("LA", (1, 1), (77, 255)), "png", (77, 77, 77)),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "tiff", (255, 0, 0)),
        (Image.new("I;16", (1, 1), 0x4D12), "png", (0x4D, 0x4D, 0x4D)),
        (Image.new("I;16", (1, 1), 0xFFFF), "tiff", (255, 255, 255)),
        (Image.new("I", (1, 1), 0x4D12), "tiff", (0x4D, 0x4D, 0x4D)),
        (Image.new("I", (1, 1), -5), "tiff", (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, kind: str, expected: tuple[int, int, int]) -> None:
    picture = read_picture(encoded(image, kind), "x")
    assert picture.dtype == np.uint8
    assert picture.shape == (1, 1, 3)
    assert tuple(picture[0, 0]) == expected


def test_a_transparent_palette_colour_is_laid_over_white() -> None:
    assert read_picture(encoded(palette(), transparency=1), "x").tolist() == [[[255, 255, 255]]]


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(read_picture(encoded(red, "jpeg", quality=95), "x")[8, 8].astype(int) - (255, 0, 0)).max() <= 3


# Where each orientation puts the stored top left pixel: at the top or bottom, left or right; 5 to 8 swap the edges.
@pytest.mark.parametrize(
    ("orientation", "corner", "shape"),
    [
        (1, (0, 0), (2, 3)),
        (2, (0, -1), (2, 3)),
        (3, (-1, -1), (2, 3)),
        (4, (-1, 0), (2, 3)),
        (5, (0, 0), (3, 2)),
        (6, (0, -1), (3, 2)),
        (7, (-1, -1), (3, 2)),
        (8, (-1, 0), (3, 2)),
    ],
)
def test_exif_orientation_is_applied(orientation: int, corner: tuple[int, int], shape: tuple[int, int]) -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = read_picture(encoded(Image.fromarray(pixels), exif=exif), "x")
    assert picture.shape[:2] == shape
    assert picture[corner].tolist() == [255] * 3
    assert picture.sum() == 255 * 3


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    assert read_picture(encoded(Image.new("RGB", (3, 2)), exif=exif), "x").shape == (2, 3, 3)


def test_a_stream_reads_like_bytes() -> None:
    data = encoded(Image.new("RGB", (3, 2), "red"))
    assert (read_picture(io.BytesIO(data), "x") == read_picture(data, "x")).all()


@pytest.mark.parametrize("data", [b"", b"x", b"<html>", b"%PDF-1.4", b"\xff\xd8\xff", b"GIF89a"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cat\.jpg: got (bytes that are no|a picture that cannot)"):
        read_picture(data, "cat.jpg")


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    data = encoded(noise, kind)
    for size in (len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(ValueError, match="cat: got"):
            read_picture(data[:size], "cat")


@pytest.mark.parametrize("size", [(10_001, 10_000), (50_000, 50_000), (0, 5)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("pixels were decoded"))
    with pytest.raises(ValueError, match="bomb: got"):
        read_picture(png_header(*size), "bomb")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(["jpeg", "png", "gif", "bmp", "tiff", "webp"]))
def test_a_damaged_picture_is_pixels_or_a_value_error(data: st.DataObject, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    options = {"exif": exif} if kind in ("jpeg", "png", "webp") else {}
    damaged = bytearray(encoded(Image.new("RGB", (9, 7), "red"), kind, **options))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        with mock.patch.object(preprocess, "MAX_PIXELS", 10_000):  # decoding 100 million zeros takes a while
            picture = read_picture(bytes(damaged), "x")
    except ValueError as error:
        message = str(error)
    else:
        message = "x: "
        assert picture.dtype == np.uint8
        assert picture.shape[2:] == (3,)
    assert message.startswith("x: ")


@given(edges, edges)
def test_a_placement_fills_the_canvas_and_keeps_the_aspect(height: int, width: int) -> None:
    place = Placement.of(height, width)
    assert (place.height, place.width) == (height, width)
    assert max(place.canvas_height, place.canvas_width) == CANVAS
    assert min(place.canvas_height, place.canvas_width) >= 1
    scale = CANVAS / max(height, width)
    for edge, on_canvas in ((height, place.canvas_height), (width, place.canvas_width)):
        assert on_canvas == 1 or abs(on_canvas - edge * scale) <= 0.5


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (768, 1024)), ((640, 480), (1024, 768)), ((77, 77), (1024, 1024)), ((1, 1), (1024, 1024)),
     ((1, 5000), (1, 1024)), ((1024, 1023), (1024, 1023))],
)  # fmt: skip
def test_placements_by_hand(size: tuple[int, int], expected: tuple[int, int]) -> None:
    place = Placement.of(*size)
    assert (place.canvas_height, place.canvas_width) == expected


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="wanted at least 1x1"):
        Placement.of(*size)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (30, 40), (40, 30), (1100, 20)])
def test_a_picture_lies_top_left_on_zeros(size: tuple[int, int]) -> None:
    canvas = picture_to_canvas(np.full((*size, 3), (10, 20, 30), np.uint8))
    place = Placement.of(*size)
    assert canvas.dtype == np.uint8
    assert canvas.shape == (3, CANVAS, CANVAS)
    inside = canvas[:, : place.canvas_height, : place.canvas_width]
    assert (inside == np.array([10, 20, 30])[:, None, None]).all()
    assert canvas.sum(dtype=np.int64) == inside.sum(dtype=np.int64)


def test_a_picture_at_canvas_size_is_copied() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (CANVAS, 100, 3), np.uint8)
    assert (picture_to_canvas(picture)[:, :, :100] == picture.transpose(2, 0, 1)).all()


@settings(max_examples=40, deadline=None)
@given(small_masks)
def test_a_mask_comes_back_as_it_was_where_the_canvas_is_larger(mask: np.ndarray) -> None:
    on_canvas = mask_to_canvas(mask)
    assert on_canvas.dtype == bool
    assert on_canvas.shape == (CANVAS, CANVAS)
    assert (mask_from_canvas(on_canvas, *mask.shape) == mask).all()


@pytest.mark.parametrize("size", [(2048, 1500), (1333, 2000), (1, 4000)])
def test_a_mask_comes_back_nearly_where_the_canvas_is_smaller(size: tuple[int, int]) -> None:
    rows, columns = np.ogrid[: size[0], : size[1]]
    disc = (rows - size[0] / 2) ** 2 + (columns - size[1] / 2) ** 2 <= (min(size) / 3 + 200) ** 2
    back = mask_from_canvas(mask_to_canvas(disc), *size)
    assert back.shape == size
    assert (back & disc).sum() / (back | disc).sum() > 0.99


def test_a_mask_and_its_picture_lie_at_the_same_place() -> None:
    mask = np.zeros((300, 500), bool)
    mask[40:200, 100:350] = True
    drawn = picture_to_canvas(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))[0] > 127
    assert (drawn == mask_to_canvas(mask)).mean() > 0.999


def test_the_padding_does_not_come_back() -> None:
    canvas = np.ones((CANVAS, CANVAS), bool)
    canvas[: Placement.of(30, 40).canvas_height] = False
    assert not mask_from_canvas(canvas, 30, 40).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1300), st.integers(1, 1300), st.sampled_from([64, 100, 320, 590, 1024]))
def test_a_picture_becomes_the_square_that_its_canvas_becomes(height: int, width: int, res: int) -> None:
    """But for the canvas' rounding: no value is off by more than one."""
    picture = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    wanted = canvas_to_square(picture_to_canvas(picture).astype(np.float32), res)
    got = picture_to_square(picture, res)
    assert (got.dtype, got.shape) == (np.uint8, (res, res, 3))
    assert np.abs(got.astype(int) - wanted).max() <= 1


def test_a_square_of_whole_numbers_is_exact() -> None:
    flat = np.full((30, 40, 3), (10, 20, 30), np.uint8)
    wanted = canvas_to_square(picture_to_canvas(flat).astype(np.float32), 320)
    assert (picture_to_square(flat, 320) == wanted).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1300), st.integers(1, 1300), st.sampled_from([(80, 320), (148, 590), (352, 352), (590, 590)]))
@pytest.mark.parametrize("rule", ["crop", "stretch"])
def test_a_mask_of_logits_is_that_of_the_canvas(rule: str, height: int, width: int, sides: tuple[int, int]) -> None:
    cells, res = sides
    coarse = Image.fromarray(np.random.default_rng(height).normal(size=(9, 9)).astype(np.float32))
    logits = np.asarray(coarse.resize((cells, cells), Image.Resampling.BICUBIC))
    wanted = mask_from_canvas(logits_to_canvas(logits, res, rule) > 0, height, width)
    got = logits_to_mask(logits, res, rule, height, width)
    assert (got.dtype, got.shape) == (bool, (height, width))
    assert (got == wanted).all()
