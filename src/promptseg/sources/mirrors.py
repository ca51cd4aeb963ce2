"""Where a data set's files come from: their public address, mirrors' addresses, or folders here; verified.

A mirror is a folder, or an http(s) address, laid out alike: `mirror/path` stands for a source's `url`. It may be a
smaller copy, and then says so itself: `SHA256SUMS` at its root (lines of "<sha256>  <path>") replaces configured sums.
"""

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import quote

from PIL import Image
from tqdm import tqdm

from promptseg.datasets.archives import checked_member_name
from promptseg.datasets.preprocess import DAMAGED_PICTURE
from promptseg.download import RefusedError, Stop, StoppedError, check_room, download, fetch_small, first_of
from promptseg.files import locked, sha256_of, write_bytes
from promptseg.params import SinglePictures, Source

SUMS_FILE = "SHA256SUMS"
USUAL_BYTES = 170_000  # of a picture of COCO train2014: 13.5 GB for 82,783 of them
SHA256 = re.compile(r"[0-9a-f]{64}")
Mirror = str | tuple[str, ...] | None

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def obtain_all(sources: Sequence[Source], mirror: Mirror, cache: Path) -> list[Path]:
    """Return the paths of the archives, whole and verified, in order; what is missing is fetched side by side.

    Each comes from its url into `cache`, once, where `mirror` is null; else from the first of the mirrors that has it:
    from an address into `cache`, from a folder where it lies. The first failure ends the others, which keep what came.
    Raises ValueError when one is not there or not what its checksum says, OSError on a full disk.
    """
    stop = Stop()
    return side_by_side([partial(obtain, source, mirror, cache, stop) for source in sources], stop, len(sources))


def side_by_side(tasks: Sequence[Callable[[], _T]], stop: Stop, at_once: int) -> list[_T]:
    """Return what `tasks` return, run in threads; once one fails or the user interrupts, `stop` is set for the rest.

    Raises the first failure that is not a StoppedError.
    """
    with ThreadPoolExecutor(at_once) as threads:
        futures = [threads.submit(task) for task in tasks]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() for future in futures):
                stop.set()
                threads.shutdown(cancel_futures=True)
    failures = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in sorted(failures, key=lambda error: isinstance(error, StoppedError)):
        raise error
    return [future.result() for future in futures]


def obtain(source: Source, mirror: Mirror, cache: Path, stop: Stop) -> Path:
    """Return the path of one archive; see `obtain_all`."""
    if mirror is None:
        if source.url is None:
            raise ValueError(f"mirror: got null, wanted a place that has {source.path!r}: no public address is known")
        return _cached(source.url, source.path, source.sha256, source.bytes, cache, stop)
    return first_of(places(mirror), lambda place: _from_place(source, place, cache, stop))


def obtain_pictures(names: Iterable[str], config: SinglePictures, mirror: Mirror, cache: Path) -> dict[str, Path]:
    """Return where each picture of `names` lies: in a mirror's folder, or in `cache`, fetched side by side.

    What one address gave is kept apart from what another gave. No checksum is published for single pictures: each is
    decoded whole before it counts. Raises ValueError when one is not given, no picture or damaged, or when a name leads
    out of the folder, OSError when there is no room.
    """
    wanted = [checked_member_name(name, Path(config.path)) for name in sorted(names)]
    tried, path = ((config.url,), "") if mirror is None else (places(mirror), config.path)
    folders = {}
    for place in tried:
        with suppress(ValueError):  # a mirror that is not here: said where a picture is looked for
            folders[place] = _pictures_folder(place, path, cache)
    stop = Stop()
    with locked(cache / "pictures.lock", f"another run is fetching pictures of {config.path}; waiting for it"):
        missing = sum(not any((folder / name).is_file() for folder in folders.values()) for name in wanted)
        if missing:
            check_room(cache, missing * USUAL_BYTES, f"{missing:,} pictures")
        with tqdm(total=len(wanted), desc="fetching pictures", unit="picture") as progress:

            def take(name: str) -> Path:
                picture = first_of(tried, lambda place: _picture(place, path, name, cache, stop))
                progress.update()
                return picture

            pictures = side_by_side([partial(take, name) for name in wanted], stop, config.at_once)
    for place, folder in folders.items():
        used = sum(picture.is_relative_to(folder) for picture in pictures)
        _log.info("%s: %d of %d pictures, in %s", place, used, len(wanted), folder)
    return dict(zip(wanted, pictures, strict=True))


def places(mirror: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the mirrors in the order in which they are tried."""
    return (mirror,) if isinstance(mirror, str) else mirror


def resolve_folder(mirror: str) -> Path:
    """Return the folder that `mirror` names, absolute. Raises ValueError, saying where it looked, when there is none.

    A relative one is looked for from here, then from $DVC_ROOT, then from the repository whose `.dvc` holds this
    folder: DVC runs queued experiments in `.dvc/tmp/exps/<name>`, and `mirror` was typed at the repository's root.
    """
    here = Path.cwd()
    bases = [here]
    if root := os.environ.get("DVC_ROOT"):
        bases.append(Path(root))
    bases += [parent.parent for parent in here.parents if parent.name == ".dvc"]
    candidates = list(dict.fromkeys((base / Path(mirror).expanduser()).resolve() for base in bases))
    for folder in candidates:
        if mirror and folder.is_dir():
            return folder
    looked = ", ".join(str(folder) for folder in candidates)
    raise ValueError(
        f"mirror: got {mirror!r}, which is no folder ({looked}); wanted null, a folder or an http(s) address, or a list"
    )


def check_watched(mirror: Mirror, watch: str) -> None:
    """Raise ValueError unless `watch` is, or holds, every mirror that is a folder: DVC notices only what it watches.

    Mirrors that are not here, such as a disk that is not mounted, are left out: nothing is read from them.
    """
    folders = []
    for place in places(mirror) if mirror is not None else ():
        with suppress(ValueError):
            folders += [] if is_address(place) else [resolve_folder(place)]
    watched = Path(watch).expanduser().resolve()
    if all(folder.is_relative_to(watched) for folder in folders):
        return
    wanted = " and ".join(dict.fromkeys(map(str, folders)))
    remedy = f"-S watch={wanted}" if len(set(folders)) == 1 else "a folder that holds them"
    raise ValueError(
        f"watch: got {watch!r}, wanted {wanted}, which `mirror` names: DVC notices only what it watches, and would "
        f"keep the old pictures when others are put there; set watch beside mirror in params.yaml, or {remedy} (DVC "
        "reads all of it once, minutes for 13 GB)"
    )


def is_address(place: str) -> bool:
    """Whether a mirror is reached over http(s)."""
    return place.startswith(("http://", "https://"))


def _from_place(source: Source, place: str, cache: Path, stop: Stop) -> Path:
    if not is_address(place):
        return _in_folder(source, resolve_folder(place))
    base = place.rstrip("/")
    sums = _parse_sums(_read_remote_sums(base, stop), f"{base}/{SUMS_FILE}")
    sha256 = sums.get(source.path, source.sha256)
    expected_bytes = None if source.path in sums else source.bytes
    return _cached(f"{base}/{quote(source.path)}", source.path, sha256, expected_bytes, cache, stop)


def _cached(address: str, path: str, sha256: str | None, expected_bytes: int | None, cache: Path, stop: Stop) -> Path:
    key = sha256 or hashlib.sha256(address.encode()).hexdigest()
    target = cache / f"{key[:16]}-{PurePosixPath(path).name}"
    download(address, target, sha256=sha256, expected_bytes=expected_bytes, stop=stop)
    return target


def _in_folder(source: Source, folder: Path) -> Path:
    path = folder / source.path
    if not path.is_file():
        raise ValueError(f"{folder}: this mirror has no {source.path!r}; add it, or set `mirror` to null")
    sums_path = folder / SUMS_FILE
    sums = _parse_sums(sums_path.read_text(encoding="utf-8"), str(sums_path)) if sums_path.is_file() else {}
    got, wanted = sha256_of(path), sums.get(source.path, source.sha256)
    if wanted is None:
        _log.warning("%s: no checksum is known; its sha256 is %s", path, got)
    elif got != wanted:
        raise ValueError(
            f"{path}: got sha256 {got}, wanted {wanted}: it is damaged or another version; copy it again, "
            f"or, if it is this mirror's own version, list it in {SUMS_FILE}"
        )
    return path


def _read_remote_sums(base: str, stop: Stop) -> str:
    try:
        return fetch_small(f"{base}/{SUMS_FILE}", stop).decode("utf-8", errors="replace")
    except RefusedError as error:
        if error.status == 404:
            return ""
        raise


def _parse_sums(text: str, origin: str) -> dict[str, str]:
    sums = {}
    for number, line in enumerate(text.splitlines(), start=1):
        sha256, _, path = line.partition(" ")
        if not SHA256.fullmatch(sha256) or not path.strip():
            raise ValueError(f"{origin}:{number}: got {line!r}, wanted '<sha256>  <path>'; write it with `sha256sum`")
        sums[path.lstrip(" *").removeprefix("./")] = sha256
    return sums


def _pictures_folder(place: str, path: str, cache: Path) -> Path:
    """Return the folder of a place's pictures: its own, or the part of the cache that keeps what its address gave."""
    if is_address(place):
        return cache / "pictures" / hashlib.sha256(f"{place.rstrip('/')}/{path}".encode()).hexdigest()[:16]
    return resolve_folder(place) / path


def _picture(place: str, path: str, name: str, cache: Path, stop: Stop) -> Path:
    """Return where a picture lies, after decoding it; what an address gave before is taken as it is."""
    target = _pictures_folder(place, path, cache) / name
    if not is_address(place):
        if not target.is_file():
            raise ValueError(f"{target.parent}: this mirror has no {name!r}; add it, or set `pictures` to archive")
        _check_picture(target.read_bytes(), str(target))
    elif not target.is_file():
        address = "/".join(filter(None, (place.rstrip("/"), quote(path), quote(name))))
        content = fetch_small(address, stop)
        _check_picture(content, address)
        write_bytes(target, content)
    return target


def _check_picture(content: bytes, origin: str) -> None:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
    except DAMAGED_PICTURE as error:
        raise ValueError(f"{origin}: got no picture, or a damaged one ({error}); try again, or set `mirror`") from error
