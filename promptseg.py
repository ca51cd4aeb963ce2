"""Lets `python -m promptseg` work in a fresh clone, with nothing installed but requirements.txt.

Python looks for a module in the current folder first, and the package is in src/. An installed package would do, too,
but it names one folder for every copy of the project: a clone beside it, or the copy in which DVC runs a queued
experiment, would then run another tree's code without a word. This file always leads to the code that lies beside it.
"""

import runpy
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "src"
__path__ = [str(SOURCE / "promptseg")]  # who imports this file, from the project's root, has imported the package

if __name__ == "__main__":
    sys.path[0] = str(SOURCE)
    runpy.run_module("promptseg", run_name="__main__", alter_sys=True)
