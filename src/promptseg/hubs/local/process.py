"""Runs `session` in a process of its own and turns its failures into errors that name the cause."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import promptseg
from promptseg.hubs.local import session as qnn_session
from promptseg.hubs.local.diagnosis import describe, last_error, refused_ops
from promptseg.hubs.local.session import CompileRequest, EmulateRequest

SOURCE_FOLDER = Path(promptseg.__file__).parents[1]
_LOG = logging.getLogger(__name__)


def run_compiler(folder: Path, request: CompileRequest) -> None:
    """Compile `request.graph`, a file of `folder`; weights stored beside it are found.

    Raises ValueError naming the refused operations, or the compiler's own error, when the graph does not compile, and
    RuntimeError when the compiler was ended by a signal (out of memory, a crash).
    """
    done = _run(request, folder)
    if done.returncode == 0:
        return
    graph = folder / request.graph
    if done.returncode < 0:
        raise RuntimeError(f"{graph}: got the compiler ended by signal {-done.returncode}; is there memory enough?")
    _LOG.info("the compiler failed on %s; asking it which operations it refuses", graph.name)
    refused = refused_ops(_verbose_log(folder, request))
    if refused:
        raise ValueError(
            f"{graph}: got {len(refused)} operations that the NPU refuses, wanted the whole graph placed on it; "
            f"express them otherwise in the export: {describe(refused)}"
        )
    raise ValueError(f"{graph}: got a graph that the NPU's compiler does not finish: {last_error(done.stderr)}")


def run_emulator(request: EmulateRequest) -> None:
    """Emulate one inference. Raises RuntimeError with the emulator's last words when it fails."""
    done = _run(request, Path(request.wrapper).parent)
    if done.returncode != 0:
        cause = last_error(done.stderr)
        raise RuntimeError(f"{request.wrapper}: got exit code {done.returncode} from the HTP emulator: {cause}")


def _verbose_log(folder: Path, request: CompileRequest) -> str:
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        wrapper = str(Path(scratch) / "diagnosis.onnx")
        done = _run(replace(request, wrapper=wrapper, profile_csv=None, verbose=True), folder)
        return done.stdout + done.stderr


def _run(request: CompileRequest | EmulateRequest, folder: Path) -> subprocess.CompletedProcess[str]:
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(SOURCE_FOLDER), *([inherited] if inherited else [])])
    return subprocess.run(
        [sys.executable, "-m", qnn_session.__name__, json.dumps(asdict(request))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
