"""Class names for pictures without a ref: which pictures, which words, and one mask for all of a class."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptseg.datasets.records import Sample, read_pictures, read_samples
from promptseg.files import sha256_of
from promptseg.sources.class_prompts import TEMPLATES, class_prompts
from promptseg.sources.coco import CocoAnnotation, CocoImage, CocoTables
from promptseg.sources.coco_segmentation import segmentation_to_rle
from tests.fault_server import Files, serving
from tests.referring import HEIGHT, OTHER, TARGET, WIDTH, Tables, build_tables, jpeg, tables

NAMES = {1: "person", 10: "Traffic Light"}
CROWD = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, HEIGHT * (WIDTH - 1)]}  # the leftmost column


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """See `build_tables`."""
    return partial(build_tables, tmp_path)


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


def test_twice_the_same_bytes_and_of_more_pictures_the_same_samples(build: Callable[..., Path]) -> None:
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


def nameless(content: Tables) -> None:
    content["categories"][0]["name"] = " "


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_classes, r"refs.zip: instances.json: annotation 40: got the class 10, wanted one of the 0 that"),
        (without_a_class, r"annotation 43: got the class None, wanted one of the 2 that the file names"),
        (nameless, r"category number 0: got the name ' ', wanted a word"),
        (lambda content: content["files"].popitem(), r"class 'person' of the picture 4: its picture 4 is missing from"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
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
    coco = CocoTables(images, annotations, {of: f"class {of}" for of in range(1, 5)})
    candidates = sorted(number for number, classes in classes_of.items() if classes and number not in described)
    if not candidates:
        with pytest.raises(ValueError, match="got no picture without a ref"):
            class_prompts(coco, described, limit, "x")
        return
    made = class_prompts(coco, described, limit, "x")
    assert [one.image.image_id for one in made] == candidates[:limit]
    for one in made:
        prompted = [at for said in one.phrases for at in said.annotation_ids]
        assert sorted(prompted) == [at for at, (image, _) in enumerate(pairs) if image == one.image.image_id]
        assert all(len({annotations[at].class_id for at in said.annotation_ids}) == 1 for said in one.phrases)
        assert len(one.phrases) == len(set(classes_of[one.image.image_id]))


def test_every_template_is_used_and_holds_the_name() -> None:
    images = {number: CocoImage(number, f"{number}.jpg", 5, 5) for number in range(1, 401)}
    annotations = {number: CocoAnnotation(number, number, [], 1) for number in images}
    made = class_prompts(CocoTables(images, annotations, {1: "Cup"}), (), None, "x")
    worded = [one.phrases[0].worded[0][1] for one in made]
    for template in TEMPLATES:
        assert 60 < worded.count(template.format("cup")) < 140  # of 400, a quarter each
