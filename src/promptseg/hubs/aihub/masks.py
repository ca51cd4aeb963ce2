"""Masks that were paid for, kept by the hash of what went in: no later run asks for them again."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from promptseg.datasets.records import Rle
from promptseg.files import atomic_path


class MaskStore:
    """Run-length masks of one compiled graph, one file per finished chunk below `folder`, whole or not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._masks: dict[str, Rle] = {}
        for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else []:
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self._masks[entry["sample"]] = Rle(**entry["mask"])

    def __contains__(self, digest: object) -> bool:
        return digest in self._masks

    def __getitem__(self, digest: str) -> Rle:
        return self._masks[digest]

    def add(self, chunk_name: str, masks: Iterable[tuple[str, Rle]]) -> None:
        """Store the masks of one chunk, (digest of the sample, mask), as they come; another process may do the same."""
        new: dict[str, Rle] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(self._folder / "lock"),
            atomic_path(self._folder / f"{chunk_name}.jsonl") as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for digest, mask in masks:
                new[digest] = mask
                file.write(json.dumps({"sample": digest, "mask": asdict(mask)}) + "\n")
        self._masks.update(new)
