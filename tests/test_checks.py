"""What readers hold data to: JSON, ids, names, phrases, whole pictures, and masks that are saved as pictures."""

import io
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from promptseg.sources import checks
from promptseg.sources.checks import (
    LARGEST_ID,
    Mistakes,
    Stored,
    checked_phrase,
    decode_all,
    file_name,
    load_json,
    read_mask,
    shown,
    whole_number,
)

HEIGHT, WIDTH = 20, 30
SQUARE = np.zeros((HEIGHT, WIDTH), bool)
SQUARE[4:12, 2:10] = True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": NaN}', "got NaN, wanted a number"),
        (b"[Infinity]", "got Infinity, wanted a number"),
        (b'{"id": 1, "id": 2}', "got the key 'id' twice in an object"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": ' * 100_000, "nested too deep"),
        (b'{"id": ' + b"9" * 5000 + b"}", "got a number too long to read"),
        ('{"phrase": "Käfer"}'.encode("latin-1"), "got bytes that are not UTF-8"),
        ('{"phrase": "cup"}'.encode("utf-16"), "got bytes that are not UTF-8"),
    ],
)
def test_text_that_is_no_json_is_refused_and_nothing_else_is_raised(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_json(content)


def test_a_byte_order_mark_is_no_part_of_json() -> None:
    assert load_json(b'\xef\xbb\xbf{"a": 1}\r\n') == {"a": 1}


@pytest.mark.parametrize("value", [1.0, 1.5, True, "1", None, -1, 2**63, 10**4000, [1], {"$oid": "1"}, float("nan")])
def test_an_id_is_a_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match="wanted a whole number from 0"):
        whole_number(value)


def test_ids_go_up_to_64_bits() -> None:
    assert [whole_number(value) for value in (0, 7, LARGEST_ID)] == [0, 7, 2**63 - 1]


@pytest.mark.parametrize(("spelled", "name"), [("./a.png", "a.png"), ("b//a.png", "b/a.png"), ("b/./a.png", "b/a.png")])
def test_a_name_has_one_spelling(spelled: str, name: str) -> None:
    assert file_name(spelled) == name


@pytest.mark.parametrize(
    "value",
    ["", ".", "../a.png", "b/../../a.png", "/a.png", "\\a.png", "C:/a.png", "a\0.png", "\ud83d.png", 7, None, ["a"]],
)
def test_a_name_that_leads_elsewhere_or_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="wanted the name of a file inside"):
        file_name(value)


@pytest.mark.parametrize(
    "phrase", ["", "\t", "\u3000", "&nbsp;", "\u200b", "the cup \ud83d", "<|endoftext|>", 7, None, ["a"]]
)
def test_a_phrase_that_the_tokenizer_makes_nothing_of_is_refused(phrase: Any) -> None:
    with pytest.raises(ValueError, match=r"^got "):
        checked_phrase(phrase)


def test_white_space_around_a_phrase_is_no_part_of_it() -> None:
    assert checked_phrase(" the red\u3000cup \u3000\n") == "the red\u3000cup"


def test_what_is_nested_too_deep_to_write_is_shown_by_its_type() -> None:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    assert shown(value) == "list"
    assert shown("x" * 500) == "'" + "x" * 79


def test_mistakes_are_told_by_number_and_can_be_printed_anywhere() -> None:
    mistakes = Mistakes()
    for where in ("a.jsonl:10", "a.jsonl:9", "a.jsonl", "a.jsonl:100"):
        mistakes.add(where, "half an emoji \ud83d")
    told = [str(mistake) for mistake in mistakes.in_order()]
    assert [text.split(": ")[0] for text in told] == ["a.jsonl", "a.jsonl:9", "a.jsonl:10", "a.jsonl:100"]
    assert all(text.encode() for text in told)


def png(pixels: Any, mode: str | None = None, **save: Any) -> bytes:
    stream = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels), mode)
    picture.save(stream, save.pop("format", "PNG"), **save)
    return stream.getvalue()


def grey(value: int = 255) -> np.ndarray:
    return SQUARE.astype(np.uint8) * np.uint8(value)


def coloured(inside: tuple[int, ...], outside: tuple[int, ...]) -> np.ndarray:
    return np.where(SQUARE[..., None], np.array(inside, np.uint8), np.array(outside, np.uint8))


def palette(colours: list[int]) -> Image.Image:
    picture = Image.fromarray(SQUARE.astype(np.uint8), "P")
    picture.putpalette(colours)
    return picture


MASKS = {
    "grey of 255": png(grey()),
    "grey of 1": png(grey(1)),
    "one bit": png(Image.fromarray(SQUARE)),
    "16 bits": png(SQUARE.astype(np.uint16) * 40_000),
    "a colour on black": png(coloured((0, 0, 1), (0, 0, 0))),
    "opaque, with an alpha channel": png(coloured((255, 255, 255, 255), (0, 0, 0, 255))),
    "a white cut-out": png(coloured((255, 255, 255, 255), (255, 255, 255, 0))),
    "a black cut-out": png(coloured((0, 0, 0, 255), (0, 0, 0, 0))),
    "a grey cut-out": png(coloured((200, 255), (200, 0))),
    "a palette that begins with black": png(palette([0, 0, 0, 224, 0, 0])),
    "a palette with a transparent colour": png(palette([255, 255, 255, 224, 0, 0]), transparency=0),
    "bmp": png(grey(), format="BMP"),
    "tiff": png(grey(), format="TIFF", compression="tiff_lzw"),
    "gif": png(palette([0, 0, 0, 255, 255, 255]), format="GIF"),
}


@pytest.mark.parametrize("content", MASKS.values(), ids=MASKS)
def test_two_values_or_a_cut_out_make_a_mask(content: bytes) -> None:
    assert (read_mask(content, HEIGHT, WIDTH) == SQUARE).all()


def test_a_cut_out_of_a_photograph_is_its_transparency() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)
    pixels[..., 3] = SQUARE * np.uint8(255)
    assert (read_mask(png(pixels), HEIGHT, WIDTH) == SQUARE).all()


def test_a_mask_is_turned_as_it_is_shown() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = png(np.rot90(grey()).copy(), exif=exif)
    assert (read_mask(content, HEIGHT, WIDTH) == SQUARE).all()


RAMP = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
BLURRED = np.dstack([np.full((HEIGHT, WIDTH), 255, np.uint8), RAMP])
REFUSED = {
    "jpeg": (png(grey(), format="JPEG"), "got a JPEG picture, whose compression blurs edges; save it as a grey PNG"),
    "jpeg without a second value": (png(np.zeros_like(RAMP), format="JPEG"), "got a JPEG picture"),
    "webp": (png(grey(), format="WEBP"), "got a WEBP picture"),
    "tiff of jpeg": (png(grey(), format="TIFF", compression="jpeg"), "got a TIFF picture, whose compression"),
    "jpeg saved as png": (png(Image.open(io.BytesIO(png(grey(), format="JPEG")))), r"got \d+ values, wanted 0 outside"),
    "many values": (png(RAMP), "got 30 values, wanted 0 outside and one other value inside; save it"),
    "two objects": (png(grey(1) + 2 * np.roll(grey(1), 12, 1)), "got 3 values, wanted 0 outside"),
    "colours": (png(coloured((255, 0, 0), (0, 0, 255))), "got 2 values, none of them 0"),
    "all inside": (png(np.full_like(RAMP, 255)), "got 1 values, none of them 0 .*better given as a polygon"),
    "a light palette": (png(palette([255, 255, 255, 224, 0, 0])), "got 2 values, none of them 0"),
    "a palette whose black is the object": (png(palette([255, 255, 255, 0, 0, 0])), "a palette whose first colour"),
    "soft transparency": (png(BLURRED), "got 30 values of transparency, wanted 0 outside"),
    "half transparency everywhere": (png(coloured((255, 128), (0, 128))), "values of transparency, none of them 0"),
    "no opaque pixel": (png(coloured((255, 0), (0, 0))), "got 1 transparent everywhere"),
    "not a number": (png(np.where(SQUARE, np.nan, 0).astype(np.float32), format="TIFF"), r"got \d+ values"),
    "several pictures": (
        png(palette([0] * 6), format="GIF", save_all=True, append_images=[palette([9] * 6)]),
        "got 2 pictures in one file",
    ),
    "another size": (png(np.zeros((4, 5), np.uint8)), "got 5x4 px, wanted the picture's 30x20 as it is shown"),
    "a part": (png(np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH)).astype(np.uint8))[:70], "cannot be read"),
    "nothing": (b"", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_mask_that_leaves_open_what_is_inside_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_mask(content, HEIGHT, WIDTH)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_mask_or_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^got "):
        read_mask(content, HEIGHT, WIDTH)


def photograph(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.random.default_rng(orientation).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    return png(pixels, format="JPEG", exif=exif)


def test_pictures_are_decoded_whole_and_told_by_name() -> None:
    files = {f"{n}.jpg": photograph(n) for n in range(1, 9)}
    files["cut.jpg"] = photograph()[:-200]
    files["none.jpg"] = b"none"
    decoded = decode_all([*files, "1.jpg"], files.__getitem__)
    assert list(decoded) == list(files)
    for n in range(1, 9):
        stored = decoded[f"{n}.jpg"]
        assert isinstance(stored, Stored)
        assert (stored.height, stored.width, stored.orientation) == (HEIGHT, WIDTH, n)
        assert stored.shown == ((HEIGHT, WIDTH) if n < 5 else (WIDTH, HEIGHT))
        assert stored.turn(SQUARE).shape == stored.shown
    assert "cut.jpg: got a picture that cannot be read" in str(decoded["cut.jpg"])
    assert "none.jpg: got bytes that are no known picture format" in str(decoded["none.jpg"])


def test_a_picture_above_the_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptseg.datasets.preprocess.MAX_PIXELS", HEIGHT * WIDTH - 1)
    (refused,) = decode_all(["a.jpg"], lambda _: photograph()).values()
    assert "a.jpg" in str(refused)
    assert "got 30x20 px, wanted at most 599 pixels; make it smaller" in str(refused)


def test_pictures_are_decoded_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two waits for the other."""
    both = threading.Barrier(2, timeout=30)
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 2)

    def read(_: str) -> bytes:
        both.wait()
        return photograph()

    assert len(decode_all(["a", "b"], read)) == 2
