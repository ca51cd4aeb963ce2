import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pytest

from promptseg import datasets
from promptseg.datasets.archives import PictureArchives, open_archive
from promptseg.datasets.preprocess import read_picture
from promptseg.datasets.records import PHRASE_KINDS, SPLITS, read_pictures, read_samples
from promptseg.params import ShapesConfig, data_config_of
from promptseg.sources import repack, shapes
from promptseg.sources.shapes import build_shapes, render_scene

CONFIG = ShapesConfig(
    kind="shapes",
    seed=7,
    train_scenes=5,
    val_scenes=3,
    test_scenes=2,
    objects_min=2,
    objects_max=6,
    targets_per_scene=2,
)


def build(folder: Path, config: ShapesConfig = CONFIG, workers: int | None = None) -> dict[str, str]:
    """Build below `folder`; return the hash of every file."""
    places = (folder / "images", folder / "samples.jsonl", folder / "objects.jsonl")
    if workers is None:
        build_shapes(config, *places)
    else:
        shapes._build(config, workers, *places)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    build(folder)
    return folder


def test_equal_configurations_give_equal_bytes(built, tmp_path):
    hashes = build(tmp_path)
    assert set(hashes) == {"images/train.zip", "images/val.zip", "images/test.zip", "samples.jsonl", "objects.jsonl"}
    assert hashes == build(built)


def test_the_number_of_workers_changes_no_byte(tmp_path):
    assert build(tmp_path / "one", workers=1) == build(tmp_path / "two", workers=2)


def test_another_seed_gives_other_scenes(built, tmp_path):
    other = build(tmp_path, ShapesConfig(**{**asdict(CONFIG), "seed": 8}))
    assert not set(other.values()) & set(build(built).values())


def test_records_match_the_scenes_they_were_made_from(built):
    archives = PictureArchives(built / "images")
    pictures = read_pictures(built / "objects.jsonl")
    samples = {sample.sample_id: sample for sample in read_samples(built / "samples.jsonl")}
    assert [p.split for p in pictures] == ["train"] * 5 + ["val"] * 3 + ["test"] * 2
    for number, picture in enumerate(pictures):
        index = number - {"train": 0, "val": 5, "test": 8}[picture.split]
        scene = render_scene(picture.split, index, CONFIG)
        stored = read_picture(archives.read(picture.image), picture.image)
        assert picture.image == f"{picture.split}.zip/{picture.split}-{index:06d}.jpg"
        assert stored.shape == (picture.height, picture.width, 3)
        assert np.abs(stored.astype(int) - scene.pixels).mean() < 4  # JPEG
        np.testing.assert_array_equal([rle.to_mask() for rle in picture.objects], scene.masks)
        for place, target in enumerate(scene.targets):
            for kind, phrase in target.phrases.items():
                sample = samples.pop(f"{picture.split}-{index:06d}-{place}-{kind}")
                assert (sample.phrase, sample.phrase_kind, sample.image) == (phrase, kind, picture.image)
                np.testing.assert_array_equal(sample.mask.to_mask(), scene.masks[target.index])
    assert samples == {}


def test_archives_are_stored_and_hold_one_jpeg_a_scene(built):
    with open_archive(built / "images" / "val.zip") as archive:
        assert archive.namelist() == [f"val-{index:06d}.jpg" for index in range(3)]
        assert all(member.compress_type == 0 for member in archive.infolist())
        assert archive.read("val-000000.jpg").startswith(b"\xff\xd8")


def test_scenes_do_not_depend_on_how_many_there_are():
    more = ShapesConfig(**{**asdict(CONFIG), "train_scenes": 900, "val_scenes": 1})
    np.testing.assert_array_equal(render_scene("val", 2, CONFIG).pixels, render_scene("val", 2, more).pixels)


def test_splits_share_no_scene():
    layouts = [render_scene(split, index, CONFIG).layout for split in SPLITS for index in range(12)]
    assert len(set(layouts)) == len(layouts)


@pytest.mark.parametrize("targets", [1, 3, 8])
def test_each_scene_has_the_targets_asked_for_or_all_its_objects(targets):
    config = ShapesConfig(**{**asdict(CONFIG), "targets_per_scene": targets})
    for index in range(8):
        scene = render_scene("train", index, config)
        indices = [target.index for target in scene.targets]
        assert len(set(indices)) == len(indices) == min(targets, len(scene.objects))
        assert all(tuple(target.phrases) == PHRASE_KINDS for target in scene.targets)
        assert all(scene.masks[place].sum() >= shapes.SMALLEST_TARGET_PX for place in indices)


def test_object_counts_follow_the_configuration():
    config = ShapesConfig(**{**asdict(CONFIG), "objects_min": 3, "objects_max": 4})
    assert {len(render_scene("test", index, config).objects) for index in range(12)} == {3, 4}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("train_scenes", 0),
        ("val_scenes", 0),
        ("test_scenes", -3),
        ("objects_min", 1),
        ("objects_max", 1),
        ("objects_max", 9),
        ("targets_per_scene", 0),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_name(key, value):
    with pytest.raises(ValueError, match=rf"^mine: {key}: got {value}, wanted "):
        data_config_of({**asdict(CONFIG), key: value}, "mine")


def test_a_failure_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repack, "write_archive", full_disk)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    source = Path(datasets.__file__).parents[2]
    script = tmp_path / "endless.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(source)!r})\n"
        "from pathlib import Path\n"
        "from promptseg.sources import shapes\n"
        "if __name__ == '__main__':\n"
        "    config = shapes.ShapesConfig('shapes', 0, 100000, 1, 1, 2, 6, 1)\n"
        "    shapes._build(config, 2, *(Path(sys.argv[1]) / name for name in 'isp'))\n"
    )
    parent = subprocess.Popen([sys.executable, script, tmp_path], stderr=subprocess.DEVNULL)
    process = psutil.Process(parent.pid)
    archive = tmp_path / "i.part" / "train.zip.part"
    while not (archive.exists() and archive.stat().st_size):
        assert parent.poll() is None, "ended by itself"
        time.sleep(0.1)
    children = process.children(recursive=True)
    assert len(children) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
