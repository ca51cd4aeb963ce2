"""The file that `finetune.init` names: one on this machine, or one that an address gives, downloaded once."""

import hashlib
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from promptseg.files import sha256_of, write_bytes
from promptseg.transfer.download import download
from promptseg.transfer.lock import locked


def weights_file(init: str, downloads: Path) -> Path:
    """Return the path of the weights; an address is downloaded below `downloads`, with the JSON of a .safetensors.

    A file that was downloaded before is used again where its bytes still have the sha256 that was noted then. Raises
    ValueError when the address gives no file, OSError when the disk is full.
    """
    if not init.startswith(("http://", "https://")):
        return Path(init)
    parts = urlsplit(init)
    name = PurePosixPath(unquote(parts.path)).name
    if not name:
        raise ValueError(f"finetune.init: got {init}, wanted the address of a file")
    folder = downloads / hashlib.sha256(init.encode()).hexdigest()[:16]
    if name.endswith(".safetensors"):
        beside = parts._replace(path=parts.path.removesuffix(".safetensors") + ".json").geturl()
        _once(beside, folder / Path(name).with_suffix(".json"))
    return _once(init, folder / name)


def _once(address: str, target: Path) -> Path:
    noted = target.with_name(f"{target.name}.sha256")
    with locked(target, target.name):  # all processes of a training want the same file
        if target.is_file() and noted.is_file() and sha256_of(target) == noted.read_text(encoding="utf-8"):
            return target
        target.unlink(missing_ok=True)
        sha256 = download(address, target, sha256=None, expected_bytes=None, cache=target.parent)
        write_bytes(noted, sha256.encode())
    return target
