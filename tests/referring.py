"""Small pictures and tables in COCO's and REFER's layout, for tests of the readers."""

import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from promptseg.files import sha256_of
from promptseg.params import ReferConfig, SinglePictures, Source
from promptseg.sources.build import build_dataset
from promptseg.sources.mirrors import Mirror

HEIGHT, WIDTH = 20, 30
TARGET, OTHER = [2, 4, 10, 4, 10, 12, 2, 12], [20, 4, 28, 4, 28, 18, 20, 18]
Tables = dict[str, Any]


def jpeg(seed: int, orientation: int | None = None, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """A picture whose red rectangle lies where `tables` says that the annotation is, before orientation."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 2] = seed * 17 % 256  # no two alike
    pixels[4:12, 2:10] = (255, 0, 0)
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=95, subsampling=0, exif=exif)
    return stream.getvalue()


def tables() -> Tables:
    """Three pictures, one a split, each with a rectangle that a ref names and a distractor."""
    splits = {1: "train", 2: "val", 3: "test"}
    names = {n: f"COCO_train2014_{n:012d}.jpg" for n in splits}
    return {
        "files": {f"train2014/{names[n]}": jpeg(n) for n in splits},
        "images": [{"id": n, "file_name": names[n], "height": HEIGHT, "width": WIDTH} for n in splits],
        "annotations": [
            {"id": 10 * n + at, "image_id": n, "segmentation": [polygon], "iscrowd": 0}
            for n in splits
            for at, polygon in enumerate((TARGET, OTHER))
        ],
        "refs": [
            {
                "ref_id": 100 + n,
                "ann_id": 10 * n,
                "image_id": n,
                "file_name": f"COCO_train2014_{n:012d}_{10 * n}.jpg",
                "split": split,
                "sentences": [
                    {"sent_id": 7, "sent": "red box", "raw": "Red box.", "tokens": ["red", "box"]},
                    {"sent_id": 8, "sent": "the red box on the left ", "raw": "", "tokens": []},
                ],
            }
            for n, split in splits.items()
        ],
    }


def of_archives(images: Source, refs: Source, annotations: Source) -> ReferConfig:
    """A configuration of the tables above, all of them, without class names."""
    single = SinglePictures("single", "http://127.0.0.1:9/single", 4)
    return ReferConfig(
        "refer",
        "archive",
        images,
        single,
        refs,
        "refcocog",
        "umd",
        ("test",),
        None,
        None,
        None,
        "none",
        None,
        annotations,
    )


def source_of(path: Path) -> Source:
    """An archive of a mirror as a source, with its sums."""
    return Source(path.name, "http://127.0.0.1:9/" + path.name, path.stat().st_size, sha256_of(path))


def build_tables(
    below: Path, content: Tables, refs_pickle: bytes | None = None, mirrors: Mirror = None, **changes: Any
) -> Path:
    """Write tables as archives below a folder, build from them, return where `images`, `samples` and `pictures` are.

    `coco` of the tables, where there is one, becomes COCO's own file of instances.
    """
    name, split_by = changes.get("folder", "refcocog"), changes.pop("stored_as", "umd")
    mirror, out = below / "mirror", below / "out"
    mirror.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    instances = {key: content[key] for key in ("images", "annotations", "categories") if key in content}
    refs = {
        f"{name}/refs({split_by}).p": refs_pickle or pickle.dumps(content["refs"], protocol=2),
        f"{name}/instances.json": json.dumps(instances).encode(),
    }
    coco = {"annotations/instances_train2014.json": json.dumps(content.get("coco", {})).encode()}
    members = {"images.zip": content["files"], "refs.zip": refs, "annotations.zip": coco}
    for path, files in members.items():
        with zipfile.ZipFile(mirror / path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in files.items():
                archive.writestr(zipfile.ZipInfo(member), data)
    config = replace(of_archives(*(source_of(mirror / path) for path in members)), **changes)
    places = (str(mirror), *(mirrors or ()))
    build_dataset(config, places, str(below), below / "cache", out / "images", out / "samples", out / "pictures")
    return out
