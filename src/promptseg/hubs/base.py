"""What a hub does with an ONNX graph (compile, profile, run), and the records that it hands back.

A hub is either this machine (`local`) or a service with real devices. The stages see only this file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from promptseg.files import read_json, sha256_of, write_json, write_rows
from promptseg.hubs.contract import DECODER, IMAGE_INPUT, PHRASE, TEXT_INPUT, Graph, Graphs
from promptseg.params import HubConfig

MANIFEST = "manifest.json"
LAYER_COLUMNS = ("name", "unit", "ms", "cycles")
SLOWEST = 12  # layers that a profile names
COMPILE_AGAIN = "run `dvc repro --force --single-item hub-compile`, then `dvc repro`"


@dataclass(frozen=True)
class Binary:
    """What became of one of the graphs. File names are relative to the folder of the manifest.

    They, sizes and digests are None where nothing was compiled; `job_id` and `job_address` where no service was asked.
    """

    graph: str  # its name in the contract
    graph_sha256: str
    binary_file: str | None = None
    binary_bytes: int | None = None
    binary_sha256: str | None = None
    wrapper_file: str | None = None
    job_id: str | None = None
    job_address: str | None = None


@dataclass(frozen=True)
class CompiledGraphs:
    """What a compilation made of an export's graphs; stored as `manifest.json` in the folder of its files.

    `service` (its address) and `account` (a hash) are None where no service was asked. `note` is empty unless a reader
    must know something more.
    """

    backend: str
    device: str
    contract: str  # with the model, and the side in px that it works on, from the graphs' own record
    model: str
    res: int
    runtime: str
    precision: str  # of the arithmetic: that of the graphs' record, or fp32 where nothing was compiled
    placed_on_npu: bool
    graph_sha256: str  # of all graphs together, see `Graphs`
    binaries: tuple[Binary, ...]  # one for each graph, in the order in which they run
    chip: str | None  # that the binaries name themselves for, as read from them: "SC8380XP, v73"
    service: str | None
    account: str | None
    tool_versions: Mapping[str, str]
    note: str

    @property
    def binary_bytes(self) -> int | None:
        """Size of all binaries; None where nothing was compiled."""
        sizes = [binary.binary_bytes for binary in self.binaries if binary.binary_bytes is not None]
        return sum(sizes) if sizes else None

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "CompiledGraphs":
        """Read the manifest of `folder`. Raises ValueError when it is missing or has other fields."""
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(f"{folder}: got no {MANIFEST}, wanted a compiled graph; run `dvc repro hub-compile`")
        content = read_json(path)
        entries = content.get("binaries")
        found: list[Any] = [(cls, content), *((Binary, entry) for entry in entries or () if isinstance(entry, dict))]
        wrong = {name for kind, entry in found for name in entry.keys() ^ {field.name for field in fields(kind)}}
        if wrong or not entries:
            named = ", ".join(sorted(wrong)) or "binaries"
            raise ValueError(f"{path}: got fields missing or unknown ({named}); run `dvc repro hub-compile` again")
        return cls.of(content)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "CompiledGraphs":
        """Return what `asdict` made a dictionary of."""
        return cls(**{**content, "binaries": tuple(Binary(**entry) for entry in content["binaries"])})


@dataclass(frozen=True)
class HostLatency:
    """ONNX Runtime's CPU provider on the machine that ran the pipeline: differs from host to host, run to run."""

    latency_ms_cpu: float  # median, of all graphs once
    latency_ms_cpu_low: float  # fastest run
    latency_ms_cpu_high: float  # slowest run
    runs: int
    threads: int
    cpu: str
    graphs: Mapping[str, float] | None = None  # the median of each, where there are several


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
    """What one inference costs: every graph once, one phrase about one picture.

    Every figure's name says where it comes from; None: this backend cannot say.

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
    further_phrase: dict[str, float | None] | None = None  # LATENCIES of what runs for each further phrase, and ...
    graphs: dict[str, dict[str, float | None]] | None = None  # ... of each graph, where there are several
    note: str
    layers: Sequence[Layer] = ()  # the slowest, at most SLOWEST of them, the slowest first

    @property
    def runner(self) -> str:
        """What the NPU's figures are from: the device, the performance simulator, or nothing (an empty string)."""
        if self.latency_ms_device is not None:
            return self.device
        return "" if self.latency_ms_simulated is None else "Qualcomm's performance simulator"

    def to_json(self, compiled: CompiledGraphs, host: HostLatency) -> dict[str, Any]:
        """Return the record as a dictionary for a metrics file: with what was compiled, and the host's figures.

        The layers and the other devices' estimates are tables of their own.
        """
        names = ("model", "res", "precision", "graph_sha256", "tool_versions")
        record = {name: getattr(compiled, name) for name in names}
        figures = {name: value for name, value in asdict(self).items() if name not in ("layers", "estimates")}
        return figures | {"host": asdict(host), "runner": self.runner, **record}


LATENCIES = tuple(field.name for field in fields(LatencyProfile) if field.name.startswith("latency_ms_"))
_SUMMED = (
    *LATENCIES,
    *("first_load_ms", "warm_load_ms", "layers_npu", "layers_gpu", "layers_cpu", "layers_unknown"),
    *("simulated_cycles", "ops_without_cost", "ddr_read_mb", "ddr_write_mb", "spill_mb", "fill_mb", "binary_mb"),
)
_OF_A_GRAPH = (*LATENCIES, "ddr_read_mb", "ddr_write_mb", "spill_mb", "binary_mb", "peak_memory_mb")


def profile_of_all(profiles: Mapping[str, LatencyProfile]) -> LatencyProfile:
    """Put the profiles of an export's graphs, by their names, together: the profile of one graph stays as it is.

    Times and traffic add up, and so do estimates, each graph being an inference of its own; memory is that of the
    largest. For each further phrase everything but the picture's graph runs.
    """
    every = list(profiles.values())
    if len(every) == 1:
        return every[0]
    further = [profile for name, profile in profiles.items() if name in (PHRASE, DECODER)]
    parts: dict[str, float] = {}
    for profile in every:
        for part, ms in (profile.simulated_parts_ms or {}).items():
            parts[part] = round(parts.get(part, 0.0) + ms, 3)
    layers = [replace(layer, name=f"{name}: {layer.name}") for name, each in profiles.items() for layer in each.layers]
    peaks = [profile.peak_memory_mb for profile in every if profile.peak_memory_mb is not None]
    runs = [profile.device_runs for profile in every if profile.device_runs is not None]
    return replace(
        every[0],
        placed_on_npu=all(profile.placed_on_npu for profile in every),
        **{name: _total(every, name) for name in _SUMMED},
        peak_memory_mb=max(peaks) if peaks else None,
        device_runs=min(runs) if runs else None,
        simulated_parts_ms=parts or None,
        estimates=tuple(_estimates(profiles)),
        further_phrase={name: _total(further, name) for name in LATENCIES},
        graphs={name: {key: getattr(each, key) for key in _OF_A_GRAPH} for name, each in profiles.items()},
        note="; ".join(dict.fromkeys(profile.note for profile in every if profile.note)),
        layers=sorted(layers, key=lambda layer: (-(layer.ms or 0), -(layer.cycles or 0), layer.name))[:SLOWEST],
    )


def _total(profiles: Sequence[LatencyProfile], name: str) -> Any:
    """Add up a figure; None where one of the profiles has none."""
    values = [getattr(profile, name) for profile in profiles]
    return None if None in values else round(sum(values), 3)


def _estimates(profiles: Mapping[str, LatencyProfile]) -> Iterator[dict[str, Any]]:
    """Yield a device's row for all graphs, from its rows for each; `..._further_phrase` leaves out the picture's."""
    for rows in zip(*(profile.estimates for profile in profiles.values()), strict=True):
        total = dict(rows[0])
        for key in total:
            if key.startswith("latency_ms_"):
                values = [row[key] for row in rows]
                total[key] = None if None in values else round(sum(values), 3)
        by_graph = dict(zip(profiles, (row["latency_ms_estimated"] for row in rows), strict=True))
        further = [by_graph[name] for name in (PHRASE, DECODER)]
        total["latency_ms_estimated_further_phrase"] = None if None in further else round(sum(further), 3)
        yield total


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
    """One decided mask: bool [CANVAS, CANVAS].

    `non_finite` counts the values it was decided from that are NaN or infinite; `presence` (0..1) is how likely the
    picture shows the thing at all, None where the graphs do not say.
    """

    sample_id: str
    pred_mask: NDArray[np.bool_]
    non_finite: int = 0
    presence: float | None = None

    @classmethod
    def decide(cls, graphs: Graphs, sample_id: str, outputs: Mapping[str, NDArray[Any]]) -> "HubOutput":
        """Decide from the last graph's outputs. Raises ValueError for other tensors than the contract's."""
        decision = graphs.decide(outputs, sample_id)
        return cls(sample_id, decision.mask, decision.non_finite, decision.presence)


KEPT_PHRASES = 1024  # whose embeddings are kept: two kilobytes each


class Chain:
    """Runs graphs one after the other on samples; `run` runs one of them: tensors by name in, and out.

    What depends on a picture alone is computed once for the phrases that follow each other about it, what depends on a
    phrase alone once for the last KEPT_PHRASES phrases.
    """

    def __init__(self, graphs: Graphs, run: Callable[[Graph, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]):
        self.graphs = graphs
        self._run = run
        self._canvas: NDArray[np.float32] | None = None
        self._picture: NDArray[Any] | None = None
        self._of_picture: dict[str, NDArray[Any]] = {}
        self._of_phrase: dict[bytes, dict[str, NDArray[Any]]] = {}

    def decide(self, sample: HubInput) -> HubOutput:
        """Run all graphs on a sample. Raises ValueError when they hand back another shape or type."""
        *_, (_, _, outputs) = self.steps(sample)
        return HubOutput.decide(self.graphs, sample.sample_id, outputs)

    def steps(self, sample: HubInput) -> Iterator[tuple[Graph, dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
        """Run the graphs on a sample one by one; yield each with its inputs and its outputs, both by name."""
        if sample.image_input is not self._canvas or self._picture is None:
            self._canvas, picture = sample.image_input, self.graphs.picture_tensor(sample.image_input)
        else:
            picture = self._picture
        return self.steps_of(picture, self.graphs.phrase_tensor(sample.text_input))

    def steps_of(
        self, picture: NDArray[Any], phrase: NDArray[np.int32]
    ) -> Iterator[tuple[Graph, dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
        """Do what `steps` does, of the two tensors that come from outside (`Graphs.sources`)."""
        of_picture, of_phrase = self.graphs.sources
        if picture is not self._picture:
            self._picture, self._of_picture = picture, {of_picture.name: picture}
        key = phrase.tobytes()
        known_of_phrase = self._of_phrase.pop(key, None) or {of_phrase.name: phrase}
        self._of_phrase[key] = known_of_phrase  # the last used stand at the end
        for oldest in list(islice(self._of_phrase, max(0, len(self._of_phrase) - KEPT_PHRASES))):
            del self._of_phrase[oldest]
        both: dict[str, NDArray[Any]] = {}
        kept = {frozenset((of_picture.name,)): self._of_picture, frozenset((of_phrase.name,)): known_of_phrase}
        for graph in self.graphs:
            place = kept.get(self.graphs.made_from[graph.name], both)
            known = self._of_picture | known_of_phrase | both
            feed = {spec.name: known[spec.name] for spec in graph.inputs}
            if not all(spec.name in place for spec in graph.outputs):
                place.update(self._run(graph, feed))
            yield graph, feed, {spec.name: place[spec.name] for spec in graph.outputs}


class Hub(Protocol):
    """The three things that stages ask for.

    `graphs` is what an export made, a folder or the one file of the challenge's contract; `compiled` is the folder that
    `compile` wrote.
    """

    @property
    def runner(self) -> str:
        """What `run` runs on, for people: a device's name, or an emulator."""
        ...

    @property
    def emulates(self) -> bool:
        """Whether `run` takes seconds a sample: then a few are run, and ONNX Runtime on the host makes the others."""
        ...

    def compile(self, graphs: Path, folder: Path) -> CompiledGraphs:
        """Compile the graphs for the configured device and write `folder` whole or not at all.

        Raises ValueError, naming the operations, when a graph cannot run on the NPU as a whole.
        """
        ...

    def profile(self, graphs: Path, compiled: Path) -> LatencyProfile:
        """Say what one inference costs on the device."""
        ...

    def run(self, graphs: Path, compiled: Path, inputs: Iterable[HubInput]) -> Iterator[HubOutput]:
        """Yield one mask of the binaries per input, in order; holds a bounded number of samples in memory.

        Raises ValueError where nothing was compiled for the NPU (`CompiledGraphs.placed_on_npu` is False).
        """
        ...

    def explain(self, graphs: Path, sample: HubInput) -> str:
        """Name the first tensor that a binary computes otherwise than ONNX Runtime; empty where none is known."""
        ...


def read_compiled(graphs: Graphs, folder: Path, config: HubConfig) -> CompiledGraphs:
    """Read the manifest of `folder`, held to the graphs, to the section `hub` of the params, and to the binaries there.

    Raises ValueError when it is missing, of other graphs, another backend or device, or when a binary is not the one
    that was compiled.
    """
    manifest = CompiledGraphs.read(folder)
    compiled = [(binary.graph, binary.graph_sha256) for binary in manifest.binaries]
    if manifest.graph_sha256 != graphs.sha256 or compiled != [(graph.name, graph.sha256) for graph in graphs]:
        raise ValueError(f"{folder}: got a compilation of another graph than {graphs.graphs[0].path}; {COMPILE_AGAIN}")
    for key in ("backend", "device"):
        got, wanted = getattr(manifest, key), getattr(config, key)
        if got != wanted:
            raise ValueError(
                f"{folder}: got a graph compiled for the {key} {got!r}, wanted {wanted!r}; {COMPILE_AGAIN}"
            )
    for binary in manifest.binaries:
        if binary.binary_file is not None:
            path = folder / binary.binary_file
            if not path.is_file() or sha256_of(path) != binary.binary_sha256:
                raise ValueError(f"{path}: got another file than the one that was compiled, or none; {COMPILE_AGAIN}")
    return manifest
