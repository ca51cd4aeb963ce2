"""Small pictures and tables in COCO's and REFER's layout, for tests of the readers."""

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image

HEIGHT, WIDTH = 20, 30
TARGET, OTHER = [2, 4, 10, 4, 10, 12, 2, 12], [20, 4, 28, 4, 28, 18, 20, 18]
Tables = dict[str, Any]


def jpeg(seed: int, orientation: int | None = None, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """A picture whose red rectangle lies where `tables` says that the annotation is, before orientation."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 2] = seed * 40
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
