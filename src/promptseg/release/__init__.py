"""A folder that answers phrases without this project: `build.py` makes and verifies it, `run.py` is the program in it.

`run.py`, and the two modules that it needs (datasets/preprocess.py, report/overlay.py), are copied as they are: they
import numpy and Pillow alone. May import datasets, hubs, scoring and params; nothing but its command imports it.
"""
