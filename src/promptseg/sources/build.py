"""From a data set's configuration to the three artefacts that every stage reads."""

from pathlib import Path

from promptseg.params import DataConfig, FolderConfig, LpcvcConfig, ShapesConfig
from promptseg.sources.folder.build import build_folder
from promptseg.sources.lpcvc import build_lpcvc
from promptseg.sources.mirrors import Mirror, check_watched
from promptseg.sources.refcoco import build_refcoco
from promptseg.sources.shapes import build_shapes


def build_dataset(
    config: DataConfig, mirror: Mirror, watch: str, cache: Path, images: Path, samples: Path, pictures: Path
) -> None:
    """Write the folder `images` (stored archives), `samples` and `pictures` (JSON lines), each whole or not at all.

    `mirror` replaces the addresses of downloaded data sets, and `cache` keeps what is fetched; `shapes` needs neither.
    `watch` must be the folder that is read, of a data set that has one, or hold the mirrors that are folders, so that
    DVC notices what changes there; ValueError where it is another.
    """
    if isinstance(config, ShapesConfig):
        build_shapes(config, images, samples, pictures)
    elif isinstance(config, FolderConfig):
        build_folder(config, watch, images, samples, pictures)
    else:
        check_watched(mirror, watch)
        if isinstance(config, LpcvcConfig):
            build_lpcvc(config, mirror, cache, images, samples, pictures)
        else:
            build_refcoco(config, mirror, cache, images, samples, pictures)
