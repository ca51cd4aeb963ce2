"""The chips that the local compiler knows, what its performance simulator says of a graph, and the device's estimate.

The estimate is a line fitted to the 36 float models in docs/data/xelite_published_vs_simulated.csv: the latency that
Qualcomm publishes for the Snapdragon X Elite CRD (ai-hub-models 0.46.1, runtime QNN_DLC) against the simulator's figure
for the same architecture with random weights. It is Siegel's repeated-median line (Biometrika 69, 1982), which one
model in which 80 operations have no cost, simulated at 18 times the truth, cannot move; the test recomputes each number
here. Good for ranking and for finding spills. Over those models the estimate is 0.68 to 1.54 times the truth for CNNs
and 0.25 to 1.16 times for transformers, Swin (the one with 80 operations without a cost: 13.7 times) left out.
"""

import csv
import difflib
from dataclasses import dataclass
from pathlib import Path

INTERCEPT_MS = 0.52
SLOPE = 0.76
CALIBRATED_DEVICE = "Snapdragon X Elite CRD"
MODELS = 36
LEAVE_ONE_OUT_MEDIAN_ERROR = 0.144  # |estimate - published| / published
RANK_CORRELATION = 0.96  # Spearman

_SECTION_START = "Performance Estimates"
_CYCLES = "Simulated (Accelerator exec cycles)"
_TIME = "Simulated (Accelerator exec time us)"
_TIME_LOW = "Simulated (Accelerator exec time us (lower estimate))"
_TIME_HIGH = "Simulated (Accelerator exec time us (upper estimate))"
_MISSING = "Missing Ops (Number of Ops with no Costs associated)"
_INPUT_FILL = "Input Fill"
_FILL = "Intermediate Fill"
_SPILL = "Intermediate Spill"
_OUTPUT_SPILL = "Output Spill"
# figure -> the unit that it must have in the file, for each figure that is read
_UNITS = {_CYCLES: "CYCLES", _TIME: "US", _TIME_LOW: "US", _TIME_HIGH: "US", _MISSING: "US"} | dict.fromkeys(
    (_INPUT_FILL, _FILL, _SPILL, _OUTPUT_SPILL), "BYTES"
)  # the tool writes the number of operations as if it were a time


@dataclass(frozen=True)
class NpuDevice:
    """One device's Hexagon tensor processor, in the numbers of Qualcomm's compiler.

    `simulator_soc_model` is a chip with the same core and memory for which the compiler's performance simulator writes
    figures (for `soc_model` itself it writes none).
    """

    name: str
    htp_arch: int
    soc_model: int
    simulator_soc_model: int
    vtcm_mb: int


DEVICES = (NpuDevice("Snapdragon X Elite CRD", htp_arch=73, soc_model=60, simulator_soc_model=52, vtcm_mb=8),)


def npu_device(name: str) -> NpuDevice:
    """Find a device by its name, as AI Hub spells it. Raises ValueError naming the nearest ones."""
    for device in DEVICES:
        if device.name == name:
            return device
    names = [device.name for device in DEVICES]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
    raise ValueError(
        f"hub.device: got {name!r}, wanted one that the local compiler is set up for: {', '.join(map(repr, near))}"
    )


@dataclass(frozen=True)
class SimulatedCost:
    """What the simulator says of one inference: times in microseconds with bounds, traffic with DDR in bytes.

    `ops_without_cost` counts the pieces of work (an operation may be cut into several) that the times leave out;
    `costless_ops` names the graph's nodes that they belong to.
    """

    cycles: int
    time_us: int
    time_us_low: int
    time_us_high: int
    input_fill_bytes: int  # weights and inputs
    fill_bytes: int  # spilled activations read back
    spill_bytes: int
    output_bytes: int
    ops_without_cost: int
    costless_ops: tuple[str, ...]


def read_simulated_cost(profile_csv: Path) -> SimulatedCost:
    """Read the file of one compilation of one graph.

    Raises ValueError when it holds no figures (the compiler wrote none for that chip), figures of more than one graph,
    or units other than expected (another version of the tool).
    """
    sections = _sections(profile_csv)
    if len(sections) != 1:
        raise ValueError(f"{profile_csv}: got simulated figures of {len(sections)} graphs, wanted those of exactly one")
    figures, costless = sections[0]
    missing = [name for name in _UNITS if name not in figures]
    if missing:
        raise ValueError(f"{profile_csv}: got no figure named {missing[0]!r}; is this another onnxruntime-qnn?")
    return SimulatedCost(
        cycles=figures[_CYCLES],
        time_us=figures[_TIME],
        time_us_low=figures[_TIME_LOW],
        time_us_high=figures[_TIME_HIGH],
        input_fill_bytes=figures[_INPUT_FILL],
        fill_bytes=figures[_FILL],
        spill_bytes=figures[_SPILL],
        output_bytes=figures[_OUTPUT_SPILL],
        ops_without_cost=figures[_MISSING],
        costless_ops=costless,
    )


def _sections(profile_csv: Path) -> list[tuple[dict[str, int], tuple[str, ...]]]:
    """Split the file at each graph's head; the tool repeats earlier graphs word by word, which counts once."""
    sections: list[tuple[dict[str, int], list[str]]] = []
    with profile_csv.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            name = row["Event Identifier"]
            if name == _SECTION_START:
                sections.append(({}, []))
            elif name in _UNITS and sections:
                _check_unit(profile_csv, name, row["Unit of Measurement"])
                sections[-1][0][name] = _unwrapped(int(row["Time"]), _UNITS[name])
            elif " : OpId_" in name and sections:
                sections[-1][1].append(name.split(" : OpId_")[0])
    unique: list[tuple[dict[str, int], tuple[str, ...]]] = []
    for figures, costless in sections:
        section = (figures, tuple(dict.fromkeys(costless)))
        if section not in unique:
            unique.append(section)
    return unique


def _unwrapped(value: int, unit: str) -> int:
    """Undo what the tool does to bytes from 2 GiB on: it counts them in 32 bits and writes a negative count in 64.

    Seen with Focal-T at 1024 px, where what is read back came out as 2**64 - 2.0e9. From 4 GiB on a count has wrapped
    to a small one, which nothing tells from a true one.
    """
    return value % 2**32 if unit == "BYTES" and value >= 2**63 else value


def _check_unit(profile_csv: Path, name: str, unit: str) -> None:
    if unit != _UNITS[name]:
        raise ValueError(f"{profile_csv}: got {name!r} in {unit}, wanted {_UNITS[name]}; is this another version?")


def estimate_ms(simulated_ms: float) -> float:
    """Estimate the latency on CALIBRATED_DEVICE from the simulated one; never a measurement. Both in milliseconds."""
    return INTERCEPT_MS + SLOPE * simulated_ms
