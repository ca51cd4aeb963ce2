"""The devices that a graph can be compiled for, and how one simulation becomes an estimate of each device's latency.

`devices.csv` has a row for each: its name as AI Hub spells it, its numbers in Qualcomm's compiler, what it computes in,
and the chip that the performance simulator writes figures for in its place. `calibration.csv` has the lines from that
chip's simulated milliseconds to the latency that Qualcomm publishes for the device; `python -m benchmarks.calibrate`
writes it, and docs/devices.md says where every number comes from.
"""

import csv
import difflib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLES = Path(__file__).parent
ESTIMATE_COLUMNS = (
    *("device", "precision", "latency_ms_estimated", "latency_ms_estimated_low", "latency_ms_estimated_high"),
    *("median_error", "models", "latency_ms_simulated", "simulated_by", "latency_ms_estimated_further_phrase"),
)


@dataclass(frozen=True)
class Estimate:
    """What a device is estimated to need for one inference, never a measurement; all in milliseconds.

    Four of five held-out models lay between `low_ms` and `high_ms`.
    """

    latency_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Line:
    """From simulated to published milliseconds on one device: intercept_ms + slope x simulated.

    `median_error` is |estimate - published| / published with the model in question left out, the median over `models`.
    `spread` is the factor by which the simulator's bounds, put through the line, are widened on both sides so that 80 %
    of held-out models lie within.
    """

    intercept_ms: float
    slope: float
    models: int
    median_error: float
    spread: float

    def __call__(self, simulated_ms: float) -> float:
        """Estimate the device's milliseconds from the simulated ones."""
        return self.intercept_ms + self.slope * simulated_ms

    def estimate(self, simulated_ms: float, low_ms: float, high_ms: float) -> Estimate:
        """Estimate from what the simulator says, and from its bounds."""
        return Estimate(self(simulated_ms), self(low_ms) / self.spread, self(high_ms) * self.spread)


@dataclass(frozen=True)
class Chip:
    """What the compiler must know of a chip."""

    htp_arch: int
    soc_model: int
    vtcm_mb: int


@dataclass(frozen=True)
class Device:
    """One device's Hexagon tensor processor, in the numbers of Qualcomm's compiler.

    `soc_type` is what the compiler writes into a binary for `chip`. The simulator writes no figures for most chips;
    those of `simulated_chip` are taken for them. `lines` are by precision; where one is missing, nothing is estimated:
    always for `mixed`, of which too little is published.
    """

    name: str
    chip: Chip
    soc_type: str
    precisions: frozenset[str]
    simulated_chip: Chip
    lines: dict[str, Line]

    def check_precision(self, precision: str) -> None:
        """Raise ValueError where the device does not compute in a precision; `mixed` needs 16-bit integers."""
        if ("w8a16" if precision == "mixed" else precision) not in self.precisions:
            raise ValueError(
                f"export.precision: got {precision!r}, which {self.name} does not compute in, wanted one of "
                f"{', '.join(sorted(self.precisions))}, or another hub.device"
            )


@cache
def devices() -> tuple[Device, ...]:
    """Return every known device, in the order of the table."""
    lines: dict[str, dict[str, Line]] = {}
    for row in _rows("calibration.csv"):
        figures = (float(row["intercept_ms"]), float(row["slope"]), int(row["models"]))
        line = Line(*figures, float(row["median_error"]), float(row["spread"]))
        lines.setdefault(row["device"], {})[row["precision"]] = line
    return tuple(_device(row, lines.get(row["device"], {})) for row in _rows("devices.csv"))


def estimate_all(simulated_ms: Mapping[Chip, tuple[float, float, float]], precision: str) -> list[dict[str, Any]]:
    """Return a row of ESTIMATE_COLUMNS for each device whose simulated chip is given: chip -> the time and its bounds.

    The estimate is None where the device has no line for the precision.
    """
    rows = []
    for device in devices():
        if device.simulated_chip not in simulated_ms:
            continue
        times_ms, line = simulated_ms[device.simulated_chip], device.lines.get(precision)
        estimate = line.estimate(*times_ms) if line else None
        values = (
            *(device.name, precision),
            *((round(value, 3) for value in astuple(estimate)) if estimate else (None, None, None)),
            *((line.median_error, line.models) if line else (None, None)),
            *(times_ms[0], device.simulated_chip.soc_model, None),  # of one graph every phrase costs the same
        )
        rows.append(dict(zip(ESTIMATE_COLUMNS, values, strict=True)))
    return rows


def find_device(name: str) -> Device:
    """Return the device of that name, as AI Hub spells it. Raises ValueError with the nearest known names."""
    known = {device.name: device for device in devices()}
    if name in known:
        return known[name]
    folded = {each.casefold(): each for each in known}
    near = [folded[each] for each in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    wanted = f"did you mean {' or '.join(map(repr, near))}?" if near else f"wanted one of {', '.join(map(repr, known))}"
    raise ValueError(f"hub.device: got {name!r}, which the local compiler is not set up for; {wanted}")


def _device(row: dict[str, str], lines: dict[str, Line]) -> Device:
    quantized = {"w8a8", *({"w8a16"} if row["int16"] == "yes" else set())}
    vtcm_mb = int(row["vtcm_mb"])
    return Device(
        name=row["device"],
        chip=Chip(int(row["htp_arch"]), int(row["soc_model"]), vtcm_mb),
        soc_type=row["soc_type"],
        precisions=frozenset(quantized | ({"fp16"} if row["fp16"] == "yes" else set())),
        simulated_chip=Chip(int(row["simulated_by_htp_arch"]), int(row["simulated_by"]), vtcm_mb),
        lines=lines,
    )


def _rows(table: str) -> list[dict[str, str]]:
    with (TABLES / table).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
