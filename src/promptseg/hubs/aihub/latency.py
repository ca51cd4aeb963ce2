"""A device's profile as the figures of a LatencyProfile: measured, in milliseconds and megabytes."""

import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any

from promptseg.hubs.base import LatencyProfile

SLOWEST = 5  # layers that are named
_UNITS = ("NPU", "GPU", "CPU")


def latency_of(profile: Mapping[str, Any], device: str, binary_bytes: int | None, note: str) -> LatencyProfile:
    """Turn the client's profile (microseconds, bytes) into ours.

    The latency is the median over all runs; where the service names no runs it is the one time it gives, and the
    spread is not known.
    """
    summary, layers = profile["execution_summary"], profile["execution_detail"]
    runs_us = summary.get("all_inference_times") or []
    units = Counter(layer["compute_unit"] for layer in layers)
    peak = summary.get("inference_memory_peak_range")
    peak_bytes = peak[1] if peak else summary.get("estimated_inference_peak_memory")
    return LatencyProfile(
        device=device,
        placed_on_npu=bool(layers) and set(units) == {"NPU"},
        latency_ms_device=_ms(statistics.median(runs_us) if runs_us else summary["estimated_inference_time"]),
        latency_ms_device_low=_ms(min(runs_us)) if runs_us else None,
        latency_ms_device_high=_ms(max(runs_us)) if runs_us else None,
        device_runs=len(runs_us) or None,
        first_load_ms=_ms(summary["first_load_time"]) if summary.get("first_load_time") else None,
        warm_load_ms=_ms(summary["warm_load_time"]) if summary.get("warm_load_time") else None,
        peak_memory_mb=_mb(peak_bytes) if peak_bytes else None,
        layers_npu=units["NPU"],
        layers_gpu=units["GPU"],
        layers_cpu=units["CPU"],
        layers_unknown=sum(count for unit, count in units.items() if unit not in _UNITS),
        slowest_layers=_slowest(layers),
        binary_mb=None if binary_bytes is None else _mb(binary_bytes),
        note=note,
    )


def _slowest(layers: list[Mapping[str, Any]]) -> str:
    """Name the slowest layers as one text (DVC shows a column for each key), by time or else by cycles."""
    for key, spell in (("execution_time", lambda us: f"{us / 1e3:.3g} ms"), ("execution_cycles", "{:,} cycles".format)):
        timed = sorted((layer for layer in layers if layer.get(key)), key=lambda layer: -layer[key])
        if timed:
            return "; ".join(
                f"{layer['name']} ({layer['compute_unit']}) {spell(layer[key])}" for layer in timed[:SLOWEST]
            )
    return ""


def _ms(microseconds: float) -> float:
    return round(microseconds / 1e3, 3)


def _mb(size_bytes: int) -> float:
    return round(size_bytes / 1e6, 3)
