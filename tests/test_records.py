"""Records there and back, and masks that survive being run-length encoded."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from promptseg.datasets.preprocess import CANVAS
from promptseg.datasets.records import (
    PHRASE_KINDS,
    SPLITS,
    Picture,
    Prediction,
    Rle,
    Sample,
    read_pictures,
    read_predictions,
    read_samples,
    write_predictions,
    write_records,
)

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))
rles = st.builds(Rle.from_mask, masks)
sizes = st.integers(1, 5000)
samples = st.builds(
    Sample, st.text(), st.sampled_from(SPLITS), st.text(), sizes, sizes, st.text(), st.sampled_from(PHRASE_KINDS), rles
)
pictures = st.builds(Picture, st.text(), st.sampled_from(SPLITS), sizes, sizes, st.lists(rles, max_size=3).map(tuple))


@given(masks)
def test_a_mask_survives(mask: np.ndarray) -> None:
    rle = Rle.from_mask(mask)
    assert rle.to_mask().dtype == bool
    assert (rle.to_mask() == mask).all()
    assert rle.area == mask.sum()
    assert (rle.height, rle.width) == mask.shape


def test_runs_go_down_the_columns() -> None:
    assert Rle.from_mask(np.array([[0, 1], [0, 1]], bool)).counts == "22"  # 2 outside, 2 inside


@given(
    array_shapes(min_dims=2, max_dims=2, max_side=20).flatmap(
        lambda shape: st.lists(arrays(bool, shape), min_size=1, max_size=4)
    )
)
def test_united_masks_are_their_or(several: list[np.ndarray]) -> None:
    united = Rle.united([Rle.from_mask(mask) for mask in several])
    assert united == Rle.from_mask(np.logical_or.reduce(several))


@pytest.mark.parametrize("several", [[], [Rle(1, 2, "2"), Rle(2, 1, "2")]])
def test_masks_of_no_or_of_several_sizes_are_not_united(several: list[Rle]) -> None:
    with pytest.raises(ValueError, match="wanted one size"):
        Rle.united(several)


@given(st.lists(samples, max_size=3))
def test_samples_there_and_back(tmp_path_factory: pytest.TempPathFactory, written: list[Sample]) -> None:
    path = tmp_path_factory.mktemp("records") / "samples.jsonl"
    assert write_records(path, written) == len(written)
    assert read_samples(path) == written


@given(st.lists(pictures, max_size=3))
def test_pictures_there_and_back(tmp_path_factory: pytest.TempPathFactory, written: list[Picture]) -> None:
    path = tmp_path_factory.mktemp("records") / "objects.jsonl"
    assert write_records(path, written) == len(written)
    assert read_pictures(path) == written


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "got no JSON"),
        ("[]", "got a record without 'mask'"),
        ('{"mask": {"height": 1}}', "got other fields"),
        ('{"mask": {"height": 1, "width": 1, "counts": "1"}, "extra": 1}', "got other fields"),
        ('{"mask": null}', "got other fields"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "samples.jsonl"
    good = Sample("1", "train", "a.zip/b.jpg", 1, 1, "cat", "keyword", Rle(1, 1, "1"))
    write_records(path, [good])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=rf"samples.jsonl:2: {message}"):
        read_samples(path)


def test_malformed_pictures_are_refused_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "objects.jsonl").write_text('{"objects": [1]}\n')
    with pytest.raises(ValueError, match=r"objects.jsonl:1: got other fields"):
        read_pictures(tmp_path / "objects.jsonl")


def test_a_failure_while_writing_keeps_the_old_records(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    good = Sample("1", "train", "a.zip/b.jpg", 1, 1, "cat", "keyword", Rle(1, 1, "1"))
    write_records(path, [good])

    def broken():
        yield good
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        write_records(path, broken())
    assert read_samples(path) == [good]
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.jsonl"]


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
