from typing import Any

import pytest

from promptseg.hubs.aihub.latency import latency_of
from promptseg.hubs.base import LatencyProfile

SUMMARY = {
    "estimated_inference_time": 5000,
    "estimated_inference_peak_memory": 70_000_000,
    "first_load_time": 300_000,
    "warm_load_time": 40_000,
    "inference_memory_peak_range": (60_000_000, 90_000_000),
    "all_inference_times": [9000, 5000, 6000],
}


def layer(name: str, unit: str, **cost: int) -> dict[str, Any]:
    return {"name": name, "type": "t", "compute_unit": unit, **cost}


def latency(summary: dict[str, Any], layers: list[dict[str, Any]]) -> LatencyProfile:
    return latency_of({"execution_summary": summary, "execution_detail": layers}, "d", 1_500_000, "")


def test_the_median_and_the_spread_are_over_all_runs() -> None:
    profile = latency(SUMMARY, [layer("a", "NPU")])
    assert (profile.latency_ms_device, profile.latency_ms_device_low, profile.latency_ms_device_high) == (6.0, 5.0, 9.0)
    assert (profile.device_runs, profile.peak_memory_mb, profile.binary_mb) == (3, 90.0, 1.5)
    assert profile.latency_ms_estimated is None


def test_a_service_that_names_no_runs_gives_one_time_and_no_spread() -> None:
    old = {**SUMMARY, "all_inference_times": [], "inference_memory_peak_range": None, "first_load_time": 0}
    profile = latency(old, [layer("a", "NPU")])
    assert (profile.latency_ms_device, profile.latency_ms_device_low, profile.device_runs) == (5.0, None, None)
    assert (profile.peak_memory_mb, profile.first_load_ms) == (70.0, None)


@pytest.mark.parametrize(
    ("units", "counts", "whole"),
    [
        (["NPU", "NPU"], (2, 0, 0, 0), True),
        (["NPU", "CPU"], (1, 0, 1, 0), False),
        (["NPU", "GPU", "UNSPECIFIED"], (1, 1, 0, 1), False),
        ([], (0, 0, 0, 0), False),
    ],
)
def test_layers_are_counted_by_where_they_ran(units: list[str], counts: tuple[int, ...], whole: bool) -> None:
    profile = latency(SUMMARY, [layer(f"l{number}", unit) for number, unit in enumerate(units)])
    assert (profile.layers_npu, profile.layers_gpu, profile.layers_cpu, profile.layers_unknown) == counts
    assert profile.placed_on_npu == whole


def test_the_slowest_layers_come_first_and_are_few() -> None:
    layers = [layer(f"l{number}", "NPU", execution_time=number * 100) for number in range(9)]
    assert latency(SUMMARY, layers).slowest_layers == (
        "l8 (NPU) 0.8 ms; l7 (NPU) 0.7 ms; l6 (NPU) 0.6 ms; l5 (NPU) 0.5 ms; l4 (NPU) 0.4 ms"
    )


def test_without_times_cycles_tell() -> None:
    layers = [layer("a", "NPU", execution_cycles=1500), layer("b", "CPU", execution_cycles=20_000), layer("c", "NPU")]
    assert latency(SUMMARY, layers).slowest_layers == "b (CPU) 20,000 cycles; a (NPU) 1,500 cycles"
    assert latency(SUMMARY, []).slowest_layers == ""
