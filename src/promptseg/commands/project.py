"""The project that a command line works on."""

import logging
import subprocess
from pathlib import Path

import promptseg
from promptseg.params import PARAMS_FILE, PIPELINE_FILE, find_project

_LOG = logging.getLogger(__name__)


def project_root() -> Path:
    """Return the project's folder: the working directory, or the nearest one above it that holds a project.

    Warns where the code that runs is not the project's own. Raises ValueError outside of a project.
    """
    here = Path.cwd()
    root = find_project(here)
    if root is not None:
        _warn_of_other_code(root)
        return root
    raise ValueError(
        f"{here}: got no project, wanted {PIPELINE_FILE} and {PARAMS_FILE} here or in a folder above; change to a "
        "clone of promptseg"
    )


def git_commit(root: Path) -> str:
    """Return the commit of a project, and whether there are changes on top. Raises ValueError where git names none."""
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty= with changes on top"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{root}: git names no commit ({done.stderr.strip()}); wanted a clone, or a commit")
    return done.stdout.strip()


def _warn_of_other_code(root: Path) -> None:
    own, running = root / "src" / "promptseg", Path(promptseg.__file__).parent
    if own.is_dir() and not own.samefile(running):
        _LOG.warning("warning: the code in %s runs, not this project's; `python -m pip install -e %s`", running, root)
