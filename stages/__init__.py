"""One thin script per stage of dvc.yaml, run as `python -m stages.<name>`, and what their command lines share.

Queued experiments run in a copy of the project: the library beside this file must win over any other on the path.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Snapshots and downloads outlive an experiment's copy of the project: DVC names the project itself.
CACHE = Path(os.environ.get("DVC_ROOT", ROOT)) / ".cache"
sys.path.insert(0, str(ROOT / "src"))


def run_stage(stage: Callable[..., None], purpose: str | None, *names: str) -> None:
    """Call `stage` with one Path per name, read from options of the same names.

    A ValueError, a FloatingPointError or an OSError (a full disk) ends the process with status 1 and its message.
    """
    parser = argparse.ArgumentParser(description=purpose)
    for name in names:
        parser.add_argument(f"--{name}", type=Path, required=True, help="an artefact's path, as dvc.yaml gives it")
    paths = vars(parser.parse_args())
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)  # other libraries: errors only
    logging.getLogger("promptseg").setLevel(logging.INFO)
    try:
        stage(**paths)
    except (ValueError, FloatingPointError, OSError) as error:
        message = str(error)
    else:
        return
    # Here the stage's frames are gone, and with them its progress bars: the message gets a line of its own.
    logging.error("error: %s", message)
    sys.exit(1)
