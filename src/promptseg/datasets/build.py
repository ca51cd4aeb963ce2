"""From a data set's configuration to the three artefacts that every stage reads."""

from pathlib import Path

from promptseg.datasets.refcocog import build_refcocog
from promptseg.datasets.shapes import build_shapes
from promptseg.params import DataConfig, ShapesConfig


def build_dataset(
    config: DataConfig, mirror: str | None, cache: Path, images: Path, samples: Path, pictures: Path
) -> None:
    """Write the folder `images` (stored archives), `samples` and `pictures` (JSON lines), each whole or not at all.

    `mirror` replaces the addresses of downloaded data sets, and `cache` keeps their archives; `shapes` needs neither.
    """
    if isinstance(config, ShapesConfig):
        build_shapes(config, images, samples, pictures)
    else:
        build_refcocog(config, mirror, cache, images, samples, pictures)
