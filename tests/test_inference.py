"""The Python API: a model by its name, phrases in, frozen records at the picture's own size out."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import write_bright_graph, write_textless_graph
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from networks import micro_network
from PIL import Image

import promptseg
from promptseg.checkpoints.checkpoint import Provenance, save_checkpoint
from promptseg.datasets.preprocess import mask_from_canvas, picture_to_canvas
from promptseg.datasets.tokenizer import ClipTokenizer
from promptseg.export.deployed_graph import plain_mask
from promptseg.inference.model import Model, Segment, box_of
from tests.imports import ROOT
from tests.projects import copy_run, dvc, git

RES = 96


def half_bright(height: int = 60, width: int = 120) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, width // 2 :] = 255
    return picture


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return promptseg.load(write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "micro.safetensors"
    save_checkpoint(path, micro_network(), Provenance("micro", None, {"val_res": RES}, 0, None), torch.float32)
    return path


def test_a_graph_answers_at_the_pictures_size_and_says_why_it_has_no_score(graph: Model) -> None:
    first, second = graph.segment(half_bright(), ["a cup", "a dog"])
    assert (first.mask.shape, first.mask.dtype) == ((60, 120), bool)
    assert first.box_xyxy == (60, 0, 120, 60)
    assert (first.phrase, second.phrase) == ("a cup", "a dog")
    assert first.score is None
    assert "mask alone" in graph.why_no_score


def test_records_cannot_be_changed_and_are_short_to_read(graph: Model) -> None:
    (found,) = graph.segment(half_bright(), "a cup")
    with pytest.raises(FrozenInstanceError):
        found.score = 1.0  # type: ignore[misc]
    assert repr(found) == "Segment(phrase='a cup', box_xyxy=(60, 0, 120, 60), score=None)"


def test_where_nothing_is_inside_there_is_no_box(graph: Model) -> None:
    (found,) = graph.segment(np.zeros((5, 8, 3), np.uint8), ["a cup"])
    assert (found.mask.any(), found.box_xyxy) == (False, None)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_the_box_is_the_smallest_that_holds_the_mask(mask: np.ndarray) -> None:
    """Oracle: the coordinates of all pixels inside."""
    down, right = np.nonzero(mask)
    wanted = (right.min(), down.min(), right.max() + 1, down.max() + 1) if len(down) else None
    assert box_of(mask) == wanted


def test_a_drawing_leaves_the_picture_alone_outside_of_the_mask(graph: Model) -> None:
    (found,) = graph.segment(half_bright(), ["a cup"])
    drawn = np.asarray(found.draw())
    assert drawn.shape == (60, 120, 3)
    assert (drawn[:, :59] == 0).all()
    assert len(np.unique(drawn[:, 60:].reshape(-1, 3), axis=0)) > 1
    assert found.draw(30).size == (30, 15)
    assert found.draw(500).size == (120, 60)


def test_every_kind_of_picture_is_answered_alike_and_batches_as_each_alone(graph: Model, tmp_path: Path) -> None:
    pixels = half_bright()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "half.png")
    pictures = [pixels, image, tmp_path / "half.png", str(tmp_path / "half.png"), image.convert("RGBA")]
    for (found,) in graph.segment(pictures, ["a cup"]):
        assert found.box_xyxy == (60, 0, 120, 60)
    assert graph.segment([], ["a cup"]) == []


def test_masks_are_of_the_picture_as_shown(graph: Model, tmp_path: Path) -> None:
    """A camera held upright stores its picture lying, and says so in EXIF."""
    lying = Image.fromarray(half_bright())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    lying.save(tmp_path / "upright.jpg", exif=exif, quality=95)
    for picture in (tmp_path / "upright.jpg", Image.open(tmp_path / "upright.jpg")):
        (found,) = graph.segment(picture, ["a cup"])
        assert found.mask.shape == (120, 60)
        assert found.mask[70:].all()
        assert not found.mask[:50].any()
        assert found.draw().size == (60, 120)


def test_a_checkpoint_decides_as_the_network_does_at_the_size_of_its_validation(weights: Path) -> None:
    """Oracle: `plain_mask`, the network's own code, a phrase at a time."""
    picture = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    phrases = ["the red cup", "a dog on the left of the house"]
    model = promptseg.load(weights)
    assert model.name.endswith(f"at {RES} px")
    canvas = torch.from_numpy(picture_to_canvas(picture)[None].astype(np.float32))
    network, tokenizer = micro_network(), ClipTokenizer()
    for phrase, found in zip(phrases, model.segment(picture, phrases), strict=True):
        with torch.inference_mode():
            wanted = plain_mask(network, canvas, torch.from_numpy(tokenizer.encode(phrase)), RES).numpy()
        assert np.mean(found.mask != mask_from_canvas(wanted, 70, 100)) < 1e-3


def test_phrases_together_are_answered_as_each_alone(weights: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (50, 50, 3), np.uint8)
    model = promptseg.load(weights, res=64)
    together = model.segment(picture, ["a cup", "a dog"])
    alone = [model.segment(picture, [phrase])[0] for phrase in ("a cup", "a dog")]
    for one, other in zip(together, alone, strict=True):
        assert np.mean(one.mask != other.mask) < 1e-3


def test_masks_that_are_no_numbers_are_an_error_and_no_empty_answer(tmp_path: Path) -> None:
    network = micro_network()
    with torch.no_grad():
        network.mask_decoder.class_projection.fill_(float("nan"))
        for parameter in network.pixel_decoder.parameters():
            parameter.fill_(float("nan"))
    save_checkpoint(tmp_path / "nan.safetensors", network, Provenance("micro", None, {}, 0, None), torch.float32)
    model = promptseg.load(tmp_path / "nan.safetensors", res=RES)
    with pytest.raises(ValueError, match="got masks that are no numbers"):
        model.segment(half_bright(), ["a cup"])


def test_what_ships_is_opened_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert promptseg.load("nano-shapes").name == "nano-shapes at 320 px"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.onnx", "no such file"),
        ("none.safetensors", "no such file"),
        ("a.txt", "got 'a.txt', wanted a shipped name \\(.*nano-shapes.*\\), or a file named"),
        ("nano-shape", "in a clone of promptseg an experiment's name, too"),
    ],
)
def test_a_name_that_is_no_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        promptseg.load(name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"got a file named \*\.txt, wanted one of \.onnx"):
        promptseg.load(tmp_path / "a.txt")


def test_a_graph_with_another_border_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got inputs image_input"):
        promptseg.load(write_textless_graph(tmp_path / "a.onnx"))


@pytest.mark.parametrize(("phrases", "message"), [([], "got no phrase"), (["a", " . "], "wanted at least one word")])
def test_a_question_without_words_is_refused(graph: Model, phrases: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph.segment(half_bright(), phrases)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"picture: got an array float32 \[4, 4, 3\], wanted uint8 RGB"),
        (np.zeros((4, 4), np.uint8), r"picture: got an array uint8 \[4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"picture: got an array uint8 \[0, 4, 3\]"),
        (3, "picture: got int, wanted a path, a PIL image, or a numpy array"),
        ([half_bright(), None], "picture 1: got NoneType, wanted"),
        ("none.jpg", "none.jpg: got no such file, wanted a picture"),
        (ROOT / "LICENSE", "LICENSE: got bytes that are no known picture format"),
        (Image.new("1", (20_000, 20_000)), "picture: got 20000x20000 px, wanted at most"),
    ],
)
def test_what_is_no_picture_is_refused(graph: Model, picture: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph.segment(picture, ["a cup"])


def test_the_smallest_picture_is_answered(graph: Model) -> None:
    (found,) = graph.segment(np.full((1, 1, 3), 255, np.uint8), ["a cup"])
    assert found.box_xyxy == (0, 0, 1, 1)


@pytest.mark.slow
def test_experiments_and_revisions_are_opened_through_dvc(
    finished_run: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph of each, whatever is in the workspace; one that is in no cache says how to get it."""
    project = copy_run(finished_run[0], tmp_path / "project")
    (before,) = _answers(promptseg.load(project / "models/graphs/model.onnx"))
    dvc(project, "exp", "run", "-S", "res=96", "--name", "larger")
    (after,) = _answers(promptseg.load(project / "models/graphs/model.onnx"))
    git(project, "checkout", "--force", "main")
    assert not np.array_equal(before, after)
    (project / "models/graphs/model.onnx").unlink()
    monkeypatch.chdir(project / "configs")
    assert promptseg.load("larger").name == "graphs of larger"
    for revision, wanted in (("larger", after), ("main", before), ("HEAD", before)):
        np.testing.assert_array_equal(*_answers(promptseg.load(revision)), wanted)
    with pytest.raises(ValueError, match=r"got 'none', wanted .* or an experiment or git revision of .*project"):
        promptseg.load("none")
    with pytest.raises(ValueError, match=r"HEAD~1: got no models/graphs in DVC's cache, nor in"):
        promptseg.load("HEAD~1")


def _answers(model: Model) -> list[np.ndarray]:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    return [found.mask for found in model.segment(picture, ["a cup"])]


def test_one_name_is_all_there_is_to_call() -> None:
    assert promptseg.__all__ == ["load"]
    with pytest.raises(AttributeError, match="module 'promptseg' has no attribute 'ask'"):
        _ = promptseg.ask
    public = {name for name in dir(Model) if not name.startswith("_")}
    assert public == {"segment"}
    assert [field.name for field in fields(Segment) if not field.name.startswith("_")] == [
        *("phrase", "mask", "box_xyxy", "score")
    ]
