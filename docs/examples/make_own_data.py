"""Stands for your camera in docs/own-data.md: four pictures of squares, and what people say of them."""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SQUARES = {"the red square": ("red", 10, 10), "the blue square on the right": ("blue", 50, 20)}
SIDE = 20


def main(folder: Path) -> None:
    """Write the pictures and phrases.jsonl."""
    lines = []
    for name, split in zip("abcd", ("train", "train", "val", "test"), strict=True):
        picture = Image.new("RGB", (80, 60), (120 + 10 * ord(name) % 60, 130, 140))
        draw = ImageDraw.Draw(picture)
        for phrase, (colour, x, y) in SQUARES.items():
            draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill=colour)
            corners = [x, y, x + SIDE, y, x + SIDE, y + SIDE, x, y + SIDE]
            lines.append({"image": f"{name}.png", "phrase": phrase, "mask": [corners], "split": split})
        picture.save(folder / f"{name}.png")
    (folder / "phrases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
