"""The single numbers of a report, each with what it is and how it came about."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Figure:
    """One number as text, with its unit."""

    label: str
    value: str
    note: str


def headline(summary: Mapping[str, Any], latency: Mapping[str, Any]) -> list[Figure]:
    """Return the three figures to read first: quality, and latency on the NPU and on the host.

    `summary` and `latency` are the contents of score.json and latency.json, here and below; in `latency` each figure
    may be null or missing. A latency on the NPU comes from a device's clock, or else is called an estimate.
    """
    quality = (
        f"95 % interval {summary['miou_ci_low']:.3f} to {summary['miou_ci_high']:.3f}; "
        f"{summary['miou_over_best_baseline']:.1f} times the best trivial baseline"
    )
    measured = latency.get("latency_ms_device")
    if measured is None:
        npu = Figure("Latency on the NPU, estimated", _ms(latency, "latency_ms_estimated"), _estimate_note(latency))
    else:
        npu = Figure("Latency on the NPU, measured", _quantity(measured, "ms"), _device_note(latency))
    host = Figure("Latency on this host's CPU", _ms(_host(latency), "latency_ms_cpu"), _host_note(latency))
    return [Figure("mIoU", f"{summary['miou']:.3f}", quality), npu, host]


def quality_figures(summary: Mapping[str, Any]) -> list[Figure]:
    """Return the overall scores, one per way of counting."""
    limits = [(name.removeprefix("p_at_"), value) for name, value in summary.items() if name.startswith("p_at_")]
    return [
        Figure("mIoU", f"{summary['miou']:.3f}", f"on the original pictures: {_coverage(summary)}"),
        Figure("mIoU, canvas", f"{summary['miou_canvas']:.3f}", "the challenge's way: on the padded canvas"),
        Figure("cIoU", f"{summary['ciou']:.3f}", "sum of intersections over sum of unions"),
        *(Figure(f"P@{limit}", f"{value:.3f}", f"IoU of 0.{limit} or more") for limit, value in limits),
    ]


def deployment_figures(latency: Mapping[str, Any]) -> list[Figure]:
    """Return what compiling, profiling and timing said; "not measured" where they said nothing.

    A device's clock and the compiler's simulator know different things besides the latency: the one's are shown where
    there is a measured latency, else the other's.
    """
    measured = latency.get("latency_ms_device") is not None
    return [
        Figure("NPU latency, measured", _ms(latency, "latency_ms_device"), "by a device's clock"),
        Figure("NPU latency, estimated", _ms(latency, "latency_ms_estimated"), _estimate_note(latency)),
        *(_from_the_device(latency) if measured else _from_the_compiler(latency)),
        Figure("Host CPU latency", _ms(_host(latency), "latency_ms_cpu"), _host_note(latency)),
    ]


def _from_the_device(latency: Mapping[str, Any]) -> list[Figure]:
    layers = "; ".join(
        f"{count} on the {unit.upper()}" for unit in ("npu", "gpu", "cpu") if (count := latency.get(f"layers_{unit}"))
    )
    return [
        Figure("First load", _ms(latency, "first_load_ms"), "of the binary, on the device"),
        Figure("Warm load", _ms(latency, "warm_load_ms"), "of the binary, on the device, once more"),
        Figure("Peak memory", _quantity(latency.get("peak_memory_mb"), "MB"), "on the device, during inference"),
        Figure("Layers", layers or NOT_MEASURED, "where the device ran them"),
    ]


def _from_the_compiler(latency: Mapping[str, Any]) -> list[Figure]:
    costless = _quantity(latency.get("ops_without_cost"), "")
    return [
        Figure("NPU latency, simulated", _ms(latency, "latency_ms_simulated"), "before calibration"),
        Figure("Operations without a cost", costless, "the simulation leaves them out"),
        Figure("DDR read", _quantity(latency.get("ddr_read_mb"), "MB"), "per inference, from the compiler"),
        Figure("Spill", _quantity(latency.get("spill_mb"), "MB"), "did not fit the NPU's own memory"),
    ]


def _device_note(latency: Mapping[str, Any]) -> str:
    """Say which device, and how far its runs were apart where it named them."""
    device, low, high = (latency.get(name) for name in ("device", "latency_ms_device_low", "latency_ms_device_high"))
    spread = "" if low is None or high is None else f"{_range(low, high)} over {latency.get('device_runs')} runs; "
    return f"{spread}{device or 'on a device'}"


def _estimate_note(latency: Mapping[str, Any]) -> str:
    """Say that an estimate is one, and how far it may be off."""
    if latency.get("latency_ms_estimated") is None:
        return "no simulation of the NPU was made"
    bounds = _range(latency.get("latency_ms_estimated_low"), latency.get("latency_ms_estimated_high"))
    device = latency.get("device") or "the NPU"
    return f"{bounds}; an estimate for {device} from the compiler's simulator, not a measurement on a device"


def _host_note(latency: Mapping[str, Any]) -> str:
    host = _host(latency)
    if host.get("latency_ms_cpu") is None:
        return "no run on this host was timed"
    bounds = _range(host.get("latency_ms_cpu_low"), host.get("latency_ms_cpu_high"))
    return f"{bounds}; measured on {host.get('cpu') or 'the machine that made this page'}"


def _host(latency: Mapping[str, Any]) -> Mapping[str, Any]:
    return latency.get("host") or {}


def _coverage(summary: Mapping[str, Any]) -> str:
    scored = f"{summary['phrases']} phrases of {summary['pictures']} pictures"
    left_out = summary["phrases_without_prediction"]
    return f"{scored}; {left_out} more were not run" if left_out else scored


def _range(low: float | None, high: float | None) -> str:
    return "bounds not known" if low is None or high is None else f"{_digits(low)} to {_digits(high)} ms"


def _ms(figures: Mapping[str, Any], name: str) -> str:
    return _quantity(figures.get(name), "ms")


def _quantity(value: float | None, unit: str) -> str:
    return NOT_MEASURED if value is None else f"{_digits(value)} {unit}".strip()


def _digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
