"""Pictures and masks of a folder, as they are asked for by annotations; whatever is wrong with them is noted."""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from promptseg.datasets.preprocess import DAMAGED_PICTURE, read_picture
from promptseg.datasets.records import Rle
from promptseg.sources.coco_segmentation import segmentation_to_rle
from promptseg.sources.folder.mistakes import Mistakes


class FolderPictures:
    """The pictures below a folder; each is decoded once, whole, because a truncated one shows only then."""

    def __init__(self, folder: Path, mistakes: Mistakes) -> None:
        self._folder = folder
        self._mistakes = mistakes
        self._sizes: dict[str, tuple[int, int] | None] = {}

    def size(self, image: Any, where: str) -> tuple[int, int] | None:
        """Return (height, width) of the picture named `image` as it is shown, EXIF applied; None after a mistake."""
        path = self._inside(image, "image", where)
        if path is None:
            return None
        if image not in self._sizes:
            self._sizes[image] = self._read_size(path, image, where)
        elif self._sizes[image] is None:
            self._mistakes.add(where, f"image: got {image!r}, whose mistake is named above")
        return self._sizes[image]

    def mask(self, segmentation: Any, height: int, width: int, where: str) -> Rle | None:
        """Return a mask given as polygons, as run lengths, or as a picture's name; None after a mistake."""
        if isinstance(segmentation, str):
            rle = self._mask_file(segmentation, height, width, where)
        else:
            try:
                rle = segmentation_to_rle(segmentation, height, width)
            except ValueError as error:
                self._mistakes.add(where, f"mask: {error}")
                return None
        if rle is not None and not rle.area:
            self._mistakes.add(where, "mask: got one that covers no pixel, wanted at least one; leave the line out")
            return None
        return rle

    def _read_size(self, path: Path, image: str, where: str) -> tuple[int, int] | None:
        if not path.is_file():
            self._mistakes.add(where, f"image: got {image!r}, which is not in {self._folder}; correct the name")
            return None
        try:
            height, width = read_picture(path.read_bytes(), image).shape[:2]
        except ValueError as error:
            self._mistakes.add(where, f"image: {error}")
            return None
        return height, width

    def _mask_file(self, name: str, height: int, width: int, where: str) -> Rle | None:
        path = self._inside(name, "mask", where)
        if path is None:
            return None
        if not path.is_file():
            self._mistakes.add(where, f"mask: got {name!r}, which is not in {self._folder}; correct the name")
            return None
        try:
            with Image.open(path) as picture:
                values = np.asarray(picture.convert("L"))
        except DAMAGED_PICTURE as error:
            self._mistakes.add(where, f"mask: {name}: got a picture that cannot be read ({error}); replace the file")
            return None
        if values.shape != (height, width):
            got, wanted = f"{values.shape[1]}x{values.shape[0]}", f"{width}x{height}"
            self._mistakes.add(
                where, f"mask: {name}: got {got} px, wanted the picture's {wanted} as it is shown (EXIF)"
            )
            return None
        return Rle.from_mask(values > 0)

    def _inside(self, name: Any, key: str, where: str) -> Path | None:
        parts = PurePosixPath(name.replace("\\", "/")).parts if isinstance(name, str) else ()
        if not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            self._mistakes.add(where, f"{key}: got {name!r}, wanted the name of a file inside {self._folder}")
            return None
        return self._folder / name
