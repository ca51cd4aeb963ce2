"""What the compiler's performance simulator says of a graph: asked once for each graph and chip, then kept."""

import csv
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from promptseg.files import read_json, sha256_of, write_json
from promptseg.hubs.devices import Chip, devices
from promptseg.hubs.local.process import run_compiler
from promptseg.hubs.local.session import CompileRequest, tool_versions
from promptseg.hubs.local.trace import NodeTime, read_timeline

WRAPPER, BINARY = "model.onnx", "model_qnn.bin"  # of each pair the compiler derives the second name from the first
PROFILE, TIMELINE = "profile.csv", "profile_qnn.log"
_LOG = logging.getLogger(__name__)
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

    @property
    def bounds_ms(self) -> tuple[float, float, float]:
        """The time, its lower and its upper bound, in milliseconds."""
        return self.time_us / 1e3, self.time_us_low / 1e3, self.time_us_high / 1e3


@dataclass(frozen=True)
class Simulation:
    """One graph on one chip: its cost, the times of each node of the ONNX graph, and the size of the binary."""

    cost: SimulatedCost
    times: dict[str, NodeTime]
    binary_bytes: int


def binary_of(wrapper: Path) -> Path:
    """Return where the compiler writes the context binary of a wrapper: it derives the name itself."""
    return wrapper.with_name(f"{wrapper.stem}_qnn.bin")


def simulate_all(graph: Path, cache: Path) -> dict[Chip, Simulation]:
    """Simulate `graph` on every chip that some device is simulated by; see `simulate`."""
    return {chip: simulate(graph, chip, cache) for chip in {device.simulated_chip for device in devices()}}


def simulate(graph: Path, chip: Chip, cache: Path) -> Simulation:
    """Compile `graph` for a chip that the simulator knows, and read what it says; kept below `cache` for the next time.

    What is kept belongs to the graph's bytes, the chip and the compiler's version: devices that share a simulated chip
    share the simulation. Raises what `run_compiler` and `read_simulated_cost` raise.
    """
    sha256 = sha256_of(graph)
    origin = {"graph_sha256": sha256, "chip": asdict(chip), "tool_versions": tool_versions()}
    kept = cache / f"{sha256[:16]}-{chip.soc_model}.json"
    if kept.is_file() and (record := read_json(kept)).get("origin") == origin:
        figures = record["cost"]
        cost = SimulatedCost(**{**figures, "costless_ops": tuple(figures["costless_ops"])})
        times = {node: NodeTime(**time) for node, time in record["times"].items()}
        return Simulation(cost, times, record["binary_bytes"])
    _LOG.info("simulating %s on chip %d (v%d)", graph.name, chip.soc_model, chip.htp_arch)
    # A fresh folder: the tool appends to a profile that exists, refuses to replace a wrapper, and leaves a drawing of
    # the graph where it runs.
    with tempfile.TemporaryDirectory(prefix="promptseg-") as name:
        scratch = Path(name)
        linked = scratch / "linked" / graph.name
        linked.parent.mkdir()
        _link(graph, linked)
        request = CompileRequest(linked.name, str(scratch / WRAPPER), chip, str(scratch / PROFILE), False, trace=True)
        run_compiler(linked.parent, request)
        cost = read_simulated_cost(scratch / PROFILE)
        binary = scratch / BINARY
        simulation = Simulation(cost, read_timeline(scratch / TIMELINE, binary), binary.stat().st_size)
    write_json(kept, {"origin": origin, **asdict(simulation)})
    return simulation


def _link(graph: Path, place: Path) -> None:
    """Let `place` lead to a graph: by a copy where links are not allowed (Windows asks for a right of its own)."""
    try:
        place.symlink_to(graph.resolve())
    except OSError:
        shutil.copyfile(graph, place)


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
