"""What is wrong with a data set: every mistake with its place; JSON, names, numbers, pictures and masks, held to rules.

Readers note mistakes and go on, so that a person mends all of them at once.
"""

import hashlib
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from promptseg.datasets.preprocess import DAMAGED_PICTURE, read_picture
from promptseg.datasets.tokenizer import clean_phrase

SHOWN = 5  # in an error; `check-data` lists them all
LARGEST_ID = 2**63 - 1
LOSSLESS = ("PNG", "BMP", "GIF", "TIFF", "PPM")  # formats that may hold a mask
LOSSY_COMPRESSIONS = ("jpeg", "tiff_jpeg", "webp")  # of TIFF
SAVE_MASK = "save it as a grey PNG of 0 outside and 255 inside"


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong: `where` is "file:line" or "file, annotation 7", `what` says got, wanted and remedy."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class Mistakes:
    """What readers note while they go on reading: mistakes, and what they left out, places by reason."""

    found: list[Mistake] = field(default_factory=list)
    left_out: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, where: str, what: str) -> None:
        """Note a mistake; halves of characters are escaped, so that any terminal can show it."""
        self.found.append(Mistake(*(text.encode("utf-8", "backslashreplace").decode() for text in (where, what))))

    def in_order(self) -> tuple[Mistake, ...]:
        """Return the mistakes by place, lines and ids by number."""
        return tuple(sorted(self.found, key=lambda each: _natural(each.where)))


def _natural(where: str) -> list[tuple[str, int]]:
    """Return a sort key that puts line 9 before line 10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", where)]


def refusal(name: str, found: tuple[Mistake, ...]) -> str:
    """Return an error's text: the first few mistakes, and how many more there are."""
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    first = "; ".join(map(str, found[:SHOWN]))
    mistakes = "mistake" if len(found) == 1 else "mistakes"
    return (
        f"{name}: got {len(found)} {mistakes}, wanted none: {first}{more}; `python -m promptseg check-data` lists all"
    )


def load_json(content: bytes) -> Any:
    """Return what JSON holds, UTF-8 with or without a byte order mark. Raises ValueError for anything else.

    Refused are also NaN and Infinity, a key that comes twice in an object, numbers of thousands of digits, and nesting
    too deep to read.
    """
    try:
        return json.loads(content.decode("utf-8-sig"), parse_constant=_no_number, object_pairs_hook=_distinct)
    except RecursionError as error:
        raise ValueError("got text nested too deep to read, wanted JSON of a few levels") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"got bytes that are not UTF-8 ({error.reason} at byte {error.start}); save it so") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"got text that is not JSON ({error})") from error
    except ValueError as error:
        known = str(error).startswith("got ")  # else Python's limit of digits
        raise ValueError(str(error) if known else f"got a number too long to read ({error})") from error


def shown(value: Any) -> str:
    """Return a value as messages show it: its beginning, or its type where it is nested too deep to write."""
    try:
        return f"{value!r:.80}"
    except RecursionError:
        return type(value).__name__


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"got {name}, wanted a number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"got the key {next(key for key in keys if keys.count(key) > 1)!r:.80} twice in an object")
    return fields


def whole_number(value: Any, least: int = 0) -> int:
    """Return an id or a size; ValueError for floats, booleans, text, and numbers out of range."""
    if type(value) is not int or not least <= value <= LARGEST_ID:
        raise ValueError(f"got {shown(value)}, wanted a whole number from {least}")
    return value


def is_whole(text: str) -> bool:
    """Whether a text can be written down: JSON may hold half a character, such as half an emoji, which no file can."""
    return not re.search("[\ud800-\udfff]", text)


def file_name(value: Any) -> str:
    """Return the name of a file in its one spelling: "./a//b.png" is "a/b.png".

    Raises ValueError for what is no name, and for what leads out of the folder.
    """
    whole = isinstance(value, str) and "\0" not in value and is_whole(value)
    parts = PurePosixPath(value.replace("\\", "/")).parts if whole else ()
    if not parts or value.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise ValueError(f"got {shown(value)}, wanted the name of a file inside the folder of pictures")
    return PurePosixPath(value).as_posix()


def checked_phrase(phrase: Any) -> str:
    """Return a phrase without the white space around it; ValueError for one that the tokenizer makes nothing of."""
    if not isinstance(phrase, str):
        raise ValueError(f"got {shown(phrase)}, wanted text with at least one word")
    clean_phrase(phrase)
    return phrase.strip()


@dataclass(frozen=True)
class Stored:
    """An encoded picture that was decoded whole: its size in stored pixels, EXIF orientation (1 to 8), and sha256."""

    height: int
    width: int
    orientation: int
    sha256: str

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width as it is shown, EXIF orientation applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)

    def turn(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Turn a mask of stored pixels, bool [height, width], as EXIF turns the picture."""
        stored = Image.fromarray(mask)
        stored.getexif()[ExifTags.Base.Orientation] = self.orientation
        return np.asarray(ImageOps.exif_transpose(stored))


def decode_all(names: Iterable[str], read: Callable[[str], bytes]) -> dict[str, Stored | ValueError]:
    """Decode pictures whole, side by side: later stages would find a truncated one after minutes, or never.

    Returns, by name, what each is, or what is wrong with it.
    """
    distinct = list(dict.fromkeys(names))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            decoded = pool.map(lambda name: _decoded(name, read), distinct)
            shown = tqdm(decoded, total=len(distinct), desc="decoding pictures", unit="picture")
            return dict(zip(distinct, shown, strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _decoded(name: str, read: Callable[[str], bytes]) -> Stored | ValueError:
    try:
        content = read(name)
        read_picture(content, name)
        with Image.open(io.BytesIO(content)) as head:
            orientation = head.getexif().get(ExifTags.Base.Orientation, 1)
            width, height = head.size
    except ValueError as error:
        return error
    turned = orientation if orientation in range(2, 9) else 1
    return Stored(height, width, turned, hashlib.sha256(content).hexdigest())


def read_mask(content: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Decode a mask that was saved as a picture, as it is shown -> bool [height, width].

    Its pixels are 0 or one other value, inside; or it is a cut-out, transparent outside. Raises ValueError, saying
    what to save instead, for lossy formats, several values, a palette or transparency that leaves open which pixels are
    inside, several pictures in one file, another size, and damaged bytes.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format not in LOSSLESS or picture.info.get("compression") in LOSSY_COMPRESSIONS:
                raise ValueError(f"got a {picture.format} picture, whose compression blurs edges; {SAVE_MASK}")
            if getattr(picture, "n_frames", 1) > 1:
                raise ValueError(f"got {getattr(picture, 'n_frames', 1)} pictures in one file; {SAVE_MASK}")
            upright = ImageOps.exif_transpose(picture)
            if upright.size != (width, height):
                got, wanted = f"{upright.width}x{upright.height}", f"{width}x{height}"
                raise ValueError(f"got {got} px, wanted the picture's {wanted} as it is shown (EXIF)")
            return _inside(upright)
    except DAMAGED_PICTURE as error:
        if type(error) is ValueError:
            raise
        raise ValueError(f"got a picture that cannot be read ({error}); replace the file") from error


def _inside(picture: Image.Image) -> NDArray[np.bool_]:
    """Return which pixels of a decoded mask are inside, bool [h, w]."""
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        if (alpha < 255).any():
            return _two_valued(alpha, "transparent everywhere" if not alpha.any() else "values of transparency")
    colours = np.asarray(picture.convert("RGB") if picture.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV") else picture)
    if picture.mode in ("RGBA", "LA"):
        colours = colours[..., :-1]
    inside = _two_valued(colours, "values")
    if picture.mode == "P" and (inside != (np.asarray(picture) > 0)).any():
        raise ValueError(f"got a palette whose first colour is not the black one: which is outside?; {SAVE_MASK}")
    return inside


def _two_valued(values: NDArray[Any], what: str) -> NDArray[np.bool_]:
    """Return which of the values [h, w] or [h, w, channels] are not 0; all that are not must be one value."""
    pixels = values.reshape(*values.shape[:2], -1)
    inside: NDArray[np.bool_] = (pixels != 0).any(-1)
    others = pixels[inside]
    if (
        what.startswith("transparent")
        or (len(others) and (others != others[0]).any())
        or (inside.all() and inside.size)
    ):
        kinds = len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0))
        least = "" if (~inside).any() else ", none of them 0 (a mask of the whole picture is better given as a polygon)"
        raise ValueError(f"got {kinds} {what}{least}, wanted 0 outside and one other value inside; {SAVE_MASK}")
    return inside
