"""A folder of one's own pictures: read whole, or every mistake named with its line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import BLUE, HEIGHT, RED, WIDTH, coco, config, lines, write_coco, write_lines, write_pictures
from PIL import Image

from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.records import Picture, Sample, read_pictures, read_samples
from promptseg.params import FolderConfig
from promptseg.sources.build import build_dataset, open_contents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "mine")
    return tmp_path / "mine"


@dataclass(frozen=True)
class Read:
    """What a folder holds."""

    pictures: tuple[Picture, ...]
    samples: tuple[Sample, ...]
    mistakes: tuple[str, ...]


def read_folder(configured: FolderConfig) -> Read:
    with open_contents(configured, None, Path("unused")) as contents:
        return Read(
            tuple(entry.picture for entry in contents.entries),
            tuple(sample for entry in contents.entries for sample in entry.samples),
            tuple(map(str, contents.mistakes.in_order())),
        )


def mistakes(configured: FolderConfig) -> list[str]:
    return list(read_folder(configured).mistakes)


def build(configured: FolderConfig, target: Path, watch: str | None = None) -> tuple[Path, Path, Path]:
    outputs = target / "images", target / "samples.jsonl", target / "objects.jsonl"
    build_dataset(configured, None, watch or configured.path, target / "cache", *outputs)
    return outputs


def test_json_lines_and_coco_say_the_same(folder: Path) -> None:
    ours, theirs = read_folder(write_lines(folder, lines())), read_folder(write_coco(folder, coco()))
    assert not ours.mistakes
    assert (ours.pictures, ours.samples) == (theirs.pictures, theirs.samples)
    assert [(sample.split, sample.phrase_kind) for sample in ours.samples[:2]] == [
        ("train", "short"),
        ("train", "sentence"),
    ]
    assert [len(picture.objects) for picture in ours.pictures] == [2, 2, 2, 2]
    assert ours.samples[0].mask.area == 400


def test_every_way_to_write_a_mask_is_the_same_mask(folder: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 10:30] = 255
    Image.fromarray(mask).save(folder / "red.png")
    counts: list[int] = []
    flat = (mask > 0).T.reshape(-1)
    for value in (False, True) * 25:
        run = int(np.argmax(np.append(flat[sum(counts) :] != value, True)))
        counts.append(run)
        if sum(counts) == flat.size:
            break
    runs = {"size": [HEIGHT, WIDTH], "counts": counts}
    content = lines()
    for line, given in zip(content[::2], (RED, "red.png", runs, RED), strict=True):
        line["mask"] = given
    data = read_folder(write_lines(folder, content))
    assert not data.mistakes
    assert len({sample.mask for sample in data.samples if sample.phrase == "the red square"}) == 1


def test_a_built_folder_is_read_back_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    images, samples, pictures = build(write_lines(folder, lines()), tmp_path / "out")
    read = read_samples(samples)
    assert len(read) == 8
    assert {picture.image for picture in read_pictures(pictures)} == {sample.image for sample in read}
    archives = PictureArchives(images)
    for sample in read:
        assert archives.read(sample.image).read() == (folder / sample.image.partition("/")[2]).read_bytes()
    again = build(write_lines(folder, lines()), tmp_path / "again")
    for one, other in zip(again[1:], (samples, pictures), strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert (images / "val-000.zip").read_bytes() == (again[0] / "val-000.zip").read_bytes()


def test_annotations_without_a_phrase_are_other_objects(folder: Path) -> None:
    content = coco()
    del content["annotations"][1]["phrases"]
    data = read_folder(write_coco(folder, content))
    assert not data.mistakes
    assert len(data.samples) == 7
    assert [len(picture.objects) for picture in data.pictures] == [2, 2, 2, 2]


def test_pictures_without_a_split_are_shared_out_and_stay_where_they_are(tmp_path: Path) -> None:
    """Shares hold on average, and a picture's split does not depend on which others there are."""
    folder = tmp_path / "many"
    write_pictures(folder)
    content = []
    for number in range(60):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 100, 100)).save(folder / f"{number}.png")
        content.append({"image": f"{number}.png", "phrase": "the red square", "mask": RED})
    write_lines(folder, content)
    data = read_folder(config(folder, "phrases.jsonl", val_share=0.3, test_share=0.3))
    assert not data.mistakes
    shares = {
        split: sum(picture.split == split for picture in data.pictures) / 60 for split in ("train", "val", "test")
    }
    assert all(0.15 < share < 0.6 for share in shares.values()), shares
    write_lines(folder, content[:40])
    fewer = read_folder(config(folder, "phrases.jsonl", val_share=0.3, test_share=0.3))
    assert {picture.image for picture in fewer.pictures} <= {picture.image for picture in data.pictures}


Change = Callable[[Path, list[Any]], None]


def setting(key: str, value: Any) -> Change:
    def change(_: Path, content: list[Any]) -> None:
        content[2][key] = value

    return change


def no_json(_: Path, content: list[Any]) -> None:
    content[2] = '{"image": "b.png",'


def no_phrase_key(_: Path, content: list[Any]) -> None:
    del content[2]["phrase"]


def damaged(folder: Path, content: list[Any]) -> None:
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:200])
    del content[3]


def other_size(folder: Path, content: list[Any]) -> None:
    Image.new("L", (WIDTH // 2, HEIGHT), 255).save(folder / "half.png")
    content[2]["mask"] = "half.png"


def said_twice(_: Path, content: list[Any]) -> None:
    content[3]["phrase"] = "The red square"


TEN_KINDS: list[tuple[Change, str]] = [
    (no_json, "phrases.jsonl:3: got text that is not JSON"),
    (no_phrase_key, "phrases.jsonl:3: phrase: missing; wanted image, phrase, mask"),
    (setting("boxes", 1), "phrases.jsonl:3: boxes: unknown; wanted image, phrase, mask"),
    (setting("image", "none.png"), "phrases.jsonl:3: image: got 'none.png', which is not in "),
    (setting("image", "../b.png"), "phrases.jsonl:3: image: got '../b.png', wanted the name of a file inside "),
    (damaged, "phrases.jsonl:3: image: b.png: got a picture that cannot be read"),
    (setting("phrase", " . "), "phrases.jsonl:3: phrase: got the phrase ' . ', wanted at least one word"),
    (setting("phrase", 7), "phrases.jsonl:3: phrase: got 7, wanted text with at least one word"),
    (setting("mask", [[1, 2, 3]]), "phrases.jsonl:3: mask: got the polygon [1, 2, 3], wanted [x, y, x, y, ...]"),
    (setting("mask", "none.png"), "phrases.jsonl:3: mask: got 'none.png', which is not in "),
    (other_size, "phrases.jsonl:3: mask: half.png: got 40x60 px, wanted the picture's 80x60 as it is shown"),
    (setting("mask", [[5, 5, 5, 5, 5, 5]]), "phrases.jsonl:3: mask: got one that covers no pixel"),
    (setting("split", "dev"), "phrases.jsonl:3: split: got 'dev', wanted one of train, val, test"),
    (setting("split", "val"), "phrases.jsonl:4: split: got 'b.png' in val and in train, wanted one split a picture"),
    (said_twice, "phrases.jsonl:4: phrase: got 'The red square' of 'b.png' again, as in phrases.jsonl:3"),
]


@pytest.mark.parametrize(("change", "message"), TEN_KINDS, ids=[message[15:50] for _, message in TEN_KINDS])
def test_a_mistake_is_named_with_its_line(folder: Path, tmp_path: Path, change: Change, message: str) -> None:
    content = lines()
    change(folder, content)
    configured = write_lines(folder, content)
    (found,) = mistakes(configured)
    assert found.startswith(message)
    with pytest.raises(ValueError, match="got 1 mistakes, wanted none: phrases"):
        build(configured, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_mistakes_are_found_at_once(folder: Path) -> None:
    content = lines()
    content[0]["phrase"] = ""
    content[3]["image"] = "none.png"
    content[5] = "["
    assert [text.split(": ")[0] for text in mistakes(write_lines(folder, content))] == [
        "phrases.jsonl:1",
        "phrases.jsonl:4",
        "phrases.jsonl:6",
    ]


def test_a_split_without_a_phrase_is_named(folder: Path) -> None:
    assert mistakes(write_lines(folder, lines()[:6])) == [
        "phrases.jsonl: got no phrase in test, of 3 pictures with phrases, wanted some in each of train, val, test; "
        "name splits, change `val_share` and `test_share`, or add pictures"
    ]


def test_no_file_no_folder_and_no_line_are_named(folder: Path, tmp_path: Path) -> None:
    assert mistakes(config(folder, "none.jsonl"))[0].startswith("annotations: got ")
    assert "which is no folder here" in mistakes(config(tmp_path / "none", "a.jsonl"))[0]
    assert mistakes(write_lines(folder, [])) == [
        "phrases.jsonl: got no annotation with a phrase, wanted at least one in each split"
    ]


def test_a_picture_with_a_mistake_is_named_once(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"none")
    (found,) = mistakes(write_lines(folder, lines()))
    assert found.startswith("phrases.jsonl:3: image: b.png: got bytes that are no known picture format")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "coco.json: got no lists named 'images' and 'annotations'"),
        (
            lambda c: c["annotations"][2].update(image_id=99),
            "coco.json, annotation 2: image_id: got 99, which no image",
        ),
        (
            lambda c: c["images"][1].update(width=60, height=80),
            "coco.json, image 1: width, height: got 60x80, wanted 80x60",
        ),
        (
            lambda c: c["images"][1].update(id=0),
            "coco.json, image number 1: id: got 0 again, as of number 0;",
        ),
        (lambda c: c["annotations"][2].update(phrases=["", "a"]), "coco.json, annotation 2: phrase: got the phrase ''"),
        (lambda c: c["annotations"][2].pop("segmentation"), "coco.json, annotation 2: mask: got the segmentation None"),
    ],
)
def test_a_mistake_in_a_coco_file_is_named_with_its_id(folder: Path, change: Any, message: str) -> None:
    content = coco()
    change(content)
    assert any(text.startswith(message) for text in mistakes(write_coco(folder, content)))


def test_a_folder_that_dvc_does_not_watch_is_refused(folder: Path, tmp_path: Path) -> None:
    configured = write_lines(folder, lines())
    with pytest.raises(
        ValueError, match=r"watch: got 'configs/watch_nothing', wanted .*DVC notices only what it watches"
    ):
        build(configured, tmp_path / "out", watch="configs/watch_nothing")
    assert not (tmp_path / "out").exists()


def test_blue_is_where_it_was_drawn(folder: Path) -> None:
    sample = read_folder(write_lines(folder, lines())).samples[1]
    rows, columns = np.nonzero(sample.mask.to_mask())
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (*BLUE[0][:2], *BLUE[0][4:6])
