"""Where the simulated milliseconds go: the compiler's timeline, by node of the ONNX graph.

The timeline is JSON inside a binary log; each of its pieces of work carries an operation's number, and the context
binary says which number bears which node's name. Both layouts are the tool's own and undocumented, read from
onnxruntime-qnn 2.7.0; a node whose name is not found counts as the compiler's.
"""

import json
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from promptseg.hubs.contract import OTHER, PARTS, part_of

_START = b'{ \n  "traceEvents"'
_FREQUENCY = "sim_core_freq"  # MHz: the timeline counts the core's cycles
_MATRIX, _LAST_VECTOR = 0, 4  # threads: the matrix unit's, then four of the vector unit; above them the memory's
_WAITING = "default_"  # starts and ends of work that runs in another thread
_ID_MASK = 0xFFFFFFFF
_BORDER = {2: "<input>", 3: "<output>"}
_LONGEST_NAME = 400
_NAME = re.compile(rb"\x04\x00\x00\x00(....)(?=[\x20-\x7e])", re.DOTALL)


@dataclass
class NodeTime:
    """One node's part of the timeline, in milliseconds.

    `elapsed_ms` is its share of the time that passed, and adds up over nodes: each moment is divided among what
    computes then, and belongs to memory traffic only while nothing computes. The others are how long its work kept the
    matrix unit, the vector threads (all of them together) and the memory busy.
    """

    elapsed_ms: float = 0.0
    matrix_ms: float = 0.0
    vector_ms: float = 0.0
    memory_ms: float = 0.0


def read_timeline(log: Path, binary: Path) -> dict[str, NodeTime]:
    """Read the log of one compilation and its context binary: node name -> its times.

    Raises ValueError when the log holds no timeline.
    """
    content = log.read_bytes()
    start = content.find(_START)
    if start < 0:
        raise ValueError(f"{log}: got no timeline, wanted one; was it compiled with `trace` for a simulated chip?")
    trace, _ = json.JSONDecoder(strict=False).raw_decode(content[start:].decode("latin1"))
    cycles_per_ms = trace["Hextimate Configuration"][_FREQUENCY] * 1e3
    events = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["dur"] > 0]
    names = _BORDER | _node_names(binary)
    times: dict[str, NodeTime] = defaultdict(NodeTime)
    for event, share in zip(events, _shares(events), strict=True):
        time = times[names.get(int(event["args"]["id"], 16) & _ID_MASK, "<compiler>")]
        time.elapsed_ms += share / cycles_per_ms
        busy_ms = event["dur"] / cycles_per_ms
        if event["tid"] == _MATRIX:
            time.matrix_ms += busy_ms
        elif event["tid"] <= _LAST_VECTOR:
            time.vector_ms += busy_ms
        else:
            time.memory_ms += busy_ms
    return dict(times)


def add_up(times: Mapping[str, NodeTime], group_of: Callable[[str], str]) -> dict[str, NodeTime]:
    """Add up the times of a timeline's nodes by the group that `group_of` finds for a node's name."""
    groups: dict[str, NodeTime] = defaultdict(NodeTime)
    for node, time in times.items():
        total = groups[group_of(node)]
        for field in fields(NodeTime):
            setattr(total, field.name, getattr(total, field.name) + getattr(time, field.name))
    return dict(groups)


def part_times_ms(times: Mapping[str, NodeTime]) -> dict[str, float]:
    """Add up `elapsed_ms` by `part_of`.

    All parts are there, so that two graphs compare; "picture" is the resize of the input, where it is no layout.
    """
    parts = dict.fromkeys((*PARTS, OTHER), 0.0) | {
        part: time.elapsed_ms for part, time in add_up(times, part_of).items()
    }
    return {part: round(elapsed_ms, 3) for part, elapsed_ms in parts.items()}


def _shares(events: list[dict[str, Any]]) -> list[float]:
    """Divide each moment among the events that compute then, or else among those that move memory; in cycles."""
    edges = sorted(
        edge for index, event in enumerate(events)
        for edge in ((event["ts"], 1, index), (event["ts"] + event["dur"], 0, index))
    )  # fmt: skip
    computes = [event["tid"] <= _LAST_VECTOR and not event["name"].startswith(_WAITING) for event in events]
    shares, active, now = [0.0] * len(events), set[int](), 0
    for moment, begins, index in edges:
        if moment > now:
            working = [each for each in active if computes[each]] or list(active)
            for each in working:
                shares[each] += (moment - now) / len(working)
            now = moment
        (active.add if begins else active.discard)(index)
    return shares


def _node_names(binary: Path) -> dict[int, str]:
    """Find the binary's table of numbers and names: number, 4, the name's length, the name, a zero."""
    content = binary.read_bytes()
    names: dict[int, str] = {}
    for match in _NAME.finditer(content):
        (length,) = struct.unpack("<I", match[1])
        name = content[match.end() : match.end() + length + 1]
        if 1 < length < _LONGEST_NAME and name.endswith(b"\0") and name[:-1].isascii() and match.start() >= 4:
            (number,) = struct.unpack_from("<I", content, match.start() - 4)
            names.setdefault(number, name[:-1].decode())
    return names
