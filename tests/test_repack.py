"""From annotated pictures to records: which split, whose masks, which phrases; and the one writer of the artefacts."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_data import config, write_lines

from promptseg.datasets.records import SPLITS, Picture, Rle, read_pictures, read_samples
from promptseg.sources.build import open_contents
from promptseg.sources.checks import Mistakes
from promptseg.sources.coco import segmentation_to_rle
from promptseg.sources.repack import (
    Annotated,
    Entry,
    FileStore,
    Marked,
    Phrases,
    Rules,
    assemble,
    phrase_kind,
    split_of,
    write_dataset,
)
from tests.referring import HEIGHT, TARGET, WIDTH, jpeg
from tests.test_lpcvc import CONFIG as LPCVC
from tests.test_lpcvc import as_folder, tables

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(digests, st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_a_split_depends_on_the_bytes_alone_and_grows_with_its_share(sha256: str, val: float, test: float) -> None:
    split = split_of(sha256, val, test)
    assert split in SPLITS
    assert split_of(sha256, val, test) == split
    if split == "test":
        assert split_of(sha256, val, test + 0.1) == "test"


def test_shares_are_met_on_the_whole() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(split_of(rng.bytes(32).hex(), 0.1, 0.2) for _ in range(5000))
    assert abs(counts["val"] / 5000 - 0.1) < 0.02
    assert abs(counts["test"] / 5000 - 0.2) < 0.02


def test_every_reader_sorts_the_same_picture_into_the_same_split(tmp_path: Path) -> None:
    """For the same shares, whatever a picture is called: the two ways to split are one."""
    content = tables()
    as_folder(content, tmp_path / "mirror")
    mine = tmp_path / "mine"
    mine.mkdir()
    said = []
    for number, encoded in enumerate(content["files"].values()):
        (mine / f"mine-{number}.jpg").write_bytes(encoded)
        said.append({"image": f"mine-{number}.jpg", "phrase": "the box", "mask": [TARGET]})
    write_lines(mine, said)
    of_bytes: list[dict[bytes, str]] = []
    for configured, mirror in (
        (LPCVC, str(tmp_path / "mirror")),
        (config(mine, "phrases.jsonl", val_share=LPCVC.val_share, test_share=LPCVC.test_share), None),
    ):
        with open_contents(configured, mirror, tmp_path / "cache") as contents:
            assert not contents.mistakes.found
            of_bytes.append({contents.store.read(entry.file_name): entry.picture.split for entry in contents.entries})
    lpcvc, folder = of_bytes
    assert len(lpcvc) == len(folder) - 1 == 12  # one picture of the export has no phrase
    assert lpcvc.items() <= folder.items()
    assert set(lpcvc.values()) == set(SPLITS)


@pytest.mark.parametrize(
    ("phrase", "kind"),
    [("dog", "keyword"), ("red car", "keyword"), ("the red car", "short"), ("man in a blue shirt", "short"),
     ("the man in a blue shirt", "sentence")],
)  # fmt: skip
def test_the_kind_of_a_phrase(phrase: str, kind: str) -> None:
    assert phrase_kind(phrase) == kind


def annotated(name: str, split: Any, **changes: Any) -> Annotated:
    marked = Marked(1, f"object of {name}", lambda height, width: segmentation_to_rle([TARGET], height, width))
    phrases = Phrases(f"phrase of {name}", (1,), ((f"{name}-1", f"the box of {name}"),))
    one = Annotated(f"picture {name}", name, name, split, None, "shown", (marked,), (phrases,))
    return replace(one, **changes)


def assembled(tmp_path: Path, files: dict[str, bytes], several: list[Annotated], rules: Rules) -> tuple[Any, Mistakes]:
    paths = {name: tmp_path / name for name in files}
    for name, encoded in files.items():
        paths[name].write_bytes(encoded)
    mistakes = Mistakes()
    return assemble(several, FileStore("here", paths), rules, mistakes), mistakes


THREE = {"a": jpeg(1), "b": jpeg(2), "c": jpeg(3)}


def test_copies_share_a_split_or_are_a_mistake(tmp_path: Path) -> None:
    files = {**THREE, "copy of a": THREE["a"]}
    several = [annotated(name, split) for name, split in zip(files, ("train", "val", "test", None), strict=True)]
    entries, mistakes = assembled(tmp_path, files, several, Rules("x"))
    assert not mistakes.found
    assert {entry.file_name: entry.picture.split for entry in entries}["copy of a"] == "train"
    several[3] = annotated("copy of a", "val")
    _, mistakes = assembled(tmp_path, files, several, Rules("x"))
    (found,) = mistakes.found
    assert str(found).startswith("picture a: split: got 'a' in train and 'copy of a', byte for byte the same, in val")


def test_of_published_data_the_copy_in_train_is_left_out_and_told(tmp_path: Path) -> None:
    files = {**THREE, "d": jpeg(4), "copy of b": THREE["b"]}
    splits = ("train", "val", "test", "train", "train")
    several = [annotated(name, split) for name, split in zip(files, splits, strict=True)]
    entries, mistakes = assembled(tmp_path, files, several, Rules("x", published=True))
    assert not mistakes.found
    assert dict(mistakes.left_out) == {"of train: byte for byte a picture of val": ["picture copy of b"]}
    assert {entry.file_name for entry in entries} == {"a", "b", "c", "d"}


def phrases_of(*said: tuple[int, str]) -> dict[str, Any]:
    objects = tuple(
        Marked(key, f"object {key}", lambda height, width: segmentation_to_rle([TARGET], height, width))
        for key in sorted({key for key, _ in said})
    )
    phrases = tuple(Phrases(f"object {key}", (key,), ((f"{at}", phrase),)) for at, (key, phrase) in enumerate(said))
    return {"objects": objects, "phrases": phrases}


@pytest.mark.parametrize("other", ["the red box", "The  red box.", "the red&nbsp;box", " THE RED BOX"])
def test_a_phrase_of_two_objects_is_a_mistake_however_it_is_written(tmp_path: Path, other: str) -> None:
    several = [
        annotated("a", "train", **phrases_of((1, "the red box"), (2, other))),
        annotated("b", "val"),
        annotated("c", "test"),
    ]
    _, mistakes = assembled(tmp_path, THREE, several, Rules("x"))
    (found,) = mistakes.found
    assert str(found) == (f"object 2: phrase: got {other!r} of 'a' again, as in object 1; a phrase means one object")


def test_of_published_data_a_phrase_of_two_objects_is_left_out_and_told(tmp_path: Path) -> None:
    said = phrases_of((1, "box"), (2, "Box"), (1, "left box"), (1, "left box"))
    several = [annotated("a", "train", **said), annotated("b", "val"), annotated("c", "test")]
    entries, mistakes = assembled(tmp_path, THREE, several, Rules("x", published=True))
    assert not mistakes.found
    assert dict(mistakes.left_out) == {"a phrase that means two objects of its picture": ["object 2: 'Box'"]}
    assert [sample.phrase for sample in entries[0].samples] == ["left box", "left box"]  # of one object: published


def test_samples_of_one_name_are_a_mistake(tmp_path: Path) -> None:
    twice = Phrases("phrase", (1,), (("a-1", "another"),))
    one = annotated("a", "train")
    several = [replace(one, phrases=(*one.phrases, twice)), annotated("b", "val"), annotated("c", "test")]
    _, mistakes = assembled(tmp_path, THREE, several, Rules("x"))
    assert str(mistakes.found[0]) == "x: got the sample 'a-1' 2 times, wanted distinct ids and attributes"


TURNED = np.zeros((HEIGHT, WIDTH), bool)
TURNED[4:12, 2:10] = True
SHOWN, STORED = (WIDTH, HEIGHT), (HEIGHT, WIDTH)  # (height, width) of a picture that EXIF turns by a quarter


@pytest.mark.parametrize(
    ("orientation", "claimed", "expected"),
    [
        (1, STORED, TURNED),
        (3, STORED, TURNED),  # annotated as it is shown, as CVAT has it: the mask stays
        (2, STORED, TURNED),
        (6, SHOWN, None),
        (6, STORED, np.rot90(TURNED, -1)),  # its size says that pixels count as stored
        (8, STORED, np.rot90(TURNED)),
    ],
)
def test_masks_of_the_challenges_layout_are_as_shown_unless_the_size_says_stored(
    tmp_path: Path, orientation: int, claimed: tuple[int, int], expected: Any
) -> None:
    files = {**THREE, "a": jpeg(1, orientation)}
    several = [annotated("a", "train", claimed=claimed, frame="either"), annotated("b", "val"), annotated("c", "test")]
    entries, mistakes = assembled(tmp_path, files, several, Rules("x"))
    assert not mistakes.found
    got = entries[0].samples[0].mask.to_mask()
    shown = segmentation_to_rle([TARGET], *SHOWN).to_mask()
    assert (got == (shown if expected is None else expected)).all()
    assert got.shape == (entries[0].picture.height, entries[0].picture.width)


def test_a_turned_picture_is_refused_where_nothing_tells_how_its_mask_counts(tmp_path: Path) -> None:
    """Upside down its size tells nothing, and another picture of the export is annotated as it is stored."""
    files = {"a": jpeg(1, 6), "b": jpeg(2, 3), "c": jpeg(3)}
    several = [
        annotated(name, split, claimed=STORED, frame="either") for name, split in zip(files, SPLITS, strict=True)
    ]
    _, mistakes = assembled(tmp_path, files, several, Rules("x"))
    (found,) = mistakes.found
    assert str(found).startswith("picture b: got EXIF orientation 3, and other pictures annotated as they are stored")


@pytest.mark.parametrize("frame", ["shown", "stored", "either"])
def test_a_size_that_is_no_ones_is_a_mistake(tmp_path: Path, frame: Any) -> None:
    several = [annotated("a", "train", claimed=(7, 9), frame=frame), annotated("b", "val"), annotated("c", "test")]
    _, mistakes = assembled(tmp_path, THREE, several, Rules("x"))
    (found,) = mistakes.found
    assert str(found).startswith("picture a: width, height: got 9x7, wanted 30x20 px as the picture is ")


def test_what_is_written_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    rle = Rle.from_mask(TURNED)
    places = [tmp_path / name for name in ("images", "samples.jsonl", "objects.jsonl")]

    def contents(fails: bool) -> Any:
        for split in SPLITS:
            yield split.encode(), Entry("x", Picture(f"{split}.zip/x.jpg", split, HEIGHT, WIDTH, (rle,)), ())
        if fails:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_dataset(contents(fails=True), *places)
    assert list(tmp_path.iterdir()) == []
    write_dataset(contents(fails=False), *places)
    assert [picture.image for picture in read_pictures(places[2])] == [f"{split}.zip/x.jpg" for split in SPLITS]
    assert sorted(path.name for path in places[0].iterdir()) == ["test.zip", "train.zip", "val.zip"]
    assert read_samples(places[1]) == []
