"""What a hub does with an ONNX graph (compile, profile, run), and the records that it hands back.

A hub is either this machine (`local`) or a service with real devices. The stages see only this file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from promptseg.files import read_json, sha256_of, write_json, write_rows
from promptseg.hubs.contract import IMAGE_INPUT, PRED_MASK, TEXT_INPUT, check_border, mask_of
from promptseg.params import HubConfig

MANIFEST = "manifest.json"
LAYER_COLUMNS = ("name", "unit", "ms", "cycles")
SLOWEST = 12  # layers that a profile names
COMPILE_AGAIN = "run `dvc repro --force --single-item hub-compile`, then `dvc repro`"


@dataclass(frozen=True)
class CompiledGraph:
    """What a compilation made; stored as `manifest.json` in the folder of its files.

    File names are relative to the folder. They, sizes and digests are None where nothing was compiled; `service` (its
    address), `account` (a hash), `job_id` and `job_address` are None where no service was asked. `note` is empty unless
    a reader must know something more.
    """

    backend: str
    device: str
    model: str  # of the network, and the side in px that it works on, from the graph's own record
    res: int
    runtime: str
    precision: str  # of the arithmetic: that of the graph's record, or fp32 where nothing was compiled
    placed_on_npu: bool
    graph_sha256: str
    binary_file: str | None
    binary_bytes: int | None
    binary_sha256: str | None
    wrapper_file: str | None
    chip: str | None  # that the binary names itself for, as read from the binary: "SC8380XP, v73"
    service: str | None
    account: str | None
    job_id: str | None
    job_address: str | None
    tool_versions: Mapping[str, str]
    note: str

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "CompiledGraph":
        """Read the manifest of `folder`. Raises ValueError when it is missing or has other fields."""
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(f"{folder}: got no {MANIFEST}, wanted a compiled graph; run `dvc repro hub-compile`")
        content = read_json(path)
        wanted = {field.name for field in fields(cls)}
        if content.keys() != wanted:
            wrong = ", ".join(sorted(content.keys() ^ wanted))
            raise ValueError(f"{path}: got fields missing or unknown ({wrong}); run `dvc repro hub-compile` again")
        return cls(**content)


@dataclass(frozen=True)
class HostLatency:
    """ONNX Runtime's CPU provider on the machine that ran the pipeline: differs from host to host, run to run."""

    latency_ms_cpu: float  # median
    latency_ms_cpu_low: float  # fastest run
    latency_ms_cpu_high: float  # slowest run
    runs: int
    threads: int
    cpu: str


@dataclass(frozen=True)
class Layer:
    """One layer of the compiled graph and what it takes on `unit`, in milliseconds or in cycles."""

    name: str
    unit: str
    ms: float | None = None
    cycles: int | None = None


def write_layers(path: Path, layers: Iterable[Layer]) -> None:
    """Write layers as CSV, one a line, with the columns LAYER_COLUMNS; a figure that is None is an empty cell."""
    write_rows(path, (asdict(layer) for layer in layers), LAYER_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class LatencyProfile:
    """What one inference costs. Every figure's name says where it comes from; None: this backend cannot say.

    `device` is a clock on the real device, the median of `device_runs`, with the fastest and the slowest; `simulated`
    the compiler's performance model of the chip, with its own bounds; `estimated` the simulated figure put through a
    calibration against published measurements, never a measurement. `estimated_low` and `_high` are the simulator's
    bounds put through the same line and widened by its error (see `devices.Line`). What is compiled or simulated, and
    what one job of a service measured, is the same on every run of the same graph and tools.
    """

    device: str
    placed_on_npu: bool
    latency_ms_device: float | None = None
    latency_ms_device_low: float | None = None
    latency_ms_device_high: float | None = None
    device_runs: int | None = None
    first_load_ms: float | None = None  # of the binary, on the device
    warm_load_ms: float | None = None
    peak_memory_mb: float | None = None  # on the device, during inference; 1 MB = 1e6 bytes, here and below
    layers_npu: int | None = None  # how many layers the device ran where
    layers_gpu: int | None = None
    layers_cpu: int | None = None
    layers_unknown: int | None = None
    latency_ms_estimated: float | None = None
    latency_ms_estimated_low: float | None = None
    latency_ms_estimated_high: float | None = None
    latency_ms_simulated: float | None = None
    latency_ms_simulated_low: float | None = None
    latency_ms_simulated_high: float | None = None
    simulated_parts_ms: dict[str, float] | None = None  # what of it each part of the network takes
    simulated_cycles: int | None = None
    ops_without_cost: int | None = None  # the simulated figures leave these operations out
    ddr_read_mb: float | None = None
    ddr_write_mb: float | None = None
    spill_mb: float | None = None  # activations that did not fit on the chip: written out to DDR ...
    fill_mb: float | None = None  # ... and read back
    binary_mb: float | None = None
    estimates: tuple[dict[str, Any], ...] = ()  # of every device, rows of `devices.ESTIMATE_COLUMNS`
    note: str
    layers: Sequence[Layer] = ()  # the slowest, at most SLOWEST of them, the slowest first

    @property
    def runner(self) -> str:
        """What the NPU's figures are from: the device, the performance simulator, or nothing (an empty string)."""
        if self.latency_ms_device is not None:
            return self.device
        return "" if self.latency_ms_simulated is None else "Qualcomm's performance simulator"

    def to_json(self, compiled: CompiledGraph, host: HostLatency) -> dict[str, Any]:
        """Return the record as a dictionary for a metrics file: with what was compiled, and the host's figures.

        The layers and the other devices' estimates are tables of their own.
        """
        names = ("model", "res", "precision", "graph_sha256", "tool_versions")
        record = {name: getattr(compiled, name) for name in names}
        figures = {name: value for name, value in asdict(self).items() if name not in ("layers", "estimates")}
        return figures | {"host": asdict(host), "runner": self.runner, **record}


@dataclass(frozen=True)
class HubInput:
    """One sample as the graph takes it. Raises ValueError when a tensor is not what the contract says."""

    sample_id: str
    image_input: NDArray[np.float32]  # (1, 3, CANVAS, CANVAS), RGB 0..255
    text_input: NDArray[np.int32]  # (2, 1, 77)

    def __post_init__(self) -> None:
        IMAGE_INPUT.check(self.image_input, self.sample_id)
        TEXT_INPUT.check(self.text_input, self.sample_id)


@dataclass(frozen=True)
class HubOutput:
    """One decided mask: bool [CANVAS, CANVAS]; `non_finite` counts the pixels whose value was NaN or infinite."""

    sample_id: str
    pred_mask: NDArray[np.bool_]
    non_finite: int = 0

    @classmethod
    def decide(cls, sample_id: str, pred_mask: NDArray[np.float32]) -> "HubOutput":
        """Decide each pixel of a graph's output, and count what is no number. Raises ValueError for another tensor."""
        PRED_MASK.check(pred_mask, sample_id)
        return cls(sample_id, mask_of(pred_mask), int(np.count_nonzero(~np.isfinite(pred_mask))))


class Hub(Protocol):
    """The three things that stages ask for. `graph` is the ONNX file, `compiled` the folder that `compile` wrote."""

    @property
    def runner(self) -> str:
        """What `run` runs on, for people: a device's name, or an emulator."""
        ...

    @property
    def emulates(self) -> bool:
        """Whether `run` takes seconds a sample: then a few are run, and ONNX Runtime on the host makes the others."""
        ...

    def compile(self, graph: Path, folder: Path) -> CompiledGraph:
        """Compile `graph` for the configured device and write `folder` whole or not at all.

        Raises ValueError, naming the operations, when the graph cannot run on the NPU as a whole.
        """
        ...

    def profile(self, graph: Path, compiled: Path) -> LatencyProfile:
        """Say what one inference costs on the device."""
        ...

    def run(self, graph: Path, compiled: Path, inputs: Iterable[HubInput]) -> Iterator[HubOutput]:
        """Yield one mask of the binary per input, in order; holds a bounded number of samples in memory.

        Raises ValueError where nothing was compiled for the NPU (`CompiledGraph.placed_on_npu` is False).
        """
        ...

    def explain(self, graph: Path, sample: HubInput) -> str:
        """Name the first tensor that the binary computes otherwise than ONNX Runtime; empty where none is known."""
        ...


def read_compiled(graph: Path, folder: Path, config: HubConfig) -> CompiledGraph:
    """Read the manifest of `folder`, held to `graph`, to the section `hub` of the params, and to the binary beside it.

    Raises ValueError when it is missing, of another graph, backend or device, or when the binary is not the one that
    was compiled.
    """
    check_border(graph)
    manifest = CompiledGraph.read(folder)
    if manifest.graph_sha256 != sha256_of(graph):
        raise ValueError(f"{folder}: got a compilation of another graph than {graph}; {COMPILE_AGAIN}")
    for key in ("backend", "device"):
        got, wanted = getattr(manifest, key), getattr(config, key)
        if got != wanted:
            raise ValueError(
                f"{folder}: got a graph compiled for the {key} {got!r}, wanted {wanted!r}; {COMPILE_AGAIN}"
            )
    if manifest.binary_file is not None:
        binary = folder / manifest.binary_file
        if not binary.is_file() or sha256_of(binary) != manifest.binary_sha256:
            raise ValueError(f"{binary}: got another file than the one that was compiled, or none; {COMPILE_AGAIN}")
    return manifest
