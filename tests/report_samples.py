"""Made-up pictures, masks and a phrase that tries to break a page, for the report's tests."""

import io

import numpy as np
from PIL import Image

HOSTILE = "<script>alert('x')</script> \"$\\frac$ & 红色的圆"


def png(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return io.BytesIO(stream.getvalue())


def noise(height=90, width=120):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def box(height, width, top, left, side):
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask
