"""How many pictures a second become canvases with their masks: in one process, and in several.

    python -m benchmarks.loader                                   # made-up photographs, 640x480
    python -m benchmarks.loader --data data                       # those of a data set that was fetched

A picture counts once it is decoded, laid on its canvas (uint8 [3, 1024, 1024]), and its masks are decoded from run
lengths and laid on theirs (bool [1024, 1024] each). Reading files is included where there are files. Two rates on one
machine compare with each other only when nothing else runs on it: the CPU time a picture is the steadier figure.
"""

import argparse
import io
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import mask_to_canvas, picture_to_canvas, read_picture
from promptseg.datasets.records import Rle, read_samples

HEIGHT, WIDTH = 480, 640
MASKS = 4


@dataclass(frozen=True)
class Item:
    """An encoded picture and the masks to lay on its canvas."""

    encoded: bytes
    masks: tuple[Rle, ...]


def made_up(count: int) -> list[Item]:
    """Pictures with detail at every scale, of a photograph's size as JPEG, and discs as masks; seeded."""
    rng = np.random.default_rng(20250601)
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    items = []
    for _ in range(count):
        pixels = np.full((HEIGHT, WIDTH, 3), 128.0)
        for octave in range(7):
            coarse = rng.normal(0, 50 / 1.3**octave, (4 * 2**octave, 4 * 2**octave, 3)) + 128
            layer = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
            pixels += np.asarray(layer.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float64) - 128
        stream = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "jpeg", quality=95)
        centres = zip(rng.integers(0, HEIGHT, MASKS), rng.integers(0, WIDTH, MASKS), strict=True)
        discs = ((rows - row) ** 2 + (columns - column) ** 2 < 90**2 for row, column in centres)
        items.append(Item(stream.getvalue(), tuple(Rle.from_mask(disc) for disc in discs)))
    return items


def of_data_set(folder: Path, count: int) -> list[Item]:
    """The first pictures of a fetched data set, each with up to MASKS of its samples' masks."""
    masks: dict[str, list[Rle]] = defaultdict(list)
    for sample in read_samples(folder / "samples.jsonl"):
        if len(masks) < count or sample.image in masks:
            masks[sample.image].append(sample.mask)
    archives = PictureArchives(folder / "images")
    return [Item(archives.read(image).getvalue(), tuple(found[:MASKS])) for image, found in masks.items()]


def prepare(item: Item) -> int:
    """Do what a loader does for a picture; return the number of masks, so that nothing is left out as unused."""
    picture_to_canvas(read_picture(item.encoded, "picture"))
    return len([mask_to_canvas(mask.to_mask()) for mask in item.masks])


def cpu_ms(work: Callable[[Item], Any], items: list[Item]) -> float:
    """CPU milliseconds a picture, of this process."""
    began = time.process_time()
    for item in items:
        work(item)
    return 1000 * (time.process_time() - began) / len(items)


def rates(items: list[Item], processes: int, seconds: float) -> tuple[float, float]:
    """Pictures a second, of `processes` that each go round their share of `items`: by the clock, and by CPU time.

    The second is what the clock would say were every process alone on a core of its own.
    """
    shares = [(items[start::processes], seconds) for start in range(processes)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        rounds = pool.starmap(_go_round, shares, chunksize=1)
    return sum(count / wall for count, wall, _ in rounds), sum(count / cpu for count, _, cpu in rounds)


def _go_round(items: list[Item], seconds: float) -> tuple[int, float, float]:
    """Return how many pictures were prepared, and the seconds by the clock and of CPU that they took."""
    prepare(items[0])
    began, cpu_began, count = time.perf_counter(), time.process_time(), 0
    while (took := time.perf_counter() - began) < seconds:
        prepare(items[count % len(items)])
        count += 1
    return count, took, time.process_time() - cpu_began


def main() -> None:
    """Measure and write a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with images/ and samples.jsonl; else pictures are made up")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each rate")
    arguments = parser.parse_args()
    count = arguments.pictures
    items = of_data_set(arguments.data, count) if arguments.data else made_up(count)
    kilobytes = np.mean([len(item.encoded) for item in items]) / 1000
    masks = np.mean([len(item.masks) for item in items])
    decoded = {id(item): read_picture(item.encoded, "picture") for item in items}
    prepare(items[0])
    parts = {
        "decode": lambda item: read_picture(item.encoded, "picture"),
        "picture to canvas": lambda item: picture_to_canvas(decoded[id(item)]),
        "masks to canvas": lambda item: [mask_to_canvas(mask.to_mask()) for mask in item.masks],
        "all of it": prepare,
    }
    lines = [f"{len(items)} pictures of {kilobytes:.0f} kB, {masks:.1f} masks each, on {os.cpu_count()} cores"]
    lines += [f"{name:20s}{cpu_ms(work, items):8.2f} ms of CPU a picture" for name, work in parts.items()]
    for processes in (1, 2):
        wall, cpu = rates(items, processes, arguments.seconds)
        lines.append(f"{processes} process{'es' * (processes > 1)}: {wall:.0f} pictures/s, {cpu:.0f}/s by CPU time")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
