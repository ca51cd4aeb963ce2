"""What stands behind a report's figures: mIoU by group with intervals, slow layers, operations, provenance."""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from promptseg.metrics import bootstrap_interval
from promptseg.report.curves import Bar
from promptseg.scoring import GroupScore, SampleScore, Scores

TOOLS = ("numpy", "pillow", "matplotlib", "pycocotools", "jinja2")  # that made the scores and the page
MOST_OPERATIONS = 14
SIZES_AND_KINDS = ("size", "phrase_kind")


def group_bars(scores: Scores, seed: int) -> list[Bar]:
    """Return a bar for each group that has phrases: mIoU, its 95 % interval, and the best trivial baseline as mark."""
    return [_group_bar(group, scores.rows, seed) for group in scores.groups if group.miou is not None]


def _group_bar(group: GroupScore, rows: Sequence[SampleScore], seed: int) -> Bar:
    members = [row for row in rows if group.name in ("all", *(getattr(row, key) for key in SIZES_AND_KINDS))]
    low, high = bootstrap_interval([row.iou for row in members], [row.image for row in members], seed)
    baselines = (group.everything, group.largest_object, group.random_object)
    best = max(value for value in baselines if value is not None)
    return Bar(f"{group.name} ({group.phrases})", group.miou or 0.0, low, high, best)


def part_bars(latency: Mapping[str, Any]) -> list[Bar]:
    """Return the simulated milliseconds of each part of the network, most first; or nothing."""
    parts = latency.get("simulated_parts_ms") or {}
    return [Bar(name, ms) for name, ms in sorted(parts.items(), key=lambda part: -part[1])]


def layer_bars(latency: Mapping[str, Any]) -> tuple[list[Bar], str]:
    """Return the slowest layers, as a device's profile names them, and the unit of their times or cycles; or nothing.

    `latency["slowest_layers"]` is text: "name (NPU) 1.25 ms; ...", or with cycles in place of ms.
    """
    found = re.findall(r"([^;]+?) ([\d.,e+-]+) (ms|cycles)(?:; |$)", latency.get("slowest_layers") or "")
    bars = [Bar(name.strip(), float(amount.replace(",", ""))) for name, amount, _ in found]
    return bars, found[0][2] if found else ""


def operation_bars(export: Mapping[str, Any]) -> list[Bar]:
    """Return how many operations of each kind the exported graph has, the most frequent first.

    `export["ops"]` is text: "Add 242, Transpose 185". Kinds beyond MOST_OPERATIONS are added up.
    """
    counts = [(name, int(count)) for name, count in re.findall(r"(\w+) (\d+)", export.get("ops") or "")]
    bars = [Bar(name, count) for name, count in counts[:MOST_OPERATIONS]]
    rest = counts[MOST_OPERATIONS:]
    return [*bars, Bar(f"{len(rest)} other kinds", sum(count for _, count in rest))] if rest else bars


def provenance(choices: Mapping[str, Any], manifest: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return what a page lists of its origin, nested: params, the compiled graph's manifest, hashes, tools.

    All of it follows from what the stage depends on. The git commit does not, and is not here: the same inputs would
    give another page after each commit. `python -m promptseg report` adds it.
    """
    return {
        **choices,
        "compiled": {name: value for name, value in manifest.items() if value not in (None, "")},
        "sha256": dict(hashes),
        "tools": {name: version(name) for name in TOOLS},
    }
