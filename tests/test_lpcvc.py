"""The challenge's layout, as a folder and as a zip: what is written, and each way in which it can be wrong."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import read_picture
from promptseg.datasets.records import SPLITS, read_pictures, read_samples
from promptseg.files import sha256_of
from promptseg.params import LpcvcConfig, Source
from promptseg.sources.build import build_dataset
from tests.fault_server import Files, serving
from tests.referring import HEIGHT, OTHER, TARGET, WIDTH, Tables, jpeg

CONFIG = LpcvcConfig("lpcvc", Source("lpcvc.zip", None, None, None), None, 0.3, 0.3)
PICTURES = 12
EXPECTED = np.zeros((HEIGHT, WIDTH), bool)
EXPECTED[4:12, 2:10] = True


def tables() -> Tables:
    """Pictures with a target that has two phrases and a distractor that has none, and one picture without phrases."""
    names = {n: f"{n:06d}.jpg" for n in range(1, PICTURES + 2)}
    attributes = {"occluded": False, "rotation": 0.0, "text_1": "red box ", "text_2": "the red box on the left"}
    annotations = []
    for n in names:
        said = attributes if n <= PICTURES else {"occluded": True, "text_1": ""}
        annotations.append({"id": 10 * n, "image_id": n, "segmentation": [TARGET], "attributes": said})
        annotations.append({"id": 10 * n + 1, "image_id": n, "segmentation": [OTHER], "attributes": {"text_1": "."}})
    return {
        "files": {f"images/default/{name}": jpeg(n) for n, name in names.items()},
        "images": [{"id": n, "file_name": name, "height": HEIGHT, "width": WIDTH} for n, name in names.items()],
        "annotations": annotations,
    }


def members(content: Tables, root: str = "") -> dict[str, bytes]:
    instances = {"categories": [], "images": content["images"], "annotations": content["annotations"]}
    files = {**content["files"], "annotations/instances_default.json": json.dumps(instances).encode()}
    return {root + name: data for name, data in files.items()}


def as_folder(content: Tables, mirror: Path, root: str = "") -> None:
    for name, data in members(content, root).items():
        (mirror / "lpcvc" / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / "lpcvc" / name).write_bytes(data)


def as_zip(content: Tables, mirror: Path, root: str = "") -> None:
    mirror.mkdir(exist_ok=True)
    with zipfile.ZipFile(mirror / "lpcvc.zip", "w") as archive:
        for name, data in members(content, root).items():
            archive.writestr(name, data)


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Write tables to a mirror, build from it, return the folder with `images`, `samples` and `pictures`."""

    def run(content: Tables, write: Callable[..., None] = as_zip, root: str = "", **changes: Any) -> Path:
        write(content, tmp_path / "mirror", root)
        return build_from(str(tmp_path / "mirror"), tmp_path, **changes)

    return run


def build_from(mirror: Any, folder: Path, **changes: Any) -> Path:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    paths = (out / name for name in ("images", "samples", "pictures"))
    build_dataset(replace(CONFIG, **changes), mirror, str(folder), folder / "cache", *paths)
    return out


@pytest.mark.parametrize("write", [as_folder, as_zip])
@pytest.mark.parametrize("root", ["", "export/"])
def test_what_is_written(build: Callable[..., Path], write: Callable[..., None], root: str) -> None:
    content = tables()
    out = build(content, write, root)
    samples, pictures = read_samples(out / "samples"), read_pictures(out / "pictures")
    assert len(pictures) == PICTURES
    assert len(samples) == 2 * PICTURES
    assert {sample.split for sample in samples} == set(SPLITS)
    by_id = {sample.sample_id: sample for sample in samples}
    assert by_id["20-text_1"].phrase == "red box"
    assert by_id["20-text_2"].phrase == "the red box on the left"
    assert [by_id[f"20-text_{n}"].phrase_kind for n in (1, 2)] == ["keyword", "sentence"]
    assert all((sample.mask.to_mask() == EXPECTED).all() for sample in samples)
    assert all(len(picture.objects) == 2 for picture in pictures)
    archives = PictureArchives(out / "images")
    for picture in pictures:
        shard, _, name = picture.image.partition("/")
        assert shard == f"{picture.split}-000.zip"
        assert archives.read(picture.image).getvalue() == content["files"][f"images/default/{name}"]


def test_a_folder_and_a_zip_make_the_same_bytes(build: Callable[..., Path], tmp_path: Path) -> None:
    def sums(write: Callable[..., None]) -> list[str]:
        return [sha256_of(path) for path in sorted(build(tables(), write).rglob("*")) if path.is_file()]

    assert sums(as_zip) == sums(as_folder)
    assert (tmp_path / "mirror" / "lpcvc").is_dir()  # the second time, the folder was read


def test_a_zip_comes_from_an_address(build: Callable[..., Path], tmp_path: Path) -> None:
    build(tables())
    zipped = (tmp_path / "mirror" / "lpcvc.zip").read_bytes()
    with serving(Files({"/lpcvc.zip": zipped})) as server:
        out = build_from(server.address, tmp_path)
    assert len(read_pictures(out / "pictures")) == PICTURES


def test_only_attributes_that_are_named_are_phrases(build: Callable[..., Path]) -> None:
    samples = read_samples(build(tables(), phrase_attributes=("text_2",)) / "samples")
    assert {sample.phrase for sample in samples} == {"the red box on the left"}


def test_an_attribute_that_no_annotation_has_is_refused(build: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"phrase_attributes: got 'text2', wanted one of .*'text_2'"):
        build(tables(), phrase_attributes=("text_1", "text2"))


def test_an_attribute_may_hold_several_phrases(build: Callable[..., Path]) -> None:
    content = tables()
    content["annotations"][0]["attributes"] = {"text": ["one", "", "two", 3]}
    samples = {sample.sample_id: sample.phrase for sample in read_samples(build(content) / "samples")}
    assert (samples["10-text"], samples["10-text-1"]) == ("one", "two")


def of_all(**attributes: Any) -> Callable[[Tables], None]:
    def spoil(content: Tables) -> None:
        for annotation in content["annotations"]:
            annotation["attributes"] = attributes

    return spoil


def of_first(table: str, **fields: Any) -> Callable[[Tables], None]:
    return lambda content: content[table][0].update(fields)


def without_pictures(content: Tables) -> None:
    content["files"] = {}


def with_three(content: Tables) -> None:
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][:2]


@pytest.mark.parametrize("write", [as_folder, as_zip])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            of_all(occluded=True, score=3),
            r"got no phrase in 26 annotations, whose attributes are \['occluded', 'score'\]",
        ),
        (of_first("annotations", attributes=["red"]), "annotation 10: attributes: got .*, wanted a mapping"),
        (of_first("annotations", segmentation=[]), "annotation 10: mask: got one that covers no pixel"),
        (of_first("annotations", segmentation=3), "annotation 10: mask: got the segmentation 3"),
        (of_first("annotations", image_id=99), "annotation 10: image_id: got 99, which no image has"),
        (of_first("images", width=31), "image 1: width, height: got 31x20, wanted 30x20 px as the picture is shown"),
        (of_first("images", file_name="x.jpg"), "image 1: image: got 'images/default/x.jpg', which is not in "),
        (
            of_first("images", file_name="../x.jpg"),
            r"image 1: file_name: got '../x.jpg', wanted the name of a file",
        ),
        (without_pictures, "image 1: image: got 'images/default/000001.jpg', which is not in"),
        (
            with_three,
            r"got no phrase in .* of 1 pictures with phrases, wanted some in each of .*; .*change `val_s",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    build: Callable[..., Path],
    tmp_path: Path,
    write: Callable[..., None],
    spoil: Callable[[Tables], None],
    message: str,
) -> None:
    content = tables()
    spoil(content)
    with pytest.raises(ValueError, match=message):
        build(content, write)
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_mirror_it_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mirror: got null, wanted a place that has 'lpcvc.zip'"):
        build_from(None, tmp_path)
    with pytest.raises(ValueError, match=r"this mirror has no 'lpcvc.zip'"):
        build_from(str(tmp_path), tmp_path)


@pytest.mark.parametrize("count", [0, 2])
def test_an_export_without_its_one_table_is_refused(tmp_path: Path, count: int) -> None:
    (tmp_path / "lpcvc").mkdir()
    for number in range(count):
        as_folder(tables(), tmp_path, f"{number}/")
    with pytest.raises(ValueError, match=r"wanted one annotations/instances_default.json; export it as COCO"):
        build_from(str(tmp_path), tmp_path)


def first_picture(content: Tables, encoded: bytes) -> None:
    content["files"]["images/default/000001.jpg"] = encoded


def huge(side: int) -> bytes:
    """A white PNG of 1 bit a pixel, which takes little memory to make."""
    stream = io.BytesIO()
    Image.new("1", (side, side), 1).save(stream, "PNG")
    return stream.getvalue()


def merged_exports(table: str) -> Callable[[Tables], None]:
    return lambda content: content[table].extend([dict(record) for record in content[table]])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (merged_exports("annotations"), "got 26 mistakes, .*annotation number 26: id: got 10 again, as of number 0;"),
        (merged_exports("images"), "got 13 mistakes, .*image number 13: id: got 1 again, as of number 0;"),
        (of_first("annotations", id=10.0), "annotation number 0: id: got 10.0, wanted a whole number"),
        (of_first("annotations", id=True), "annotation number 0: id: got True, wanted a whole number"),
        (of_first("annotations", id={"$oid": 1}), "annotation number 0: id: got {'.oid': 1}, wanted a whole number"),
        (of_first("annotations", id=-1), "annotation number 0: id: got -1, wanted a whole number"),
        (of_first("annotations", id=2**64), "annotation number 0: id: got 18446744073709551616, wanted a whole number"),
        (of_first("annotations", image_id=1.5), "annotation 10: image_id: got 1.5, wanted a whole number"),
        (of_first("annotations", category_id="1"), "annotation 10: category_id: got '1', wanted a whole number"),
        (of_first("images", file_name="000002.jpg"), "image 2: file_name: got '000002.jpg', as of image 1"),
        (of_first("images", file_name="./000002.jpg"), "image 2: file_name: got '000002.jpg', as of image 1"),
        (of_first("images", file_name="x" * 300), "image 1: image: got 'images/default/xxx"),
        (of_first("images", width=30.0), "image 1: width: got 30.0, wanted a whole number from 1"),
        (of_first("images", height=10**400), "image 1: height: got 1000"),
        (of_first("annotations", attributes={"\ud83d": "red"}), "annotation 10: attributes: got the names .*whole"),
        (of_first("annotations", attributes={"text": "\t"}), "annotation 10: attributes, text: got the phrase '.t'"),
        (of_first("annotations", attributes={"text": "&nbsp;"}), "annotation 10: attributes, text: got the phrase"),
        (of_first("annotations", attributes={"text": "cup \ud83d"}), "annotation 10: attributes, text: got the phrase"),
        (
            lambda content: content["annotations"][1].update(attributes={"text": "Red box"}),
            "annotation 11: phrase: got 'Red box' of '000001.jpg' again, as in lpcvc.*, annotation 10; a phrase",
        ),
        (lambda content: first_picture(content, jpeg(1)[:-200]), "image 1: image: images/default/000001.jpg: got a"),
        (lambda content: first_picture(content, huge(10_001)), "got 10001x10001 px, wanted at most 100,000,000 pixels"),
        (lambda content: first_picture(content, b""), "000001.jpg: got bytes that are no known picture format"),
    ],
)  # fmt: skip
def test_what_would_silently_be_other_data_is_refused(
    build: Callable[..., Path], tmp_path: Path, spoil: Callable[[Tables], None], message: str
) -> None:
    content = tables()
    spoil(content)
    with pytest.raises(ValueError, match=message):
        build(content)
    assert list((tmp_path / "out").iterdir()) == []


def test_all_mistakes_are_named_at_once(build: Callable[..., Path]) -> None:
    content = tables()
    content["annotations"][0]["id"] = 20
    content["annotations"][4]["attributes"] = {"text": "\u200b"}
    content["annotations"][6]["segmentation"] = 3
    first_picture(content, b"none")
    content["files"].pop("images/default/000005.jpg")
    with pytest.raises(ValueError, match="got 5 mistakes") as caught:
        build(content)
    for place in (
        "annotation 30: attributes",
        "annotation 40: mask",
        "annotation number 2: id",
        "image 1: image",
        "image 5: image",
    ):
        assert place in str(caught.value)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_mask_of_a_turned_picture_is_as_it_is_shown(build: Callable[..., Path], orientation: int) -> None:
    """CVAT shows pictures upright, and annotates them so; their size does not tell."""
    content = tables()
    first_picture(content, jpeg(1, orientation))
    samples = {sample.sample_id: sample for sample in read_samples(build(content) / "samples")}
    assert (samples["10-text_1"].mask.to_mask() == EXPECTED).all()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_size_of_a_picture_on_its_side_tells_how_its_mask_counts(
    build: Callable[..., Path], orientation: int
) -> None:
    content = tables()
    first_picture(content, jpeg(1, orientation))
    out = build(content)
    stored = {sample.sample_id: sample for sample in read_samples(out / "samples")}["10-text_1"]
    picture = read_picture(PictureArchives(out / "images").read(stored.image), stored.image)
    assert (stored.mask.to_mask() == (picture[..., 0] > 128)).all()  # red is where the stored picture is annotated
    content["images"][0].update(width=HEIGHT, height=WIDTH)
    content["annotations"][1]["segmentation"] = [[12, 20, 18, 20, 18, 28, 12, 28]]
    shown = {sample.sample_id: sample for sample in read_samples(build(content) / "samples")}["10-text_1"]
    assert (shown.mask.to_mask()[:HEIGHT, :HEIGHT] == EXPECTED[:, :HEIGHT]).all()
    assert shown.mask.area == EXPECTED.sum()


def test_copies_of_a_picture_share_a_split(build: Callable[..., Path]) -> None:
    content = tables()
    for number in range(2, PICTURES + 1):
        copy = f"copy-{number}.jpg"
        content["files"][f"images/default/{copy}"] = content["files"][f"images/default/{number:06d}.jpg"]
        content["images"].append({**content["images"][number - 1], "id": 100 + number, "file_name": copy})
        content["annotations"].append(
            {"id": 1000 + number, "image_id": 100 + number, "segmentation": [TARGET], "attributes": {"text": "the box"}}
        )
    splits = {picture.image.rpartition("/")[2]: picture.split for picture in read_pictures(build(content) / "pictures")}
    assert all(splits[f"copy-{n}.jpg"] == splits[f"{n:06d}.jpg"] for n in range(2, PICTURES + 1))
