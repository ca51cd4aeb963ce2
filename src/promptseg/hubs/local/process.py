"""Runs `session` in a process of its own and turns its failures into errors that name the cause.

Which operations the NPU refuses is read from the compiler's verbose log.
"""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import promptseg
from promptseg.hubs.local import session as qnn_session
from promptseg.hubs.local.session import NO_PLAN, PLANS, CompileRequest, EmulateRequest

SOURCE_FOLDER = Path(promptseg.__file__).parents[1]
_FAILED = re.compile(
    r"Validation FAILED for \d+ nodes in [^\n]*\n"
    r"(?P<nodes>(?:\s+Operator type: [^\n]*\n)+)"
    r"(?:\s*REASON ?: *(?P<reason>[^\n]*))?"
)
_NODE = re.compile(r"Operator type: (?P<op_type>\S+) Node name: (?P<name>.*?) Node index: (?P<index>\d+)")
_GENERIC_REASON = "Failed to add node."
_LAST_ERROR = re.compile(r"\[ONNXRuntimeError\][^\n]*")
SHOWN = 8
# What the compiler says, or Python of it, when a disk is full.
_NO_ROOM = ("Failed to write context cache file", "No space left on device", "Disk quota exceeded", "File too large")
_LOG = logging.getLogger(__name__)


def run_compiler(folder: Path, request: CompileRequest) -> None:
    """Compile `request.graph`, a file of `folder`; weights stored beside it are found.

    Raises ValueError naming the refused operations, or the compiler's own error, when the graph does not compile;
    OSError when there was no room for what it writes, and ChildProcessError, which is one too, when it was ended by a
    signal (out of memory, a crash).
    """
    done = run_with_a_plan(qnn_session.__name__, request, folder)
    if done.returncode == 0:
        return
    graph = folder / request.graph
    if done.returncode < 0:
        raise ChildProcessError(f"{graph}: {_ended_by(-done.returncode, 'the compiler')}")
    if any(words in done.stderr for words in _NO_ROOM):
        wanted = "the compiler could not write its binary: make room and run again"
        raise OSError(errno.ENOSPC, wanted, str(Path(request.wrapper).parent))
    _LOG.info("the compiler failed on %s; asking it which operations it refuses", graph.name)
    refused = refused_ops(_verbose_log(folder, request))
    if refused:
        raise ValueError(
            f"{graph}: got {len(refused)} operations that the NPU refuses, wanted the whole graph placed on it; "
            f"express them otherwise in the export: {describe(refused)}"
        )
    raise ValueError(f"{graph}: got a graph that the NPU's compiler does not finish: {last_error(done.stderr)}")


def run_with_a_plan(module: str, request: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `module` alone with one of PLANS after the other, until the graph's memory can be planned.

    request: a dataclass with `graph`, a file of `folder`, and `plan`, which is set here. Where none of PLANS will do,
    the last one's process is returned.
    """
    for plan, (optimization, spared_mb) in enumerate(PLANS):
        if plan > 0:
            _LOG.warning(
                "%s: the compiler finds no plan for its memory; trying optimization %d with %d MB of VTCM spared",
                request.graph, optimization, spared_mb,
            )  # fmt: skip
        done = run_alone(module, replace(request, plan=plan), folder)
        if done.returncode <= 0 or NO_PLAN not in done.stderr:
            break
    return done


def run_emulator(request: EmulateRequest) -> None:
    """Emulate one inference. Raises ChildProcessError with the emulator's last words, or the signal that ended it."""
    done = run_alone(qnn_session.__name__, request, Path(request.wrapper).parent)
    if done.returncode < 0:
        raise ChildProcessError(f"{request.wrapper}: {_ended_by(-done.returncode, 'the HTP emulator')}")
    if done.returncode != 0:
        cause = last_error(done.stderr)
        raise ChildProcessError(f"{request.wrapper}: got exit code {done.returncode} from the HTP emulator: {cause}")


def _ended_by(number: int, what: str) -> str:
    """Say that `what` was ended by a signal, by its number, and what to do."""
    if number == signal.SIGKILL:
        return f"got {what} killed (signal 9), as systems do that run out of memory; close other programs and run again"
    return f"got {what} ended by {signal.Signals(number).name} (signal {number}), wanted it to finish; run again"


def _verbose_log(folder: Path, request: CompileRequest) -> str:
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        wrapper = str(Path(scratch) / "diagnosis.onnx")
        verbose = replace(request, wrapper=wrapper, profile_csv=None, verbose=True)
        done = run_alone(qnn_session.__name__, verbose, folder)
        return done.stdout + done.stderr


def run_alone(module: str, request: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `module` in a fresh process in `folder`, with `request` (a dataclass) as JSON on its command line."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(SOURCE_FOLDER), *([inherited] if inherited else [])])
    return subprocess.run(
        [sys.executable, "-m", module, json.dumps(asdict(request))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


@dataclass(frozen=True)
class RefusedOp:
    """One node that cannot be placed: its ONNX type, its name (or index, where it has none) and the stated reason."""

    op_type: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op_type} {self.name!r}" + (f" ({self.reason})" if self.reason else "")


def refused_ops(log: str) -> list[RefusedOp]:
    """List the refused nodes in the log's order, each once (the log asks about every node more than once)."""
    found: dict[RefusedOp, None] = {}
    for failure in _FAILED.finditer(log):
        reason = (failure["reason"] or "").strip()
        for node in _NODE.finditer(failure["nodes"]):
            name = node["name"] or f"node {node['index']}"
            found[RefusedOp(node["op_type"], name, "" if reason == _GENERIC_REASON else reason.rstrip("."))] = None
    return list(found)


def last_error(log: str) -> str:
    """Return the last error that ONNX Runtime states, else the log's last line, else an empty string."""
    stated = _LAST_ERROR.findall(log)
    lines = log.strip().splitlines()
    return stated[-1] if stated else (lines[-1].strip() if lines else "")


def describe(ops: list[RefusedOp]) -> str:
    """Name the first SHOWN operations and count the rest."""
    rest = f" and {len(ops) - SHOWN} more" if len(ops) > SHOWN else ""
    return "; ".join(str(op) for op in ops[:SHOWN]) + rest
