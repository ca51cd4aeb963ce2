"""Answers about a picture of one's own: by a graph and by a checkpoint, with what is known without a truth."""

from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import write_bright_graph, write_textless_graph
from networks import micro_network

from promptseg.checkpoints.checkpoint import Provenance, save_checkpoint
from promptseg.datasets.preprocess import CANVAS, mask_from_canvas, picture_to_canvas
from promptseg.datasets.tokenizer import ClipTokenizer
from promptseg.export.deployed_graph import plain_mask
from promptseg.inference.ask import Answer, Model, ask, open_model

TOKENIZER = ClipTokenizer()
RES = 96


def answer_of(mask: np.ndarray, query: float | None = None, inside: float | None = None) -> Answer:
    return Answer("a cup", mask, query, inside, 1.0)


def half_bright(height: int = 60, width: int = 120) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, width // 2 :] = 255
    return picture


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx"), RES)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "micro.safetensors"
    save_checkpoint(path, micro_network(), Provenance("micro", None, {}, 0, None), torch.float32)
    return path


def test_area_box_and_share_are_those_of_the_mask() -> None:
    mask = np.zeros((50, 80), bool)
    mask[10:20, 30:70] = True
    answer = answer_of(mask, 0.5, 0.8)
    assert (answer.area_pixels, answer.area_share, answer.box_xyxy) == (400, 0.1, (30, 10, 70, 20))
    assert answer.confidence == pytest.approx(0.4)


def test_of_an_empty_mask_there_is_no_box_and_no_confidence() -> None:
    answer = answer_of(np.zeros((5, 8), bool), 0.9, None)
    assert (answer.area_pixels, answer.box_xyxy, answer.confidence) == (0, None, None)


def test_a_graph_answers_at_the_pictures_size_and_knows_no_confidence(graph: Model) -> None:
    first, second = ask(graph, TOKENIZER, half_bright(), ["a cup", "a dog"])
    assert first.mask.shape == (60, 120)
    assert first.box_xyxy == (60, 0, 120, 60)
    assert (first.phrase, second.phrase) == ("a cup", "a dog")
    assert first.confidence is None
    assert "checkpoint" in graph.why_no_confidence


def test_a_checkpoint_decides_as_the_network_does_and_says_how_sure(weights: Path) -> None:
    """Oracle: `plain_mask`, the network's own code, a phrase at a time."""
    picture = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    phrases = ["the red cup", "a dog on the left of the house"]
    model = open_model(weights, RES)
    answers = ask(model, TOKENIZER, picture, phrases)
    canvas = torch.from_numpy(picture_to_canvas(picture)[None].astype(np.float32))
    network = micro_network()
    for phrase, answer in zip(phrases, answers, strict=True):
        with torch.inference_mode():
            wanted = plain_mask(network, canvas, torch.from_numpy(TOKENIZER.encode(phrase)), RES).numpy()
        assert np.mean(answer.mask != mask_from_canvas(wanted, 70, 100)) < 1e-3
        assert answer.query_probability is not None
        assert 1 / 6 <= answer.query_probability <= 1  # the best of six queries
        if answer.area_pixels:
            assert answer.mask_probability is not None
            assert 0.5 < answer.mask_probability <= 1  # only pixels above one half count
    assert not model.why_no_confidence


def test_phrases_together_are_answered_as_each_alone(weights: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (50, 50, 3), np.uint8)
    model = open_model(weights, RES)
    together = ask(model, TOKENIZER, picture, ["a cup", "a dog"])
    alone = [ask(model, TOKENIZER, picture, [phrase])[0] for phrase in ("a cup", "a dog")]
    for one, other in zip(together, alone, strict=True):
        assert np.mean(one.mask != other.mask) < 1e-3
        assert one.query_probability == pytest.approx(other.query_probability, abs=1e-5)


def test_masks_that_are_no_numbers_are_an_error_and_no_empty_answer(tmp_path: Path) -> None:
    network = micro_network()
    with torch.no_grad():
        network.mask_decoder.class_projection.fill_(float("nan"))
        for parameter in network.pixel_decoder.parameters():
            parameter.fill_(float("nan"))
    save_checkpoint(tmp_path / "nan.safetensors", network, Provenance("micro", None, {}, 0, None), torch.float32)
    model = open_model(tmp_path / "nan.safetensors", RES)
    with pytest.raises(ValueError, match="got masks that are no numbers"):
        ask(model, TOKENIZER, half_bright(), ["a cup"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.onnx", "no such file"), ("none.safetensors", "no such file"), ("a.txt", "wanted one of .onnx")],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_model(tmp_path / name, RES)


def test_a_graph_with_another_border_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got inputs image_input"):
        open_model(write_textless_graph(tmp_path / "a.onnx"), RES)


@pytest.mark.parametrize(("phrases", "message"), [([], "got no phrase"), (["a", " . "], "wanted at least one word")])
def test_a_question_without_words_is_refused(graph: Model, phrases: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(graph, TOKENIZER, half_bright(), phrases)


def test_the_canvas_is_what_the_graph_sees(graph: Model) -> None:
    """A picture that is half bright fills the canvas to half its height only: what lies below stays outside."""
    canvas = picture_to_canvas(half_bright())[None].astype(np.float32)
    (decision,) = graph.decide(canvas, TOKENIZER.encode_all(["a cup"]))
    assert decision.mask.shape == (CANVAS, CANVAS)
    assert not decision.mask[CANVAS // 2 :].any()
