"""predict: find what phrases speak of in a picture of your own, or in each picture of a folder."""

import argparse
import re
import time
from pathlib import Path

import numpy as np
from PIL import Image

from promptseg.commands import say
from promptseg.datasets.preprocess import read_picture
from promptseg.files import atomic_path
from promptseg.inference.model import Model, Segment, load
from promptseg.params.sections import check_res

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
OVERLAY_SIDE = 1600  # px at most: a phone's 12 megapixels take seconds to compress and show no more
SLUG_LENGTH = 40
DEFAULT_MODEL = "photo"  # which ships, and has seen photographs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("picture", type=Path, help="a picture, or a folder of them")
    parser.add_argument("phrases", nargs="+", metavar="phrase", help='such as "the red cup on the left"')
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder to write to (%(default)s)")
    parser.add_argument("--mask", action="store_true", help="write the mask too: a PNG of 0 and 255 at full size")


def run(options: argparse.Namespace) -> int:
    """Answer, write and tell; 1 when a picture of a folder could not be read, and all others were answered."""
    pictures = _pictures(options.picture)
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out: got {options.out}, which is a file, wanted a folder to write to")
    model = chosen_model(options)
    say(f"model: {model.name}")
    failed = 0
    for path in pictures:
        start = time.perf_counter()
        try:
            picture = read_picture(path.read_bytes(), str(path))
        except (ValueError, OSError) as error:
            if len(pictures) == 1:
                raise
            say(f"error: {error}")
            failed += 1
            continue
        found = model.segment(picture, options.phrases)
        say(f"{path}: {picture.shape[1]}x{picture.shape[0]} px, {time.perf_counter() - start:.2f} s")
        for number, segment in enumerate(found, start=1):
            say(f"  {describe(segment)} -> {_write(path.name, number, segment, options)}")
    if model.why_no_score:
        say(f"no score: {model.why_no_score}")
    return 1 if failed else 0


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe how a person names the model to ask."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="weights that ship (photo; nano-shapes for drawn scenes), a .onnx or a .safetensors file, such as the "
        "pipeline's models/model.onnx, an experiment's name or a git revision (%(default)s)",
    )
    parser.add_argument("--res", type=int, help="side in px at which a checkpoint works; by default its validation's")


def chosen_model(options: argparse.Namespace) -> Model:
    """Open the model that a person named, or `photo`; ValueError when there is none, or no such `res`."""
    if options.res is not None:
        check_res("--res", options.res)
    return load(options.model, res=options.res)


def describe(found: Segment) -> str:
    """Say in one line what is known of an answer."""
    box, inside = found.box_xyxy, int(np.count_nonzero(found.mask))
    where = "nothing found" if box is None else f"box {box[0]},{box[1]} to {box[2]},{box[3]} px"
    score = "" if found.score is None else f", score {found.score:.2f}"
    return f'"{found.phrase}": {inside:,} px ({100 * inside / found.mask.size:.1f} %), {where}{score}'


def _pictures(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"{path}: no such picture or folder")
        return [path]
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in PICTURE_SUFFIXES and each.is_file())
    if not found:
        raise ValueError(f"{path}: got a folder without pictures, wanted files of {', '.join(PICTURE_SUFFIXES)}")
    return found


def _write(name: str, number: int, found: Segment, options: argparse.Namespace) -> Path:
    """Write what one phrase found, and return the overlay's path."""
    path: Path = options.out / f"{name}-{number}-{_slug(found.phrase)}.png"
    _write_png(path, found.draw(OVERLAY_SIDE))
    if options.mask:
        _write_png(path.with_suffix(".mask.png"), Image.fromarray(found.mask.astype(np.uint8) * 255))
    return path


def _slug(phrase: str) -> str:
    """Return letters and digits of any script, joined by hyphens: part of a file's name."""
    return "-".join(re.findall(r"\w+", phrase.lower()))[:SLUG_LENGTH].strip("-")


def _write_png(path: Path, image: Image.Image) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG", compress_level=3)
