"""JSON lines: {"image": "a.jpg", "phrase": "the red cup", "mask": ..., "split": "train"}, one phrase a line."""

import json
from pathlib import Path
from typing import Any

from promptseg.sources.folder.annotation_file import Annotation, checked_phrases, checked_split
from promptseg.sources.folder.mistakes import Mistakes
from promptseg.sources.folder.pictures import FolderPictures

WANTED, OPTIONAL = ("image", "phrase", "mask"), ("split",)


def read_json_lines(path: Path, pictures: FolderPictures, mistakes: Mistakes) -> list[Annotation]:
    """Read every line; blank ones are skipped, those with a mistake are noted and left out."""
    annotations = []
    seen: dict[tuple[str, str], str] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path.name}:{number}"
        if not line.strip():
            continue
        fields = _fields(line, where, mistakes)
        annotation = _annotation(fields, where, pictures, mistakes) if fields else None
        if annotation is None:
            continue
        asked = annotation.image, annotation.phrases[0].lower()
        if asked in seen:
            mistakes.add(
                where, f"phrase: got {asked[1]!r} of {asked[0]!r} again, as on {seen[asked]}; a phrase means one"
            )
            continue
        seen[asked] = where
        annotations.append(annotation)
    return annotations


def _fields(line: bytes, where: str, mistakes: Mistakes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        mistakes.add(where, f"got text that is not JSON ({error}), wanted one object a line")
        return None
    if not isinstance(fields, dict):
        mistakes.add(where, f"got {type(fields).__name__}, wanted an object with {', '.join(WANTED)}")
        return None
    for key in (
        *(key for key in WANTED if key not in fields),
        *(key for key in fields if key not in WANTED + OPTIONAL),
    ):
        problem = "missing" if key in WANTED else "unknown"
        mistakes.add(where, f"{key}: {problem}; wanted {', '.join(WANTED)}, and split if you like")
    return fields if all(key in fields for key in WANTED) else None


def _annotation(fields: dict[str, Any], where: str, pictures: FolderPictures, mistakes: Mistakes) -> Annotation | None:
    phrases = checked_phrases(fields["phrase"], where, mistakes)
    split = checked_split(fields.get("split"), where, mistakes)
    size = pictures.size(fields["image"], where)
    mask = pictures.mask(fields["mask"], *size, where) if size else None
    if size is None or mask is None or not phrases:
        return None
    return Annotation(where, fields["image"], *size, mask, phrases, split)
