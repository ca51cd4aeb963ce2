import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptseg.datasets.predictions import Prediction, read_predictions, write_predictions
from promptseg.datasets.preprocess import CANVAS
from promptseg.datasets.records import Rle

EMPTY = Rle.from_mask(np.zeros((CANVAS, CANVAS), bool))


def box(top, left):
    mask = np.zeros((CANVAS, CANVAS), bool)
    mask[top : top + 50, left : left + 80] = True
    return mask


@given(ids=st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=5))
def test_what_is_written_is_read(ids, tmp_path_factory):
    path = tmp_path_factory.mktemp("predictions") / "predictions.jsonl"
    assert write_predictions(path, (Prediction(each, EMPTY) for each in ids)) == len(ids)
    assert read_predictions(path) == dict.fromkeys(ids, EMPTY)


def test_masks_survive(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [Prediction("a", Rle.from_mask(box(3, 7))), Prediction("b", Rle.from_mask(box(500, 900)))])
    read = read_predictions(path)
    assert list(read) == ["a", "b"]
    assert np.array_equal(read["b"].to_mask(), box(500, 900))


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [Prediction("a", EMPTY)])

    def breaks_off():
        yield Prediction("b", EMPTY)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(path, breaks_off())
    assert list(read_predictions(path)) == ["a"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="got a mask of 480x640, wanted the 1024x1024 canvas"):
        Prediction("a", Rle.from_mask(np.zeros((480, 640), bool)))


def test_a_sample_twice_is_refused_on_writing(tmp_path):
    with pytest.raises(ValueError, match="two predictions for sample 'a'"):
        write_predictions(tmp_path / "p.jsonl", [Prediction("a", EMPTY), Prediction("a", EMPTY)])


def test_a_sample_twice_is_refused_on_reading(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, [Prediction("a", EMPTY)])
    path.write_text(path.read_text() * 2)
    with pytest.raises(ValueError, match=r"p.jsonl:2: got sample 'a' twice"):
        read_predictions(path)


@pytest.mark.parametrize("line", ["{", "[1]", "7", '{"sample_id": "b"}', '{"sample_id": "b", "mask": {"height": 1}}'])
def test_a_malformed_line_is_named(line, tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, [Prediction("a", EMPTY)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"p.jsonl:2: got a line that is no prediction"):
        read_predictions(path)
