"""A COCO file whose annotations carry "phrase" or "phrases"; without either they are the picture's other objects."""

import json
from pathlib import Path
from typing import Any

from promptseg.sources.folder.annotation_file import Annotation, checked_phrases, checked_split
from promptseg.sources.folder.mistakes import Mistakes
from promptseg.sources.folder.pictures import FolderPictures


def read_coco_file(path: Path, pictures: FolderPictures, mistakes: Mistakes) -> list[Annotation]:
    """Read every image and annotation; those with a mistake are noted and left out. Source: cocodataset.org."""
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        mistakes.add(path.name, f"got text that is not JSON ({error}), wanted COCO's object")
        return []
    lists = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
    if not all(isinstance(each, list) and all(isinstance(entry, dict) for entry in each) for each in lists):
        mistakes.add(path.name, "got no lists named 'images' and 'annotations', wanted COCO's object")
        return []
    images: dict[Any, dict[str, Any]] = {}
    for entry in lists[0] or []:
        where = f"{path.name}, image {entry.get('id')!r}"
        if entry.get("id") in images:
            mistakes.add(where, "id: got it twice, wanted distinct ids")
        images[entry.get("id")] = entry
    read = (_annotation(entry, images, path.name, pictures, mistakes) for entry in lists[1] or [])
    return [annotation for annotation in read if annotation]


def _annotation(
    fields: dict[str, Any], images: dict[Any, dict[str, Any]], name: str, pictures: FolderPictures, mistakes: Mistakes
) -> Annotation | None:
    where = f"{name}, annotation {fields.get('id')!r}"
    image = images.get(fields.get("image_id"))
    if image is None:
        mistakes.add(where, f"image_id: got {fields.get('image_id')!r}, which no image has; correct it")
        return None
    named = f"{name}, image {image.get('id')!r}"
    size = pictures.size(image.get("file_name"), named)
    if size is None:
        return None
    claimed = image.get("height", size[0]), image.get("width", size[1])
    if claimed != size:
        wanted = f"{size[1]}x{size[0]} px as the picture is shown (EXIF)"
        mistakes.add(named, f"width, height: got {claimed[1]}x{claimed[0]}, wanted {wanted}")
        return None
    given = fields.get("phrases", fields.get("phrase", []))
    phrases = checked_phrases(given, where, mistakes)
    split = checked_split(image.get("split"), named, mistakes)
    mask = pictures.mask(fields.get("segmentation"), *size, where)
    return Annotation(where, image["file_name"], *size, mask, phrases, split) if mask else None
