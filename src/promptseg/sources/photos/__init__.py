"""Photographs with masks and names of their objects, and phrases made from them: names, places, sizes, colours.

Start at tables.py, which reads the pictures. phrases.py words what is said of a picture's objects, composites.py pastes
objects of some pictures into others.
"""

from promptseg.sources.photos.tables import open_photos

__all__ = ["open_photos"]
