"""The project that a command line works on: its folder, and the model to ask by default."""

import logging
import subprocess
from pathlib import Path

import promptseg
from promptseg.params import PARAMS_FILE, PIPELINE_FILE, find_project, read_params, read_paths

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


def default_model() -> tuple[Path, int]:
    """Return the project's file to ask, and the side in px at which it works where it is a checkpoint.

    That are the exported graphs, else the fine-tuned checkpoint, else the weights that training starts from. Raises
    ValueError, with the remedy, where a fresh clone has no model.
    """
    root = project_root()
    params, paths = read_params(root), read_paths(root)
    candidates = [paths["graphs"], paths["checkpoint"]]
    if params.finetune.init is not None:
        candidates.append(root / params.finetune.init)
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        names = ", ".join(map(str, candidates))
        raise ValueError(f"got no model ({names}); run `dvc repro export`, or name one (--model)")
    return found, params.res


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
