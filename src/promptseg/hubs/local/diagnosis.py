"""Which operations the NPU refuses, read from the compiler's verbose log."""

import re
from dataclasses import dataclass

_FAILED = re.compile(
    r"Validation FAILED for \d+ nodes in [^\n]*\n"
    r"(?P<nodes>(?:\s+Operator type: [^\n]*\n)+)"
    r"(?:\s*REASON ?: *(?P<reason>[^\n]*))?"
)
_NODE = re.compile(r"Operator type: (?P<op_type>\S+) Node name: (?P<name>.*?) Node index: (?P<index>\d+)")
_GENERIC_REASON = "Failed to add node."
_LAST_ERROR = re.compile(r"\[ONNXRuntimeError\][^\n]*")
SHOWN = 8


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
