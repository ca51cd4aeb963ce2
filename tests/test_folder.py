"""A folder of one's own pictures: read whole, or every mistake named with its line."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    with pytest.raises(ValueError, match="got 1 mistake, wanted none: phrases"):
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


def linked(folder: Path, link: Callable[[Path, Path], None]) -> str:
    link(folder / "link.png", folder / "b.png")
    return "link.png"


SPELLED: dict[str, Callable[[Path], str]] = {
    "dot": lambda _: "./b.png",
    "two slashes": lambda _: ".//b.png",
    "symbolic link": lambda folder: linked(folder, Path.symlink_to),
    "hard link": lambda folder: linked(folder, Path.hardlink_to),
}


@pytest.mark.parametrize("spell", SPELLED.values(), ids=SPELLED)
def test_one_file_is_one_picture_however_it_is_spelled(folder: Path, spell: Callable[[Path], str]) -> None:
    def read(content: list[Any]) -> Read:
        return read_folder(replace(write_lines(folder, content), val_share=0.3, test_share=0.3))

    content = [{key: value for key, value in line.items() if key != "split"} for line in lines()]
    plain = read(content)
    content[3]["image"] = spell(folder)
    assert not plain.mistakes
    assert read(content) == plain
    said_twice = [*content[:3], {**content[3], "phrase": content[2]["phrase"]}, *content[4:]]
    (found,) = read(said_twice).mistakes
    assert found.startswith("phrases.jsonl:4: phrase: got 'the red square' of 'b.png' again, as in phrases.jsonl:3")
    two_splits = [*content[:2], {**content[2], "split": "train"}, {**content[3], "split": "val"}, *content[4:]]
    (found,) = read(two_splits).mistakes
    assert found.startswith("phrases.jsonl:4: split: got 'b.png' in train and in val, wanted one split a picture")


def test_a_picture_and_its_copy_share_a_split(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "b.png").read_bytes())
    content = [*lines(), {"image": "copy.png", "phrase": "the red square", "mask": RED}]
    data = read_folder(write_lines(folder, content))
    assert not data.mistakes
    assert [sample.split for sample in data.samples if "copy" in sample.image] == ["train"]
    content[-1]["split"] = "test"
    (found,) = mistakes(write_lines(folder, content))
    assert found.startswith(
        "phrases.jsonl:3: split: got 'b.png' in train and 'copy.png', byte for byte the same, in test"
    )


@pytest.mark.parametrize("phrase", ["\t", "\u3000", "&nbsp;", "\u200b", "the cup \ud83d", "…"])
@pytest.mark.parametrize("write", [write_lines, write_coco])
def test_a_phrase_that_the_tokenizer_makes_nothing_of_is_named_with_its_line(
    folder: Path, phrase: str, write: Callable[[Path, Any], FolderConfig]
) -> None:
    if write is write_lines:
        content: Any = lines()
        content[2]["phrase"] = phrase
        where = "phrases.jsonl:3"
    else:
        content = coco()
        content["annotations"][2]["phrases"] = [phrase]
        where = "coco.json, annotation 2"
    (found,) = mistakes(write(folder, content))
    assert found.startswith(f"{where}: phrase: got the phrase {phrase!r}, wanted ")


def test_a_phrase_of_500_words_is_no_mistake(folder: Path) -> None:
    """The tokenizer cuts it, and says so."""
    content = lines()
    content[2]["phrase"] = "red " * 500
    assert not mistakes(write_lines(folder, content))


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n\n", b"\r"])
def test_windows_files_are_read(folder: Path, ending: bytes) -> None:
    configured = write_lines(folder, lines())
    plain = read_folder(configured)
    path = folder / "phrases.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", ending))
    assert not plain.mistakes
    assert [sample.sample_id for sample in read_folder(configured).samples] == [s.sample_id for s in plain.samples]


def test_line_separators_inside_a_phrase_are_no_new_line(folder: Path) -> None:
    content = lines()
    content[2]["phrase"] = "the red\u2028square\x0b\x85 here"
    path = folder / "phrases.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content), encoding="utf-8")
    assert not mistakes(config(folder, "phrases.jsonl"))


WHOLE_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "got no annotation with a phrase"),
    "an array": (json.dumps([{"image": "a.png"}]).encode(), "phrases.jsonl: got an array, wanted one object a line"),
    "an array over lines": (b"[\n{},\n{}\n]\n", "phrases.jsonl: got an array, wanted one object a line"),
    "utf-16": ("{}".encode("utf-16"), "phrases.jsonl: got text in UTF-16, wanted UTF-8"),
    "nested": (b'{"image": ' + b"[" * 100_000, "phrases.jsonl:1: got text nested too deep to read"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "phrases.jsonl:1: got bytes that are not UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), WHOLE_FILES.values(), ids=WHOLE_FILES)
def test_a_file_of_something_else_is_named(folder: Path, content: bytes, message: str) -> None:
    (folder / "phrases.jsonl").write_bytes(content)
    assert message in mistakes(config(folder, "phrases.jsonl"))[0]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"7", b'{"images": {}, "annotations": []}', b"[" * 100_000, b'{"images": []}']
)
def test_a_coco_file_of_something_else_is_named(folder: Path, content: bytes) -> None:
    (folder / "coco.json").write_bytes(content)
    assert mistakes(config(folder, "coco.json"))[0].startswith("coco.json: got ")


def in_place(name: str, make: Callable[[Path], object]) -> Change:
    def change(folder: Path, content: list[Any]) -> None:
        make(folder / name)
        content[2]["image"] = name
        content[3]["image"] = "a.png"
        content[3]["phrase"] = "something else"

    return change


STRANGE: list[tuple[Change, str]] = [
    (setting("image", "x" * 300 + ".png"), "phrases.jsonl:3: image: got 'xxx"),
    (setting("mask", "x" * 300 + ".png"), "phrases.jsonl:3: mask: got 'xxx"),
    (setting("image", {"a": 1}), "phrases.jsonl:3: image: got {'a': 1}, wanted the name of a file"),
    (setting("image", "a\0.png"), "phrases.jsonl:3: image: got 'a\\x00.png', wanted the name of a file"),
    (setting("image", "\ud83d.png"), "phrases.jsonl:3: image: got '\\ud83d.png', wanted the name of a file"),
    (setting("phrase", {"a": [1]}), "phrases.jsonl:3: phrase: got {'a': [1]}, wanted text"),
    (setting("split", ["train"]), "phrases.jsonl:3: split: got ['train'], wanted one of train, val, test"),
    (setting("mask", [[10**400, 1, 2, 2, 3, 3]]), "phrases.jsonl:3: mask: got the polygon [10000"),
    (setting("mask", [[True, 1, 2, 2, 3, 3]]), "phrases.jsonl:3: mask: got the polygon [True"),
    (setting("mask", {"size": [60, 80], "counts": [10**400]}), "phrases.jsonl:3: mask: got the run lengths"),
    (setting("mask", {"size": [60, 80], "counts": "\ud83d"}), "phrases.jsonl:3: mask: got the run lengths"),
    (in_place("folder.png", Path.mkdir), "phrases.jsonl:3: image: got 'folder.png', which is not in "),
    (in_place("empty.png", Path.touch), "phrases.jsonl:3: image: empty.png: got bytes that are no known picture"),
    (in_place("loop.png", lambda path: path.symlink_to(path)), "phrases.jsonl:3: image: got 'loop.png', which "),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), STRANGE, ids=[message[15:50] for _, message in STRANGE])
def test_a_strange_value_is_a_mistake_like_others(folder: Path, change: Change, message: str) -> None:
    content = lines()
    change(folder, content)
    assert mistakes(write_lines(folder, content))[0].startswith(message)


def test_what_cannot_be_opened_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured = write_lines(folder, lines())
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    (found,) = mistakes(configured)
    assert found.startswith("phrases.jsonl:3: image: ")
    assert "b.png: cannot be read (Permission denied)" in found


@pytest.mark.parametrize("call", ["is_dir", "read_bytes"])
def test_annotations_that_cannot_be_opened_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    configured = write_lines(folder, lines())

    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, call, refuse)
    (found,) = mistakes(configured)
    assert found.startswith("annotations: got ")
    assert "phrases.jsonl, which cannot be read (Permission denied); correct its permissions" in found


@pytest.mark.parametrize("write", [write_lines, write_coco])
def test_a_phrase_means_one_object_in_either_file(folder: Path, write: Callable[[Path, Any], FolderConfig]) -> None:
    content: Any = lines() if write is write_lines else coco()
    if write is write_lines:
        content[3]["phrase"] = "The red square."
    else:
        content["annotations"][3]["phrases"] = ["The red square."]
    (found,) = mistakes(write(folder, content))
    assert "phrase: got 'The red square.' of 'b.png' again, as in " in found


def test_phrases_in_cvats_attributes_are_pointed_at(folder: Path) -> None:
    content = coco()
    for annotation in content["annotations"]:
        annotation["attributes"] = {"text": annotation.pop("phrases")[0], "occluded": False, "empty": ""}
    assert mistakes(write_coco(folder, content)) == [
        "coco.json: got no phrase in 8 annotations, wanted 'phrase' or 'phrases' in some, beside 'segmentation'; text "
        "stands in their attributes ['text']: read the export with `kind: lpcvc`"
    ]


def test_a_phrase_under_both_names_is_a_mistake(folder: Path) -> None:
    content = coco()
    content["annotations"][2]["phrase"] = "another"
    assert mistakes(write_coco(folder, content))[0].startswith("coco.json, annotation 2: got 'phrase' and 'phrases'")


def test_all_mistakes_of_a_coco_file_are_found_at_once(folder: Path) -> None:
    content = coco()
    content["images"][0]["id"] = 0.5
    content["images"].append({"id": 9, "file_name": "./b.png"})
    content["annotations"][2]["id"] = content["annotations"][3]["id"]
    content["annotations"][4]["segmentation"] = "none.png"
    content["annotations"][6]["phrases"] = "\t"
    found = mistakes(write_coco(folder, content))
    assert [text.split(": ")[:2] for text in found] == [
        ["coco.json, annotation 0", "image_id"],
        ["coco.json, annotation 1", "image_id"],
        ["coco.json, annotation 4", "mask"],
        ["coco.json, annotation 6", "phrase"],
        ["coco.json, annotation number 3", "id"],
        ["coco.json, image 9", "file_name"],
        ["coco.json, image number 0", "id"],
    ]
