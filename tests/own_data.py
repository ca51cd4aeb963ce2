"""A small data set of one's own, as docs/own-data.md has it: red and blue squares, and what people say of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from promptseg.params import FolderConfig

HEIGHT, WIDTH = 60, 80
RED = [[10, 10, 30, 10, 30, 30, 10, 30]]  # a square of 20x20 px
BLUE = [[50, 20, 70, 20, 70, 40, 50, 40]]
SPLITS = ("train", "train", "val", "test")


def write_pictures(folder: Path) -> None:
    """Write a.png, b.png, c.png and d.png; noise keeps their bytes apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate("abcd"):
        pixels = np.random.default_rng(number).integers(90, 160, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        pixels[10:30, 10:30] = (200, 30, 30)
        pixels[20:40, 50:70] = (30, 30, 200)
        Image.fromarray(pixels).save(folder / f"{name}.png")


def lines() -> list[dict[str, Any]]:
    """Two phrases a picture."""
    return [
        {"image": f"{name}.png", "phrase": phrase, "mask": mask, "split": split}
        for name, split in zip("abcd", SPLITS, strict=True)
        for phrase, mask in (("the red square", RED), ("the blue square on the right", BLUE))
    ]


def coco() -> dict[str, Any]:
    """The same, as COCO has it."""
    images = [
        {"id": number, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH, "split": SPLITS[number]}
        for number, name in enumerate("abcd")
    ]
    annotations = [
        {"id": 2 * number + index, "image_id": number, "segmentation": mask, "phrases": [phrase]}
        for number in range(4)
        for index, (phrase, mask) in enumerate((("the red square", RED), ("the blue square on the right", BLUE)))
    ]
    return {"images": images, "annotations": annotations}


def write_lines(folder: Path, content: list[Any]) -> FolderConfig:
    """Write phrases.jsonl, text as it is; return the configuration that reads it."""
    text = "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in content)
    (folder / "phrases.jsonl").write_text(text, encoding="utf-8")
    return config(folder, "phrases.jsonl")


def write_coco(folder: Path, content: Any) -> FolderConfig:
    """Write coco.json; return the configuration that reads it."""
    (folder / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    return config(folder, "coco.json")


def config(folder: Path, annotations: str, **changes: Any) -> FolderConfig:
    """Configure a folder without shares: these pictures name their splits."""
    shares = {"val_share": 0.0, "test_share": 0.0, **changes}
    return FolderConfig("folder", str(folder), annotations, **shares)
