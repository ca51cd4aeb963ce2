"""The Python API: `load` opens a model by its name, `Model.segment` asks it phrases about pictures."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import promptseg
from promptseg.datasets.preprocess import picture_of, read_picture
from promptseg.datasets.tokenizer import ClipTokenizer
from promptseg.inference.runners import SUFFIXES, Runner, open_runner
from promptseg.params import find_project, read_paths
from promptseg.report.overlay import overlay, shrink

Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
Batch = list[Picture] | tuple[Picture, ...]
_WANTED = "a path, a PIL image, or a numpy array uint8 RGB [height, width, 3]"
_PACKAGE = Path(promptseg.__file__).parent
_SHIPPED = (_PACKAGE / "weights", _PACKAGE.parents[1] / "weights")  # of an installed package; of a clone


@dataclass(frozen=True, eq=False)
class Segment:
    """What one phrase speaks of in one picture.

    mask: bool [H, W], the picture as shown (its EXIF orientation applied). box_xyxy: left, top, right and bottom of the
    mask in px, the latter two exclusive; None where nothing is inside. score: 0..1, how sure the model is that the
    thing is there at all; None where the model cannot say.
    """

    phrase: str
    mask: NDArray[np.bool_] = field(repr=False)
    box_xyxy: tuple[int, int, int, int] | None
    score: float | None
    _picture: NDArray[np.uint8] = field(repr=False)

    def draw(self, longest_px: int | None = None) -> Image.Image:
        """Return the picture, RGB, with the mask hatched; no edge longer than `longest_px`, where it is given."""
        picture, mask, nothing = self._picture, self.mask, np.zeros_like(self.mask)
        if longest_px is not None and max(mask.shape) > longest_px:
            picture, nothing, mask = shrink(picture, nothing, mask, longest_px)
        return Image.fromarray(overlay(picture, nothing, mask))


class Model:
    """A model that answers phrases about pictures; `load` makes one. `name` says which, for people.

    `why_no_score` says why answers have no score; it is empty where they have one.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.name, self.why_no_score = runner.name, runner.why_no_score

    def __repr__(self) -> str:
        return f"promptseg.load({self.name!r})"

    @overload
    def segment(self, picture: Picture, phrases: str | Sequence[str]) -> list[Segment]: ...

    @overload
    def segment(self, picture: Batch, phrases: str | Sequence[str]) -> list[list[Segment]]: ...

    def segment(self, picture: Picture | Batch, phrases: str | Sequence[str]) -> list[Segment] | list[list[Segment]]:
        """Return a record for each phrase about a picture, in order; for a batch of pictures a list of such lists.

        picture: a path, a PIL image, or a numpy array uint8 RGB [H, W, 3]; a batch is a list or a tuple of any of them.
        EXIF orientation is applied; transparency is laid over white. phrases: what to find, such as "the red cup on
        the left"; one alone may be a plain string.

        Raises ValueError, saying got, wanted and remedy, for no phrase, one without a word, and what is no picture.
        """
        asked = [phrases] if isinstance(phrases, str) else list(phrases)
        if not asked:
            raise ValueError('got no phrase, wanted at least one, such as "the red cup on the left"')
        tokens = self._tokenizer.encode_all(asked)
        if isinstance(picture, list | tuple):
            return [self._segment(_pixels(each, f"picture {at}"), asked, tokens) for at, each in enumerate(picture)]
        return self._segment(_pixels(picture, "picture"), asked, tokens)

    def _segment(self, picture: NDArray[np.uint8], phrases: list[str], tokens: NDArray[np.int32]) -> list[Segment]:
        answers = self._runner.answer(picture, tokens)
        return [
            Segment(phrase, answer.mask, box_of(answer.mask), answer.score, picture)
            for phrase, answer in zip(phrases, answers, strict=True)
        ]

    @cached_property
    def _tokenizer(self) -> ClipTokenizer:
        return ClipTokenizer()


def load(name: str | os.PathLike[str], *, res: int | None = None) -> Model:
    """Open a model: a name that ships ("nano-shapes"), a file, or an experiment of the project that you are in.

    name: a shipped name; a path of an .onnx file that keeps the contract, of a folder of exported graphs, or of a
    .safetensors checkpoint with its .json; an experiment's name, or any git revision, of the DVC project in the working
    directory or above it, of which the exported graphs are opened, from DVC's cache or its remote. A file is tried
    first, then what ships.
    res: side in px of the square that a checkpoint works on; by default that of its validation. A graph has its own.

    Raises ValueError for a name that is none of these, and for a file that is missing, damaged or of another contract.
    """
    path = Path(name)
    if path.suffix in SUFFIXES or path.is_file() or any(path.glob("*.onnx")):
        return Model(open_runner(path, res))
    shipped = {file.stem: file for folder in _SHIPPED for file in sorted(folder.glob("*.safetensors"))}
    if str(name) in shipped:
        runner = open_runner(shipped[str(name)], res)
        runner.name = runner.name.replace(str(shipped[str(name)]), str(name))
        return Model(runner)
    root = find_project(Path.cwd())
    known = f"a shipped name ({', '.join(shipped)}), or a file named *{' or *'.join(SUFFIXES)}"
    if root is None:
        raise ValueError(f"got {str(name)!r}, wanted {known}; in a clone of promptseg an experiment's name, too")
    return Model(_open_revision(root, str(name), known))


def _open_revision(root: Path, revision: str, known: str) -> Runner:
    from promptseg.experiments.records import read_revision  # DVC takes a second to import

    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        folder = Path(scratch)
        try:
            read_revision(root, revision, ["dvc.yaml"], folder)
        except LookupError as error:
            raise ValueError(
                f"got {revision!r}, wanted {known}, or an experiment or git revision of {root} (`dvc exp list --all`)"
            ) from error
        paths = read_paths(folder)
        graphs = paths.get("graphs") or paths["graph"]  # one file, in revisions from before graphs could be several
        read_revision(root, revision, [graphs.relative_to(folder).as_posix()], folder)
        runner = open_runner(graphs, None)
    runner.name = f"{graphs.name} of {revision}"
    return runner


def _pixels(picture: Any, name: str) -> NDArray[np.uint8]:
    """Return uint8 RGB [h, w, 3] of whatever shows a picture. Raises ValueError, with `name`, for anything else."""
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        if not path.is_file():
            raise ValueError(f"{path}: got no such file, wanted a picture")
        return read_picture(path.read_bytes(), str(path))
    if isinstance(picture, Image.Image):
        return picture_of(picture, name)
    if not isinstance(picture, np.ndarray):
        raise ValueError(f"{name}: got {type(picture).__name__}, wanted {_WANTED}")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(
            f"{name}: got an array {picture.dtype} {list(picture.shape)}, wanted uint8 RGB [height, width, 3]"
        )
    return picture


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of a mask, bool [h, w], the latter two exclusive; None of an empty one."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
