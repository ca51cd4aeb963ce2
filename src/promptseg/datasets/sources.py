"""Where a data set's archives come from: their public address, a mirror's, or a folder on this machine; verified.

A mirror is a folder, or an http(s) address, laid out alike: `mirror/path` stands for a source's `url`. It may be a
smaller copy, and then says so itself: `SHA256SUMS` at its root (lines of "<sha256>  <path>") replaces configured sums.
"""

import hashlib
import logging
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from tqdm import tqdm

from promptseg.files import atomic_path, sha256_of
from promptseg.params import Source

SUMS_FILE = "SHA256SUMS"
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 60.0  # without a byte
SHA256 = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


def obtain(source: Source, mirror: str | None, cache: Path) -> Path:
    """Return the path of `source`'s archive, whole and verified.

    With `mirror` null it is downloaded from its url into `cache`, once; with an address, from there; with a folder, it
    is used where it lies. Raises ValueError when it is not there or not what its checksum says, OSError on a full disk.
    """
    if mirror is None:
        return _cached(source.url, source.path, source.sha256, source.bytes, cache)
    if _is_address(mirror):
        base = mirror.rstrip("/")
        sums = _parse_sums(_read_remote_sums(base), f"{base}/{SUMS_FILE}")
        sha256 = sums.get(source.path, source.sha256)
        expected_bytes = None if source.path in sums else source.bytes
        return _cached(f"{base}/{quote(source.path)}", source.path, sha256, expected_bytes, cache)
    return _in_folder(source, resolve_folder(mirror))


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
        f"mirror: got {mirror!r}, which is no folder ({looked}); wanted null, a folder or an http(s) address"
    )


def download(address: str, target: Path, sha256: str, expected_bytes: int | None) -> None:
    """Stream `address` into `target`, which appears only when its bytes have that sha256; else nothing stays behind.

    One connection, one attempt. Raises ValueError when the server refuses, is not reached, stops early or sends other
    bytes; OSError when the disk is full.
    """
    digest = hashlib.sha256()
    with _opened(address) as response, atomic_path(target) as temporary:
        size = _size(address, response.length, expected_bytes)
        _check_room(target, size)
        progress = tqdm(total=size, unit="B", unit_scale=True, desc=target.name)
        with temporary.open("wb") as stream, progress:
            while block := response.read(BLOCK_BYTES):
                stream.write(block)
                digest.update(block)
                progress.update(len(block))
        if size is not None and temporary.stat().st_size < size:
            raise ValueError(
                f"{address}: got {temporary.stat().st_size:,} of {size:,} bytes; run `dvc repro fetch` again"
            )
        _check_sum(address, digest.hexdigest(), sha256)


def _cached(address: str, path: str, sha256: str, expected_bytes: int | None, cache: Path) -> Path:
    target = cache / f"{sha256[:16]}-{PurePosixPath(path).name}"
    if target.is_file():
        if sha256_of(target) == sha256:
            return target
        _log.warning("%s was damaged after it was fetched; fetching it again", target)
    download(address, target, sha256, expected_bytes)
    return target


def _in_folder(source: Source, folder: Path) -> Path:
    path = folder / source.path
    if not path.is_file():
        raise ValueError(f"{folder}: this mirror has no {source.path!r}; add it, or set `mirror` to null")
    sums_path = folder / SUMS_FILE
    sums = _parse_sums(sums_path.read_text(encoding="utf-8"), str(sums_path)) if sums_path.is_file() else {}
    _check_sum(str(path), sha256_of(path), sums.get(source.path, source.sha256))
    return path


def _read_remote_sums(base: str) -> str:
    address = f"{base}/{SUMS_FILE}"
    try:
        with _opened(address) as response:
            return response.read(BLOCK_BYTES).decode("utf-8")
    except ValueError as error:
        if isinstance(error.__cause__, HTTPError) and error.__cause__.code == 404:
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


def _size(address: str, offered: int | None, wanted: int | None) -> int | None:
    if offered is not None and wanted is not None and offered != wanted:
        raise ValueError(f"{address}: got {offered:,} bytes offered, wanted {wanted:,}: another version; set `mirror`")
    return wanted if offered is None else offered


def _check_sum(origin: str, got: str, wanted: str) -> None:
    if got != wanted:
        raise ValueError(
            f"{origin}: got sha256 {got}, wanted {wanted}: it is damaged or another version; fetch or copy it again, "
            f"or, if it is a mirror's own version, list it in the mirror's {SUMS_FILE}"
        )


def _check_room(target: Path, size: int | None) -> None:
    free = shutil.disk_usage(target.parent).free
    if size is not None and size > free:
        raise ValueError(f"{target.parent}: got {free:,} free bytes, wanted {size:,} for {target.name}; make room")


def _is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


@contextmanager
def _opened(address: str) -> Iterator[HTTPResponse]:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
            yield response
    except HTTPError as error:
        raise ValueError(
            f"{address}: the server answers {error.code} ({error.reason}); check it, or set `mirror`"
        ) from error
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise ValueError(f"{address}: not reached, or broken off ({error}); try again, or set `mirror`") from error
