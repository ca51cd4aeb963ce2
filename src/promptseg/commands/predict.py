"""predict: find what phrases speak of in a picture of your own, or in each picture of a folder."""

import argparse
import re
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promptseg.commands import say
from promptseg.commands.project import model_and_res
from promptseg.datasets.preprocess import read_picture
from promptseg.datasets.tokenizer import ClipTokenizer
from promptseg.files import atomic_path
from promptseg.inference.ask import Answer, Model, ask, open_model
from promptseg.params.sections import check_res
from promptseg.report.overlay import overlay, shrink

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
OVERLAY_SIDE = 1600  # px at most: a phone's 12 megapixels take seconds to compress and show no more
SLUG_LENGTH = 40


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
    tokenizer = ClipTokenizer()
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
        lines = _answer(model, tokenizer, path.name, picture, options)
        seconds = time.perf_counter() - start
        say(f"{path}: {picture.shape[1]}x{picture.shape[0]} px, {seconds:.2f} s with reading, drawing and writing")
        for line in lines:
            say(line)
    if model.why_no_confidence:
        say(f"no confidence: {model.why_no_confidence}")
    return 1 if failed else 0


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe how a person names the model to ask."""
    parser.add_argument("--model", type=Path, help="a .onnx or a .safetensors file; by default the pipeline's own")
    parser.add_argument(
        "--res", type=int, help="side in px at which a checkpoint works; by default that of params.yaml"
    )


def chosen_model(options: argparse.Namespace) -> Model:
    """Open the model that a person named, or the default one; ValueError when there is none, or no such `res`."""
    if options.res is not None:
        check_res("--res", options.res)
    return open_model(*model_and_res(options.model, options.res))


def describe(answer: Answer, confidence_known: bool) -> str:
    """Say in one line what is known of an answer."""
    box = answer.box_xyxy
    where = "nothing found" if box is None else f"box {box[0]},{box[1]} to {box[2]},{box[3]} px"
    parts = [f"{answer.area_pixels:,} px ({100 * answer.area_share:.1f} %)", where]
    if confidence_known:
        parts.append("confidence -" if answer.confidence is None else f"confidence {answer.confidence:.2f}")
    return f'"{answer.phrase}": {", ".join([*parts, f"{answer.milliseconds:.0f} ms"])}'


def draw(picture: NDArray[np.uint8], answer: Answer, side: int) -> NDArray[np.uint8]:
    """Lay an answer over its picture, uint8 RGB [h, w, 3], the longest edge at most `side` px."""
    nothing = np.zeros_like(answer.mask)
    if max(answer.mask.shape) <= side:
        return overlay(picture, nothing, answer.mask)
    return overlay(*shrink(picture, nothing, answer.mask, side))


def _pictures(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"{path}: no such picture or folder")
        return [path]
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in PICTURE_SUFFIXES and each.is_file())
    if not found:
        raise ValueError(f"{path}: got a folder without pictures, wanted files of {', '.join(PICTURE_SUFFIXES)}")
    return found


def _answer(
    model: Model, tokenizer: ClipTokenizer, name: str, picture: NDArray[np.uint8], options: argparse.Namespace
) -> list[str]:
    """Ask all phrases about a picture, write what comes out, and return a line for each."""
    lines = []
    for number, answer in enumerate(ask(model, tokenizer, picture, options.phrases), start=1):
        path = options.out / f"{name}-{number}-{_slug(answer.phrase)}.png"
        _write_png(path, Image.fromarray(draw(picture, answer, OVERLAY_SIDE)))
        if options.mask:
            _write_png(path.with_suffix(".mask.png"), Image.fromarray(answer.mask.astype(np.uint8) * 255))
        lines.append(f"  {describe(answer, not model.why_no_confidence)} -> {path}")
    return lines


def _slug(phrase: str) -> str:
    """Return letters and digits of any script, joined by hyphens: part of a file's name."""
    return "-".join(re.findall(r"\w+", phrase.lower()))[:SLUG_LENGTH].strip("-")


def _write_png(path: Path, image: Image.Image) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG", compress_level=3)
