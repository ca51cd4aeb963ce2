"""The embedded data set: seeded scenes of shapes with exact masks and phrases that single one object out."""

import io
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from promptseg.datasets.records import SPLITS, PhraseKind, Picture, Rle, Sample, Split
from promptseg.params import ShapesConfig
from promptseg.sources.repack import Entry, write_dataset
from promptseg.sources.shapes.facts import Seen, see
from promptseg.sources.shapes.phrases import has_distractor, make_phrases
from promptseg.sources.shapes.render import render
from promptseg.sources.shapes.scene import Layout, make_masks, sample_count, sample_layout

SMALLEST_TARGET_PX = 60
JPEG_QUALITY = 92
LAYOUT_ATTEMPTS = 2000  # four in five succeed; eight targets among eight objects take twelve on average
SCENES_WORTH_A_WORKER = 100  # another process takes about as long to start as these to make

_EncodedScene = tuple[bytes, Entry]


@dataclass(frozen=True)
class Target:
    """An object that is referred to, by its place in `RenderedScene.objects`, and its phrase of each kind."""

    index: int
    phrases: dict[PhraseKind, str]


@dataclass(frozen=True)
class RenderedScene:
    """One scene: pixels uint8 RGB [h, w, 3], visible masks bool [objects, h, w], and what was drawn and said."""

    pixels: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    layout: Layout
    objects: tuple[Seen, ...]
    targets: tuple[Target, ...]


def render_scene(split: Split, index: int, config: ShapesConfig) -> RenderedScene:
    """Make scene `index` of a split; it depends on the seed and the object and target counts only.

    Layouts are drawn until `targets_per_scene` objects (or all, where there are fewer) have a distractor that shares
    their colour or their shape and an unambiguous phrase of every kind.
    """
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, SPLITS.index(split), index]))
    count = sample_count(rng, config.objects_min, config.objects_max)
    for _ in range(LAYOUT_ATTEMPTS):
        layout = sample_layout(rng, count)
        masks = make_masks(layout) if layout else None
        if layout is None or masks is None:
            continue
        frame, seen = see(layout, masks)
        targets: list[Target] = []
        wanted = min(config.targets_per_scene, count)
        for item in (seen[i] for i in rng.permutation(len(seen))):
            if item.area_px >= SMALLEST_TARGET_PX and has_distractor(item, seen) and len(targets) < wanted:
                phrases = make_phrases(item, seen, frame, rng)
                targets += [Target(item.index, phrases)] if phrases else []
        if len(targets) == wanted:
            return RenderedScene(render(layout, rng), masks.visible, layout, tuple(seen), tuple(targets))
    raise AssertionError(f"no layout found for {split} {index} of {config}")


def build_shapes(config: ShapesConfig, images: Path, samples: Path, objects: Path) -> None:
    """Write the folder `images` (a stored archive of JPEG files per split), `samples` and `objects` (JSON lines).

    Equal configurations give equal bytes, whatever the number of processor cores. All outputs appear, or none.
    """
    total = sum(config.scenes(split) for split in SPLITS)
    workers = min(os.cpu_count() or 1, math.ceil(total / SCENES_WORTH_A_WORKER))
    _build(config, workers, images, samples, objects)


def _build(config: ShapesConfig, workers: int, images: Path, samples: Path, objects: Path) -> None:
    def scenes() -> Iterator[_EncodedScene]:
        for split in SPLITS:
            count = config.scenes(split)
            encoded = map_ordered(partial(_encode_scene, split, config=config), range(count))
            yield from tqdm(encoded, desc=f"shapes {split}", total=count, unit="scene")

    with _ordered_map(workers) as map_ordered:
        write_dataset(scenes(), images, samples, objects)


@contextmanager
def _ordered_map(workers: int) -> Iterator[Callable[..., Iterator[_EncodedScene]]]:
    """A `map` that keeps the order, in this process or over several."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_with_parent) as pool:
        try:
            yield partial(pool.map, chunksize=8)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_with_parent() -> None:
    """End this worker when the process that started it dies; by itself it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "runs in the pool's workers only"

    def wait_and_leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_and_leave, daemon=True).start()


def _encode_scene(split: Split, index: int, config: ShapesConfig) -> _EncodedScene:
    scene = render_scene(split, index, config)
    name, height, width = f"{split}-{index:06d}", scene.layout.height, scene.layout.width
    stream = io.BytesIO()
    Image.fromarray(scene.pixels).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    objects = tuple(Rle.from_mask(mask) for mask in scene.masks)
    picture = Picture(f"{split}.zip/{name}.jpg", split, height, width, objects)
    samples = tuple(
        Sample(f"{name}-{number}-{kind}", split, picture.image, height, width, phrase, kind, objects[target.index])
        for number, target in enumerate(scene.targets)
        for kind, phrase in target.phrases.items()
    )
    return stream.getvalue(), Entry(f"{name}.jpg", picture, samples)
