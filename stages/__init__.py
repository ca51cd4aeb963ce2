"""One thin script per stage of dvc.yaml, run as `python -m stages.<name>`, and what all of them share.

Queued experiments run in a copy of the project: the library beside this file must win over any other on the path.
What is imported here can refuse to run, and changes no artefact: no stage depends on it.
"""

import argparse
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Snapshots and downloads outlive an experiment's copy of the project: DVC names the project itself.
CACHE = Path(os.environ.get("DVC_ROOT", ROOT)) / ".cache"
INTERRUPTED = 128 + signal.SIGINT  # what a shell says of a program that Ctrl-C ended
BEFORE_TRAINING = ("fetch", "finetune")  # which ask for what the hub will need, long before it does
sys.path.insert(0, str(ROOT / "src"))


def _end_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Let Ctrl-C end in one line while a stage's modules are still being imported, too."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)


sys.excepthook = _end_interrupted

from promptseg.params import PARAMS_FILE, PIPELINE_FILE, load_yaml, read_params  # noqa: E402


def run_stage(stage: Callable[..., None], purpose: str | None, *names: str) -> None:
    """Call `stage` with one Path per name, read from options of the same names.

    A ValueError, a FloatingPointError or an OSError (a full disk) ends the process with status 1 and its message,
    Ctrl-C with status 130. An edit of the stage's settings while it runs is a ValueError, and what it made is removed.
    """
    parser = argparse.ArgumentParser(description=purpose)
    for name in names:
        parser.add_argument(f"--{name}", type=Path, required=True, help="an artefact's path, as dvc.yaml gives it")
    paths = vars(parser.parse_args())
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)  # other libraries: errors only
    logging.getLogger("promptseg").setLevel(logging.INFO)
    try:
        if "WORLD_SIZE" in os.environ:  # one of several processes of a stage: the one that started them does the rest
            stage(**paths)
        else:
            _run_guarded(stage, paths)
    except (ValueError, FloatingPointError, OSError) as error:
        message, status = f"error: {error}", 1
    except KeyboardInterrupt:
        message, status = "interrupted", INTERRUPTED
    else:
        return
    # Here the stage's frames are gone, and with them its progress bars: the message gets a line of its own.
    logging.error("%s", message)
    sys.exit(status)


def _run_guarded(stage: Callable[..., None], paths: dict[str, Path]) -> None:
    name, params = Path(sys.argv[0]).stem.replace("_", "-"), read_params(ROOT)
    if name in BEFORE_TRAINING:
        from promptseg.hubs.backends import check_hub  # no other stage loads it for nothing

        check_hub(params.hub, CACHE, params.export.precision)
    with unchanged_settings(name):
        stage(**paths)


@contextmanager
def unchanged_settings(name: str) -> Iterator[None]:
    """Hold what dvc.yaml lists under `params` of a stage: the values at the end are those of the beginning.

    A stage reads them when it begins, and DVC files what was made under those that it finds at the end. Raises
    ValueError where they differ, after removing what the stage made, so that nothing is filed under wrong settings.
    """
    pipeline = load_yaml(ROOT / PIPELINE_FILE)
    stage = pipeline["stages"].get(name, {})  # a command that is no stage has no settings to hold
    began = _settings(stage.get("params", []), None)
    yield
    try:
        ended = _settings(stage.get("params", []), began)
        keys = [key for key in began | ended if began.get(key) != ended.get(key)]
        changes = "; ".join(f"{key} was {began.get(key)!r} and is {ended.get(key)!r}" for key in keys)
    except ValueError as error:
        changes = str(error)
    if changes:
        for kind in ("outs", "metrics", "plots"):
            for entry in stage.get(kind, []):
                path = entry if isinstance(entry, str) else next(iter(entry))
                _remove(ROOT / re.sub(r"\$\{path\.(\w+)\}", lambda match: pipeline["vars"][0]["path"][match[1]], path))
        raise ValueError(
            f"{name}: got settings that changed while the stage ran, wanted them kept until its end: {changes}. What "
            "it made is removed; run again (for several experiments at once there is the queue: docs/compare.md)"
        )


def _settings(listed: list[Any], began: dict[str, Any] | None) -> dict[str, Any]:
    """Return the values of a stage's `params` in dvc.yaml by their dotted names, down to single values.

    The data set's file is the one that `data` named when the stage `began`.
    """
    params = load_yaml(ROOT / PARAMS_FILE)
    found: dict[str, Any] = {}
    for entry in listed:
        if isinstance(entry, str):
            value = params
            for part in entry.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            found |= _leaves(entry, value)
        else:
            path = next(iter(entry)).replace("${data}", str((began or found)["data"]))
            found |= _leaves(f"{path}:", load_yaml(ROOT / path) if (ROOT / path).is_file() else None)
    return found


def _leaves(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    joint = "" if name.endswith(":") else "."
    return {leaf: found for key in value for leaf, found in _leaves(f"{name}{joint}{key}", value[key]).items()}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
