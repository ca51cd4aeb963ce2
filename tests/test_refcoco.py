"""RefCOCOg from archives in their real layout, small: what is written, and each way in which they can be wrong."""

import io
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from promptseg import download
from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import read_picture
from promptseg.datasets.records import Sample, read_pictures, read_samples
from promptseg.files import sha256_of
from promptseg.sources.build import build_dataset
from promptseg.sources.checks import Mistakes
from promptseg.sources.coco import CocoAnnotation, CocoImage, CocoTables, segmentation_to_rle
from promptseg.sources.refcoco import TEMPLATES, class_prompts
from tests.fault_server import Fault, Files, serving
from tests.referring import HEIGHT, OTHER, TARGET, WIDTH, Tables, build_tables, jpeg, of_archives, source_of, tables


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Write tables as archives, build from them, return the folder with `images`, `samples` and `pictures`."""
    return partial(build_tables, tmp_path)


def test_what_is_written(build: Callable[..., Path]) -> None:
    content = tables()
    out = build(content)
    samples, pictures = read_samples(out / "samples"), read_pictures(out / "pictures")
    assert [(sample.sample_id, sample.split, sample.phrase, sample.phrase_kind) for sample in samples] == [
        (f"{100 + n}-{sent_id}", split, phrase, kind)
        for n, split in enumerate(("train", "val", "test"), start=1)
        for sent_id, phrase, kind in ((7, "red box", "keyword"), (8, "the red box on the left", "sentence"))
    ]
    assert [picture.image for picture in pictures] == [
        f"{split}-000.zip/COCO_train2014_{n:012d}.jpg" for n, split in enumerate(("train", "val", "test"), start=1)
    ]
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[4:12, 2:10] = True
    assert all((sample.mask.to_mask() == expected).all() for sample in samples)
    assert all(picture.objects[0] == samples[0].mask and len(picture.objects) == 2 for picture in pictures)
    archives = PictureArchives(out / "images")
    assert [archives.read(picture.image).getvalue() for picture in pictures] == list(content["files"].values())


def test_twice_the_same_bytes(build: Callable[..., Path]) -> None:
    def sums() -> list[str]:
        return [sha256_of(path) for path in sorted(build(tables()).rglob("*")) if path.is_file()]

    assert sums() == sums()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_turn_with_their_picture(build: Callable[..., Path], orientation: int) -> None:
    content = tables()
    content["files"]["train2014/COCO_train2014_000000000001.jpg"] = jpeg(1, orientation)
    out = build(content)
    sample = read_samples(out / "samples")[0]
    picture = read_picture(PictureArchives(out / "images").read(sample.image), sample.image)
    assert picture.shape[:2] == (sample.height, sample.width) == (sample.mask.height, sample.mask.width)
    assert (sample.mask.to_mask() == (picture[..., 0] > 128)).all()
    assert read_pictures(out / "pictures")[0].height == sample.height


def test_a_crowd_in_run_lengths_is_an_object_too(build: Callable[..., Path]) -> None:
    content = tables()
    rle = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, HEIGHT * (WIDTH - 1)]}
    content["annotations"].append({"id": 99, "image_id": 1, "segmentation": rle, "iscrowd": 1})
    crowd = read_pictures(build(content) / "pictures")[0].objects[-1].to_mask()
    assert crowd[:, 0].all()
    assert not crowd[:, 1:].any()


def test_an_empty_distractor_is_left_out(build: Callable[..., Path]) -> None:
    content = tables()
    content["annotations"][1]["segmentation"] = [[1, 1, 2, 2]]
    assert len(read_pictures(build(content) / "pictures")[0].objects) == 1


def test_pictures_without_refs_are_left_out_and_limits_hold(build: Callable[..., Path]) -> None:
    content = tables()
    later = {**content["refs"][0], "ref_id": 200, "ann_id": 11}
    content["refs"].insert(0, {**later, "sentences": [{"sent_id": 9, "sent": "x"}]})
    del content["refs"][1]["sentences"][1]
    assert [sample.sample_id for sample in read_samples(build(content) / "samples")[:2]] == ["200-9", "101-7"]
    assert [sample.sample_id for sample in read_samples(build(content, train_refs=1) / "samples")[:2]] == [
        "200-9",
        "102-7",
    ]


def test_an_empty_sentence_beside_others_is_left_out(
    build: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    content = tables()
    content["refs"][0]["sentences"][0]["sent"] = " . "
    assert read_samples(build(content) / "samples")[0].sample_id == "101-8"
    assert "left out 1 (a sentence that says nothing, beside others), such as ref 101, sentence 7" in caplog.text


def of_ref(**fields: Any) -> Callable[[Tables], None]:
    return lambda content: content["refs"][0].update(fields)


def of_target(**fields: Any) -> Callable[[Tables], None]:
    return lambda content: content["annotations"][0].update(fields)


def of_image(**fields: Any) -> Callable[[Tables], None]:
    return lambda content: content["images"][0].update(fields)


def stored(data: bytes) -> Callable[[Tables], None]:
    return lambda content: content["files"].update({"train2014/COCO_train2014_000000000001.jpg": data})


def of_sentence(**fields: Any) -> Callable[[Tables], None]:
    return lambda content: content["refs"][0]["sentences"][0].update(fields)


def repeated(table: str) -> Callable[[Tables], None]:
    return lambda content: content[table].append(dict(content[table][0]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (of_ref(ann_id=77), "ref 101: refs.zip: instances.json has no annotation 77 of the picture 1"),
        (of_ref(ann_id=20), "ref 101: refs.zip: instances.json has no annotation 20 of the picture 1"),
        (of_ref(image_id=77), "ref 101: its picture 77 is missing from refs.zip: instances.json"),
        (of_image(file_name="x.jpg"), r"image 1: image: got 'x.jpg', which is not in .*images.zip"),
        (of_ref(sentences=[]), "ref number 0: ref 101: got no sentence with a word in it"),
        (of_ref(sentences=[{"sent_id": 1, "sent": " "}]), "ref number 0: ref 101: got no sentence with a word in it"),
        (of_ref(sentences=[{"sent_id": 1}]), "ref number 0: ref 101: got no sentence with a word"),
        (of_ref(split="testC"), "split: got 'testC', wanted one of train, val, test, testA, testB"),
        (of_ref(split="val"), "got no refs in train, wanted some in each of train, val, test"),
        (of_ref(ref_id=102), "ref_id: got 102 again, wanted distinct ids"),
        (of_ref(image_id=2, ann_id=20), "got the picture 2 in train and val"),
        (of_target(segmentation=[]), "ref 101: mask: got one that covers no pixel"),
        (
            of_target(segmentation={"size": [1, 1], "counts": [1]}),
            "annotation 10: mask: got run lengths of the size",
        ),
        (of_target(image_id="x"), "annotation 10: image_id: got 'x', wanted a whole number"),
        (of_image(width=31), "image 1: width, height: got 31x20, wanted 30x20 px as the picture is stored"),
        (of_image(height=None), "image 1: width, height: got none, wanted the picture's size"),
        (stored(b"no picture"), "image: .*1.jpg: got bytes that are no known picture format"),
        (
            stored(jpeg(1, orientation=6, size=(HEIGHT, WIDTH))),
            "image 1: width, height: got 30x20, wanted 20x30 px as the picture is stored",
        ),
        (repeated("annotations"), "annotation number 6: id: got 10 again, as of number 0; wanted distinct ids"),
        (repeated("images"), "image number 3: id: got 1 again, as of number 0; wanted distinct ids"),
        (repeated("refs"), r"refs\(umd\).p, ref number 3: ref_id: got 101 again, wanted distinct ids"),
        (of_ref(ref_id=101.0), r"ref number 0: ref_id: got 101.0, wanted a whole number"),
        (of_ref(ann_id=True), r"ref number 0: ann_id: got True, wanted a whole number"),
        (of_ref(image_id=[1]), r"ref number 0: image_id: got \[1\], wanted a whole number"),
        (of_ref(sentences="red"), r"ref number 0: sentences: got 'red', wanted a list"),
        (of_sentence(sent_id=8), r"ref number 0: sent_id: got 8 twice, wanted distinct ids"),
        (of_sentence(sent_id=7.5), r"ref number 0: sent_id: got 7.5, wanted a whole number"),
        (of_target(id=10.5), "annotation number 0: id: got 10.5, wanted a whole number"),
        (of_target(image_id=77), "annotation 10: image_id: got 77, which no image has"),
        (of_image(id=1.0), "image number 0: id: got 1.0, wanted a whole number"),
        (of_image(file_name="COCO_train2014_000000000002.jpg"), "image 2: file_name: got .*, as of image 1"),
        (stored(jpeg(1)[:-200]), "image 1: image: COCO_train2014_000000000001.jpg: got a picture that cannot be read"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    build: Callable[..., Path], tmp_path: Path, spoil: Callable[[Tables], None], message: str
) -> None:
    content = tables()
    spoil(content)
    with pytest.raises(ValueError, match=message):
        build(content)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_split_file_is_refused(build: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"has no 'refcocog/refs\(google\).p', only .*; correct `split_by`"):
        build(tables(), split_by="google")


@pytest.mark.parametrize("refs_pickle", [pickle.dumps(Path()), pickle.dumps({"a": 1}), pickle.dumps([1])])
def test_a_pickle_of_something_else_is_refused(build: Callable[..., Path], refs_pickle: bytes) -> None:
    with pytest.raises(ValueError, match=r"refs\(umd\).p"):
        build(tables(), refs_pickle)


def test_a_picture_damaged_behind_its_head_leaves_nothing(build: Callable[..., Path], tmp_path: Path) -> None:
    content = tables()
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)).save(noise, "jpeg")
    content["files"]["train2014/COCO_train2014_000000000003.jpg"] = noise.getvalue()
    content["images"][2].update(height=400, width=600)
    archive = build(content).parent / "mirror" / "images.zip"
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        last = opened.infolist()[-1]
    data[last.header_offset + last.compress_size - 1000] ^= 0xFF
    archive.write_bytes(data)
    images = source_of(archive)
    before = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*")}
    with pytest.raises(ValueError, match=r"COCO_train2014_000000000003.jpg' is damaged"):
        build_dataset(
            of_archives(images, source_of(archive.with_name("refs.zip")), images),
            str(archive.parent),
            str(archive.parent),
            tmp_path / "cache",
            *(tmp_path / "out" / name for name in ("images", "samples", "pictures")),
        )
    assert {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*")} == before


def in_unc_splits() -> Tables:
    """The test picture's ref in testA, and a fourth picture's in testB."""
    content = tables()
    content["refs"][2]["split"] = "testA"
    name = "COCO_train2014_000000000004.jpg"
    content["files"][f"train2014/{name}"] = jpeg(4)
    content["images"].append({**content["images"][0], "id": 4, "file_name": name})
    content["annotations"].append({**content["annotations"][0], "id": 40, "image_id": 4})
    content["refs"].append({**content["refs"][0], "ref_id": 104, "ann_id": 40, "image_id": 4, "split": "testB"})
    return content


@pytest.mark.parametrize("folder", ["refcoco", "refcoco+"])
@pytest.mark.parametrize(
    ("chosen", "tested"), [(("testA", "testB"), ["103-7", "104-7"]), (("testA",), ["103-7"]), (("testB",), ["104-7"])]
)
def test_unc_splits_are_tested_on_those_that_are_named(
    build: Callable[..., Path], folder: str, chosen: tuple[str, ...], tested: list[str]
) -> None:
    out = build(in_unc_splits(), folder=folder, split_by="unc", stored_as="unc", test_splits=chosen)
    ids = [sample.sample_id for sample in read_samples(out / "samples") if sample.sample_id.endswith("-7")]
    assert ids == ["101-7", "102-7", *tested]


def test_google_splits_share_pictures_and_say_so(build: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    content = tables()
    content["refs"].append({**content["refs"][0], "ref_id": 104, "ann_id": 11, "split": "val"})
    with pytest.raises(ValueError, match="got the picture 1 in train and val, wanted splits that share none"):
        build(content)
    out = build(content, split_by="google", stored_as="google")
    assert "1 pictures are in more than one split" in caplog.text
    first = "COCO_train2014_000000000001.jpg"
    names = [picture.image for picture in read_pictures(out / "pictures")]
    assert names[:2] == [f"train-000.zip/{first}", f"val-000.zip/{first}"]
    archives = PictureArchives(out / "images")
    assert archives.read(names[0]).getvalue() == archives.read(names[1]).getvalue()


def singly(content: Tables) -> Files:
    """A server that has the pictures one by one, and one that no ref needs."""
    files = {name.replace("train2014/", "/single/"): data for name, data in content["files"].items()}
    return Files({**files, "/single/COCO_train2014_000000000099.jpg": jpeg(5)})


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(backoff_factor=0.0, backoff_jitter=0.001))


@pytest.mark.usefixtures("hurry")
def test_single_pictures_make_the_same_bytes_as_the_archive(build: Callable[..., Path]) -> None:
    def sums(out: Path) -> dict[str, str]:
        return {path.name: sha256_of(path) for path in out.rglob("*") if path.is_file()}

    content = tables()
    whole = sums(build(content))
    with serving(singly(content)) as server:
        server.faults = [Fault(status=500), Fault(cut_at=100), Fault(status=503, headers={"Retry-After": "0"})]
        assert sums(build(content, pictures="single", mirrors=(server.address,))) == whole
        wanted = {f"/single/{image['file_name']}" for image in content["images"]}
        assert {path for path, _, _ in server.requests} == wanted
        server.requests.clear()
        assert sums(build(content, pictures="single", mirrors=(server.address,))) == whole
        assert server.requests == []


@pytest.mark.usefixtures("hurry")
def test_a_rerun_fetches_the_pictures_that_are_missing(build: Callable[..., Path], tmp_path: Path) -> None:
    content = tables()
    last = "/single/COCO_train2014_000000000003.jpg"
    with serving(singly(content)) as server:
        good = server.content.pop(last)
        with pytest.raises(ValueError, match=r"none of 2 mirrors .*this mirror has no .*answers 404"):
            build(content, pictures="single", mirrors=(server.address,))
        assert list((tmp_path / "out").iterdir()) == []
        cached = {path.name for path in (tmp_path / "cache" / "pictures").rglob("*.jpg")}
        server.content[last] = good
        server.requests.clear()
        build(content, pictures="single", mirrors=(server.address,))
        assert {Path(path).name for path, _, _ in server.requests} == set(map(str, of_names(content))) - cached


def of_names(content: Tables) -> list[str]:
    return [image["file_name"] for image in content["images"]]


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("spoil", [lambda data: data[:-60], lambda _: b"<html>", lambda _: b""])
def test_a_single_picture_that_is_damaged_is_not_kept(
    build: Callable[..., Path], tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    content = tables()
    with serving(singly(content)) as server:
        path = "/single/COCO_train2014_000000000002.jpg"
        server.content[path] = spoil(server.content[path])
        with pytest.raises(ValueError, match=r"000000000002.jpg: got no picture, or a damaged one"):
            build(content, pictures="single", mirrors=(server.address,))
    assert Path(path).name not in {kept.name for kept in (tmp_path / "cache" / "pictures").rglob("*")}


def test_single_pictures_come_from_a_folder_too(build: Callable[..., Path], tmp_path: Path) -> None:
    content = tables()
    folder = tmp_path / "mirror" / "single"
    folder.mkdir(parents=True)
    for name, data in content["files"].items():
        (folder / Path(name).name).write_bytes(data)
    assert len(read_samples(build(content, pictures="single") / "samples")) == 6


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/passwd", "C:/x.jpg"])
def test_a_picture_whose_name_leads_elsewhere_is_refused(build: Callable[..., Path], name: str) -> None:
    content = tables()
    content["images"][0]["file_name"] = name
    with pytest.raises(ValueError, match=r"file_name: got .*, wanted the name of a file inside"):
        build(content, pictures="single", mirrors=("http://127.0.0.1:9",))


def test_room_is_looked_for_before_pictures_are_fetched(
    build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"got 1,000 free bytes, wanted 510,000 for 3 pictures; make room"):
        build(tables(), pictures="single", mirrors=("http://127.0.0.1:9",))


NAMES = {1: "person", 10: "Traffic Light"}
CROWD = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, HEIGHT * (WIDTH - 1)]}  # the leftmost column


def with_undescribed(*numbers: int) -> Tables:
    """The three pictures with refs, and others with two boxes of one class, a crowd of it, and a box of another."""
    content = tables()
    content["categories"] = [{"id": number, "name": name} for number, name in NAMES.items()]
    for annotation in content["annotations"]:
        annotation["category_id"] = 1
    for number in numbers:
        name = f"COCO_train2014_{number:012d}.jpg"
        content["files"][f"train2014/{name}"] = jpeg(number)
        content["images"].append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        shapes = [([TARGET], 10, 0), ([OTHER], 1, 0), (CROWD, 10, 1), ([[20, 0, 22, 0, 22, 2]], 10, 0)]
        content["annotations"] += [
            {"id": 10 * number + at, "image_id": number, "segmentation": shape, "category_id": of, "iscrowd": crowd}
            for at, (shape, of, crowd) in enumerate(shapes)
        ]
    return content


def of_classes(out: Path) -> list[Sample]:
    return [sample for sample in read_samples(out / "samples") if sample.sample_id.startswith("class-")]


def expected_mask(segmentations: list[Any]) -> np.ndarray:
    """Slow and obvious: each mask decoded, then or."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for segmentation in segmentations:
        mask |= segmentation_to_rle(segmentation, HEIGHT, WIDTH).to_mask()
    return mask


@pytest.mark.parametrize("pictures", ["archive", "single"])
def test_a_picture_without_a_ref_is_prompted_by_its_classes(build: Callable[..., Path], pictures: str) -> None:
    content = with_undescribed(5, 4)
    files = {name.replace("train2014/", "/single/"): data for name, data in content["files"].items()}
    with serving(Files(files)) as server:
        out = build(content, class_prompts="refer", pictures=pictures, mirrors=(server.address,))
    samples = of_classes(out)
    assert [sample.sample_id for sample in samples] == ["class-4-1", "class-4-10", "class-5-1", "class-5-10"]
    assert all((sample.split, sample.phrase_kind) == ("train", "keyword") for sample in samples)
    assert all(name.lower() in sample.phrase for sample, name in zip(samples, 2 * list(NAMES.values()), strict=True))
    for sample in samples:
        shapes = [OTHER] if sample.sample_id.endswith("-1") else [TARGET, [20, 0, 22, 0, 22, 2]]
        expected = expected_mask([[shape] for shape in shapes])
        expected[:, 0] |= sample.sample_id.endswith("-10")  # the crowd
        assert (sample.mask.to_mask() == expected).all()
    archives = [picture.image for picture in read_pictures(out / "pictures")]
    assert archives == [
        f"{split}-000.zip/COCO_train2014_{number:012d}.jpg"
        for split, number in (("train", 1), ("train", 4), ("train", 5), ("val", 2), ("test", 3))
    ]
    assert [len(picture.objects) for picture in read_pictures(out / "pictures")] == [2, 4, 4, 2, 2]


def test_what_refs_make_stays_as_it_is(build: Callable[..., Path]) -> None:
    content = with_undescribed(4)
    without = read_samples(build(content) / "samples")
    out = build(content, class_prompts="refer")
    assert [sample for sample in read_samples(out / "samples") if sample not in of_classes(out)] == without


def test_of_classes_twice_the_same_bytes_and_of_more_pictures_the_same_samples(build: Callable[..., Path]) -> None:
    def built(*numbers: int) -> tuple[list[str], list[Sample]]:
        out = build(with_undescribed(*numbers), class_prompts="refer")
        return [sha256_of(path) for path in sorted(out.rglob("*")) if path.is_file()], of_classes(out)

    sums, samples = built(4, 6)
    assert built(4, 6) == (sums, samples)
    assert built(6, 4) == (sums, samples)
    assert [sample for sample in built(4, 5, 6)[1] if "-4-" in sample.sample_id or "-6-" in sample.sample_id] == samples


@pytest.mark.parametrize("split", ["train", "val", "test", "testA", "testB"])
def test_no_picture_that_any_ref_speaks_of_is_prompted(build: Callable[..., Path], split: str) -> None:
    """Not even one whose ref is in a split that is not used, or beyond a limit."""
    content = with_undescribed(4, 5)
    content["refs"].append({**content["refs"][0], "ref_id": 104, "ann_id": 40, "image_id": 4, "split": split})
    out = build(content, class_prompts="refer", train_refs=1)
    assert {sample.sample_id for sample in of_classes(out)} == {"class-5-1", "class-5-10"}
    names = [picture.image.partition("/")[2] for picture in read_pictures(out / "pictures")]
    assert len(names) == len(set(names)), "a picture is in two splits"


def test_the_limit_counts_pictures(build: Callable[..., Path]) -> None:
    out = build(with_undescribed(6, 5, 4), class_prompts="refer", class_pictures=2)
    assert {sample.image[-5] for sample in of_classes(out)} == {"4", "5"}


def test_cocos_own_tables_know_more_pictures(build: Callable[..., Path]) -> None:
    """And describe those alone: what refs speak of keeps the objects that REFER knows."""
    content, whole = with_undescribed(), with_undescribed(4)
    content["files"] = whole["files"]
    others = [entry for entry in whole["annotations"] if entry["image_id"] != 1]
    content["coco"] = {**whole, "annotations": others, "files": [], "refs": []}
    out = build(content, class_prompts="coco")
    assert [sample.sample_id for sample in of_classes(out)] == ["class-4-1", "class-4-10"]
    assert [len(picture.objects) for picture in read_pictures(out / "pictures")] == [2, 4, 2, 2]


def test_a_class_of_which_nothing_is_to_be_seen_is_left_out(build: Callable[..., Path]) -> None:
    content = with_undescribed(4, 5)
    for annotation in content["annotations"]:
        if annotation["image_id"] == 5 or (annotation["image_id"], annotation["category_id"]) == (4, 1):
            annotation["segmentation"] = [[1, 1, 2, 2]]
    out = build(content, class_prompts="refer")
    assert [sample.sample_id for sample in of_classes(out)] == ["class-4-10"]
    assert len(read_pictures(out / "pictures")) == 4


@pytest.mark.parametrize("orientation", [3, 6])
def test_masks_of_classes_turn_with_their_picture(build: Callable[..., Path], orientation: int) -> None:
    content = with_undescribed(4)
    content["files"]["train2014/COCO_train2014_000000000004.jpg"] = jpeg(4, orientation)
    sample = of_classes(build(content, class_prompts="refer"))[1]
    expected = expected_mask([[TARGET], [[20, 0, 22, 0, 22, 2]]])
    expected[:, 0] = True
    assert (sample.mask.to_mask() == np.rot90(expected, {3: 2, 6: -1}[orientation])).all()


def without_classes(content: Tables) -> None:
    content["categories"] = []


def without_a_class(content: Tables) -> None:
    del content["annotations"][-1]["category_id"]


def with_half_a_name(content: Tables) -> None:
    content["categories"][0]["name"] = "cup \ud83d"


def nameless(content: Tables) -> None:
    content["categories"][0]["name"] = " "


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_classes, r"refs.zip: instances.json, annotation 40: got the class 10, wanted one of the 0 that"),
        (without_a_class, r"annotation 43: got the class None, wanted one of the 2 that the file names"),
        (with_half_a_name, r"category 1: name: got the phrase 'cup .*', wanted whole characters"),
        (nameless, r"category 1: name: got ' ', wanted a word"),
        (
            lambda content: content["files"].popitem(),
            r"image 4: image: got 'COCO_train2014_000000000004.jpg', which is not in",
        ),
    ],
)
def test_what_is_wrong_with_classes_is_refused_before_anything_is_written(
    build: Callable[..., Path], tmp_path: Path, spoil: Callable[[Tables], None], message: str
) -> None:
    content = with_undescribed(4)
    spoil(content)
    with pytest.raises(ValueError, match=message):
        build(content, class_prompts="refer")
    assert list((tmp_path / "out").iterdir()) == []


def test_tables_without_such_a_picture_are_refused(build: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"got no picture without a ref among 3, .*; set it to coco"):
        build(with_undescribed(), class_prompts="refer")


@given(
    st.dictionaries(st.integers(1, 200), st.lists(st.integers(1, 4), max_size=6), max_size=20),
    st.sets(st.integers(1, 200)),
    st.integers(1, 5) | st.none(),
)
def test_every_instance_of_an_undescribed_picture_is_in_one_prompt(
    classes_of: dict[int, list[int]], described: set[int], limit: int | None
) -> None:
    images = {number: CocoImage(number, f"{number}.jpg", 5, 5) for number in classes_of}
    pairs = [(image, of) for image, classes in classes_of.items() for of in classes]
    annotations = {at: CocoAnnotation(at, image, [], of) for at, (image, of) in enumerate(pairs)}
    coco = CocoTables("x", images, annotations, {of: f"class {of}" for of in range(1, 5)})
    mistakes = Mistakes()
    candidates = sorted(number for number, classes in classes_of.items() if classes and number not in described)
    if not candidates:
        assert class_prompts(coco, described, limit, mistakes) == []
        assert "got no picture without a ref" in str(mistakes.found)
        return
    made = class_prompts(coco, described, limit, mistakes)
    assert not mistakes.found
    assert [one.file_name for one in made] == [f"{number}.jpg" for number in candidates[:limit]]
    for one in made:
        number = int(one.file_name.removesuffix(".jpg"))
        prompted = [at for said in one.phrases for at in said.keys]
        assert sorted(prompted) == [at for at, (image, _) in enumerate(pairs) if image == number]
        assert all(len({annotations[at].class_id for at in said.keys}) == 1 for said in one.phrases)
        assert len(one.phrases) == len(set(classes_of[number]))


def test_every_template_is_used_and_holds_the_name() -> None:
    images = {number: CocoImage(number, f"{number}.jpg", 5, 5) for number in range(1, 401)}
    annotations = {number: CocoAnnotation(number, number, [], 1) for number in images}
    made = class_prompts(CocoTables("x", images, annotations, {1: "Cup"}), (), None, Mistakes())
    worded = [one.phrases[0].worded[0][1] for one in made]
    for template in TEMPLATES:
        assert 60 < worded.count(template.format("cup")) < 140  # of 400, a quarter each


def test_tables_that_are_wrong_cost_no_transfer_of_pictures(build: Callable[..., Path]) -> None:
    content = tables()
    repeated("annotations")(content)
    with serving(singly(content)) as server:
        with pytest.raises(ValueError, match="got 10 again"):
            build(content, pictures="single", mirrors=(server.address,))
        assert server.requests == []


def test_a_published_phrase_of_two_objects_is_left_out_and_told(
    build: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    content = tables()
    again = {"sent_id": 9, "sent": "Red box"}
    content["refs"].append({**content["refs"][0], "ref_id": 104, "ann_id": 11, "sentences": [again]})
    samples = [sample.sample_id for sample in read_samples(build(content) / "samples")]
    assert samples == ["101-8", "102-7", "102-8", "103-7", "103-8"]
    assert "left out 1 (a phrase that means two objects of its picture), such as ref 104: 'Red box'" in caplog.text


def test_a_published_picture_of_two_splits_is_left_out_of_train_and_told(
    build: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    content = tables()
    name = "COCO_train2014_000000000004.jpg"
    content["files"][f"train2014/{name}"] = content["files"]["train2014/COCO_train2014_000000000002.jpg"]
    content["images"].append({**content["images"][0], "id": 4, "file_name": name})
    content["annotations"].append({**content["annotations"][0], "id": 40, "image_id": 4})
    content["refs"].append({**content["refs"][0], "ref_id": 104, "ann_id": 40, "image_id": 4})
    samples = [sample.sample_id for sample in read_samples(build(content) / "samples")]
    assert samples == ["101-7", "101-8", "102-7", "102-8", "103-7", "103-8"]
    assert (
        "left out 1 (of train: byte for byte a picture of val), such as refs.zip: instances.json, image 4"
        in caplog.text
    )
