"""Pictures fetched one by one and side by side: only those that a data set needs, each once, into the cache."""

import io
import shutil
import threading
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from tqdm import tqdm

from promptseg.datasets.archives import checked_member_name
from promptseg.datasets.preprocess import DAMAGED_PICTURE
from promptseg.files import write_bytes
from promptseg.params import SinglePictures
from promptseg.sources.mirrors import Mirror, first_of, is_address, places, resolve_folder, side_by_side
from promptseg.transfer.lock import locked
from promptseg.transfer.small import fetch_small

USUAL_BYTES = 170_000  # of a picture of COCO train2014: 13.5 GB for 82,783 of them


def obtain_pictures(names: Iterable[str], config: SinglePictures, mirror: Mirror, cache: Path) -> Path:
    """Return a folder of the cache that holds every picture of `names`; what is missing is fetched.

    No checksum is published for single pictures: each is decoded whole before it counts as fetched. Raises ValueError
    when one is not given, no picture or damaged, when a name leads out of the folder, or when there is no room.
    """
    folder = cache / "pictures" / config.path
    with locked(folder, config.path):
        _fetch_missing(names, folder, config, mirror)
    return folder


def _fetch_missing(names: Iterable[str], folder: Path, config: SinglePictures, mirror: Mirror) -> None:
    missing = [name for name in sorted(names) if not (folder / checked_member_name(name, folder)).is_file()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, len(missing))
    tried = places(mirror) if mirror is not None else (config.url,)
    stop = threading.Event()
    with tqdm(total=len(missing), desc="fetching pictures", unit="picture") as progress:

        def fetch(name: str) -> None:
            path = config.path if mirror is not None else ""
            write_bytes(folder / name, first_of(tried, lambda place: _checked(place, path, name, stop)))
            progress.update()

        side_by_side([partial(fetch, name) for name in missing], stop, config.at_once)


def _checked(place: str, path: str, name: str, stop: threading.Event) -> bytes:
    """Return the bytes of a picture below `path` of a place, after decoding them."""
    if is_address(place):
        origin = "/".join(filter(None, (place.rstrip("/"), quote(path), quote(name))))
        content = fetch_small(origin, stop)
    else:
        folder = resolve_folder(place) / path
        origin = str(folder / name)
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: this mirror has no {name!r}; add it, or set `pictures` to archive")
        content = (folder / name).read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
    except DAMAGED_PICTURE as error:
        raise ValueError(f"{origin}: got no picture, or a damaged one ({error}); try again, or set `mirror`") from error
    return content


def _check_room(folder: Path, pictures: int) -> None:
    free, need = shutil.disk_usage(folder).free, pictures * USUAL_BYTES
    if free < need:
        raise ValueError(
            f"{folder}: got {free:,} free bytes, wanted some {need:,} for {pictures:,} pictures; make room"
        )
