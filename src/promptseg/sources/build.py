"""From a data set's configuration to the three artefacts that every stage reads, or the list of its mistakes."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from promptseg.params import DataConfig, FolderConfig, LpcvcConfig, PhotosConfig, ReferConfig, ShapesConfig
from promptseg.sources.checks import SHOWN, Mistakes, refusal
from promptseg.sources.folder import check_watch, open_folder
from promptseg.sources.lpcvc import open_lpcvc
from promptseg.sources.mirrors import Mirror, check_watched
from promptseg.sources.photos import open_photos
from promptseg.sources.refcoco import open_refcoco
from promptseg.sources.repack import Annotated, Entry, PictureStore, Rules, assemble, write_dataset
from promptseg.sources.shapes import build_shapes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """What a data set holds, by split; what is wrong with it; and the store of its encoded pictures, which is open."""

    entries: tuple[Entry, ...]
    mistakes: Mistakes
    store: PictureStore
    origin: str


@contextmanager
def open_contents(
    config: FolderConfig | LpcvcConfig | PhotosConfig | ReferConfig, mirror: Mirror, cache: Path
) -> Iterator[Contents]:
    """Read everything that a configuration names to the end, every picture decoded; all mistakes are in the result.

    `mirror` replaces the addresses of downloaded data sets, and `cache` keeps what is fetched. Raises ValueError when
    archives are missing or damaged.
    """
    mistakes = Mistakes()
    with _opened(config, mirror, cache, mistakes) as (annotated, store, rules):
        entries = assemble(annotated, store, rules, mistakes)
        yield Contents(tuple(entries), mistakes, store, rules.origin)


def build_dataset(
    config: DataConfig, mirror: Mirror, watch: str, cache: Path, images: Path, samples: Path, objects: Path
) -> None:
    """Write the folder `images` (stored archives), `samples` and `objects` (JSON lines), all or none.

    Pictures are copied byte for byte. `watch` must be the folder that is read, of a data set that has one, or hold
    the mirrors that are folders, so that DVC notices what changes there. Raises ValueError before
    anything is written when anything is wrong, OSError on a full disk.
    """
    if isinstance(config, ShapesConfig):
        build_shapes(config, images, samples, objects)
        return
    if isinstance(config, FolderConfig):
        check_watch(config, watch)
    else:
        check_watched(mirror, watch)
    with open_contents(config, mirror, cache) as contents:
        if contents.mistakes.found:
            raise ValueError(refusal(contents.origin, contents.mistakes.in_order()))
        for reason, places in contents.mistakes.left_out.items():
            shown = "; ".join(places[:SHOWN])
            _log.warning("left out %d (%s), such as %s; check-data lists them", len(places), reason, shown)
        entries = tqdm(contents.entries, desc="repacking pictures", unit="picture")
        encoded = ((contents.store.read(entry.file_name), entry) for entry in entries)
        write_dataset(encoded, images, samples, objects)


def _opened(
    config: FolderConfig | LpcvcConfig | PhotosConfig | ReferConfig, mirror: Mirror, cache: Path, mistakes: Mistakes
) -> AbstractContextManager[tuple[list[Annotated], PictureStore, Rules]]:
    if isinstance(config, FolderConfig):
        return open_folder(config, mistakes)
    if isinstance(config, LpcvcConfig):
        return open_lpcvc(config, mirror, cache, mistakes)
    if isinstance(config, PhotosConfig):
        return open_photos(config, mirror, cache, mistakes)
    return open_refcoco(config, mirror, cache, mistakes)
