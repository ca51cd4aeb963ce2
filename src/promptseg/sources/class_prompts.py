"""Class names as prompts for training pictures that no one has described: one mask for all instances of a class.

The published training does so (Zou et al., "Generalized Decoding for Pixel, Image, and Language", 2023); the templates
are our own.
"""

import zlib
from collections.abc import Collection

from promptseg.sources.coco import CocoAnnotation, CocoImage, CocoTables
from promptseg.sources.repack import Annotated, Phrases

TEMPLATES = ("{}", "every {}", "any {} in the picture", "each {} there is")


def class_prompts(tables: CocoTables, described: Collection[int], limit: int | None, origin: str) -> list[Annotated]:
    """Return the pictures, by number, that have objects and are not among `described`; the first `limit` of them.

    Each becomes a picture of the train split with a phrase for each class in it, worded by the template that the
    numbers of picture and class decide, so that the same pictures make the same samples. Crowds count as instances.
    Raises ValueError, with `origin`, when there is no such picture, or where an object's class has no name.
    """
    numbers = [
        number for number in sorted(tables.annotations_of) if number in tables.images and number not in described
    ]
    if not numbers:
        raise ValueError(
            f"{origin}: got no picture without a ref among {len(tables.images)}, wanted some for `class_prompts`; set "
            "it to coco, for COCO's own tables, or to none"
        )
    return [
        Annotated(
            "train", image, image.file_name, annotations, _prompts(image, annotations, tables.class_names, origin)
        )
        for image, annotations in ((tables.images[n], tables.annotations_of[n]) for n in numbers[:limit])
    ]


def _prompts(image: CocoImage, annotations: list[CocoAnnotation], names: dict[int, str], origin: str) -> list[Phrases]:
    of_class: dict[int, list[int]] = {}
    for annotation in annotations:
        if annotation.class_id is None or annotation.class_id not in names:
            raise ValueError(
                f"{origin}: annotation {annotation.annotation_id}: got the class {annotation.class_id}, wanted one of "
                f"the {len(names)} that the file names; set `class_prompts` to none, or correct the file"
            )
        of_class.setdefault(annotation.class_id, []).append(annotation.annotation_id)
    return [
        Phrases(
            f"class {names[number]!r} of the picture {image.image_id}",
            tuple(annotation_ids),
            ((f"class-{image.image_id}-{number}", _worded(names[number], image.image_id, number)),),
            kind="keyword",  # the name is all that it says, whatever the words around
            may_be_empty=True,
        )
        for number, annotation_ids in sorted(of_class.items())
    ]


def _worded(name: str, image_id: int, class_id: int) -> str:
    place = zlib.crc32(f"{image_id} {class_id}".encode())
    return TEMPLATES[place % len(TEMPLATES)].format(name.lower())
