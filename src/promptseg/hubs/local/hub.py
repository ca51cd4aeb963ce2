"""The hub on this machine: Qualcomm's compiler, its performance simulator and its emulator, from onnxruntime-qnn.

Where the wheel does not exist, nothing is compiled for the NPU: the manifest says so, profiles hold the host's figures
only, and masks come from ONNX Runtime as they do everywhere.
"""

import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from promptseg.files import atomic_path, sha256_of
from promptseg.hubs.base import (
    COMPILE_AGAIN,
    SLOWEST,
    Binary,
    Chain,
    CompiledGraphs,
    HubInput,
    HubOutput,
    LatencyProfile,
    Layer,
    profile_of_all,
    read_compiled,
)
from promptseg.hubs.contract import Graph, Graphs, read_graphs
from promptseg.hubs.devices import Device, Line, estimate_all, find_device
from promptseg.hubs.local.process import run_compiler, run_emulator
from promptseg.hubs.local.profile import Simulation, binary_of, simulate_all
from promptseg.hubs.local.session import COMPILER, CompileRequest, EmulateRequest, qnn_available, tool_versions
from promptseg.hubs.local.trace import part_times_ms
from promptseg.params import HubConfig

BACKEND = "local"
NOTHING_COMPILED = (
    "nothing was compiled for the NPU: onnxruntime-qnn with an HTP library is not installed on this machine; "
    "latencies are the host CPU's only"
)
_CHIP = re.compile(rb"soc_type=(\w+);arch=(\d+)")
_LOG = logging.getLogger(__name__)


class LocalHub:
    """A `Hub` without a device: compiles for one, simulates its latency, emulates its arithmetic.

    Raises ValueError at once when the device is unknown.
    """

    runner = "HTP emulator"
    emulates = True

    def __init__(self, config: HubConfig, cache: Path) -> None:
        self._config = config
        self._simulations = cache / "simulations"
        self._device = find_device(config.device)

    def compile(self, graphs: Path, folder: Path) -> CompiledGraphs:
        """Write context binaries, wrappers and manifest to `folder`; see CompileRequest on their bytes."""
        exported = read_graphs(graphs)
        self._device.check_precision(exported.record.precision)
        note = "" if qnn_available() else NOTHING_COMPILED
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            if note:
                _LOG.warning("%s", note)
            binaries = [
                Binary(graph.name, graph.sha256) if note else self._compile(graph, temporary) for graph in exported
            ]
            compiled = self._manifest(exported, binaries, temporary, note)
            compiled.write(temporary)
        return compiled

    def profile(self, graphs: Path, compiled: Path) -> LatencyProfile:
        """Simulate each graph on each simulated chip, unless that was done before, and estimate every device."""
        exported = read_graphs(graphs)
        manifest = self._read_manifest(exported, compiled)
        return profile_of_all(
            {
                graph.name: self._profile(graph, manifest, binary)
                for graph, binary in zip(exported, manifest.binaries, strict=True)
            }
        )

    def run(self, graphs: Path, compiled: Path, inputs: Iterable[HubInput]) -> Iterator[HubOutput]:
        """Yield the binaries' masks in the HTP emulator: about 8 s each for nano at 320 px on two cores."""
        exported = read_graphs(graphs)
        if not self._read_manifest(exported, compiled).placed_on_npu:
            raise ValueError(f"{compiled}: got nothing that was compiled for the NPU, wanted a binary to emulate")
        return self._decided(Chain(exported, partial(self._emulate, compiled)), inputs)

    def _decided(self, chain: Chain, inputs: Iterable[HubInput]) -> Iterator[HubOutput]:
        for sample in inputs:
            _LOG.info("emulating %s", sample.sample_id)
            yield chain.decide(sample)

    def explain(self, graphs: Path, sample: HubInput) -> str:
        """Compare the graphs' tensors in the emulator with ONNX Runtime's: compiles and emulates each once or twice."""
        from promptseg.hubs.host import HostSession
        from promptseg.hubs.local.tensors import first_straying_tensor  # it runs as a program of its own, too

        _LOG.info("looking for the first tensor that strays, on %s", sample.sample_id)
        for graph, feed, _ in HostSession(graphs).chain.steps(sample):
            try:
                straying = first_straying_tensor(graph.path, feed, self._device)
            except (RuntimeError, OSError) as error:
                return f"not found ({error})"
            if straying is not None:
                return str(straying)
        return ""

    def _compile(self, graph: Graph, folder: Path) -> Binary:
        _LOG.info("compiling %s for %s", graph.path.name, self._device.name)
        wrapper = folder / f"{graph.name}.onnx"
        request = CompileRequest(graph.path.name, str(wrapper.resolve()), self._device.chip, None, verbose=False)
        run_compiler(graph.path.parent, request)
        binary = binary_of(wrapper)
        _check_wrapper(wrapper, binary)
        return Binary(
            graph=graph.name,
            graph_sha256=graph.sha256,
            binary_file=binary.name,
            binary_bytes=binary.stat().st_size,
            binary_sha256=sha256_of(binary),
            wrapper_file=wrapper.name,
        )

    def _profile(self, graph: Graph, manifest: CompiledGraphs, binary: Binary) -> LatencyProfile:
        profile = LatencyProfile(
            device=manifest.device,
            placed_on_npu=manifest.placed_on_npu,
            binary_mb=None if binary.binary_bytes is None else _mb(binary.binary_bytes),
            note=manifest.note,
        )
        if not manifest.placed_on_npu:
            return profile
        simulations = simulate_all(graph.path, self._simulations)
        simulation = simulations[self._device.simulated_chip]
        if simulation.cost.ops_without_cost:
            names = ", ".join(simulation.cost.costless_ops)
            _LOG.warning("the simulated figures leave out %d operations: %s", simulation.cost.ops_without_cost, names)
        times_ms = {chip: each.cost.bounds_ms for chip, each in simulations.items()}
        profile = replace(profile, estimates=tuple(estimate_all(times_ms, manifest.precision)))
        return _with_simulation(profile, self._device.lines.get(manifest.precision), simulation)

    def _emulate(self, compiled: Path, graph: Graph, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
            inputs, outputs = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
            np.savez(inputs, allow_pickle=False, **feed)
            wrapper = (compiled / f"{graph.name}.onnx").resolve()
            run_emulator(EmulateRequest(str(wrapper), self._device.chip, str(inputs), str(outputs)))
            with np.load(outputs) as arrays:
                return dict(arrays)

    def _manifest(self, graphs: Graphs, binaries: list[Binary], folder: Path, note: str) -> CompiledGraphs:
        record, made = graphs.record, [folder / name for each in binaries if (name := each.binary_file)]
        return CompiledGraphs(
            backend=BACKEND,
            device=self._device.name,
            contract=record.contract,
            model=record.model,
            res=record.res,
            runtime="QNN context binary" if made else "ONNX Runtime, CPU",
            precision=record.precision if made or record.integers else "fp32",
            placed_on_npu=bool(made),
            graph_sha256=graphs.sha256,
            binaries=tuple(binaries),
            chip=next(iter({_chip_of(binary, self._device) for binary in made}), None),
            service=None,
            account=None,
            tool_versions=tool_versions(),
            note=note,
        )

    def _read_manifest(self, graphs: Graphs, compiled: Path) -> CompiledGraphs:
        manifest = read_compiled(graphs, compiled, self._config)
        if manifest.placed_on_npu and not qnn_available():
            raise ValueError(
                f"{compiled}: got a graph compiled for the NPU, and no onnxruntime-qnn here to run or profile it; "
                f"wanted both or neither: install it, or {COMPILE_AGAIN}"
            )
        here = tool_versions()
        other = [
            f"{name} {manifest.tool_versions.get(name)}, here {here.get(name)}"
            for name in COMPILER
            if manifest.tool_versions.get(name) != here.get(name)
        ]
        if other:
            raise ValueError(f"{compiled}: got a graph compiled by {'; '.join(other)}; {COMPILE_AGAIN}")
        return manifest


def _with_simulation(profile: LatencyProfile, line: Line | None, simulation: Simulation) -> LatencyProfile:
    cost, times = simulation.cost, simulation.times
    slowest = sorted(times.items(), key=lambda item: (-item[1].elapsed_ms, item[0]))[:SLOWEST]
    simulated_ms = cost.bounds_ms
    if line is not None:
        estimate = line.estimate(*simulated_ms)
        profile = replace(
            profile,
            latency_ms_estimated=round(estimate.latency_ms, 3),
            latency_ms_estimated_low=round(estimate.low_ms, 3),
            latency_ms_estimated_high=round(estimate.high_ms, 3),
        )
    return replace(
        profile,
        latency_ms_simulated=simulated_ms[0],
        latency_ms_simulated_low=simulated_ms[1],
        latency_ms_simulated_high=simulated_ms[2],
        simulated_parts_ms=part_times_ms(times),
        layers=[Layer(node, "NPU, simulated", ms=round(time.elapsed_ms, 3)) for node, time in slowest],
        simulated_cycles=cost.cycles,
        ops_without_cost=cost.ops_without_cost,
        ddr_read_mb=_mb(cost.input_fill_bytes + cost.fill_bytes),
        ddr_write_mb=_mb(cost.output_bytes + cost.spill_bytes),
        spill_mb=_mb(cost.spill_bytes),
        fill_mb=_mb(cost.fill_bytes),
    )


def _check_wrapper(wrapper: Path, binary: Path) -> None:
    nodes = [node.op_type for node in onnx.load(wrapper, load_external_data=False).graph.node]
    if nodes != ["EPContext"] or not binary.is_file():
        raise ValueError(f"got a graph split into {', '.join(nodes)}, wanted one piece, whole on the NPU")


def _chip_of(binary: Path, device: Device) -> str:
    """Read which chip a context binary names itself for. Raises ValueError where it is not the device's."""
    wanted = (device.soc_type, str(device.chip.htp_arch))
    found = [(soc.decode(), arch.decode()) for soc, arch in _CHIP.findall(binary.read_bytes())]
    if set(found) != {wanted}:
        got = ", ".join(f"{soc}, v{arch}" for soc, arch in found) or "no chip named"
        raise ValueError(
            f"{binary.name}: got a binary for another chip ({got}), wanted {wanted[0]}, v{wanted[1]} ({device.name}); "
            "is this another onnxruntime-qnn? See hubs/devices/devices.csv"
        )
    return "{}, v{}".format(*wanted)


def _mb(size_bytes: int) -> float:
    return round(size_bytes / 1e6, 3)
