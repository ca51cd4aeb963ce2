"""The hub on this machine: Qualcomm's compiler, its performance simulator and its emulator, from onnxruntime-qnn.

Where the wheel does not exist, nothing is compiled for the NPU: the manifest says so, profiles hold the host's figures
only, and masks come from ONNX Runtime as they do everywhere.
"""

import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from promptseg.files import atomic_path, sha256_of
from promptseg.hubs.base import (
    COMPILE_AGAIN,
    SLOWEST,
    CompiledGraph,
    HubInput,
    HubOutput,
    LatencyProfile,
    Layer,
    read_compiled,
)
from promptseg.hubs.contract import IMAGE_INPUT, TEXT_INPUT, check_border, read_record
from promptseg.hubs.devices import Device, Line, estimate_all, find_device
from promptseg.hubs.local.process import run_compiler, run_emulator
from promptseg.hubs.local.profile import BINARY, WRAPPER, Simulation, simulate_all
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

    def compile(self, graph: Path, folder: Path) -> CompiledGraph:
        """Write context binary, wrapper and manifest to `folder`; the same graph gives the same bytes."""
        check_border(graph)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            if qnn_available():
                _LOG.info("compiling %s for %s", graph.name, self._device.name)
                wrapper = str((temporary / WRAPPER).resolve())
                run_compiler(graph.parent, CompileRequest(graph.name, wrapper, self._device.chip, None, verbose=False))
                _check_wrapper(temporary)
                compiled = self._manifest(graph, temporary / BINARY, note="")
            else:
                _LOG.warning("%s", NOTHING_COMPILED)
                compiled = self._manifest(graph, binary=None, note=NOTHING_COMPILED)
            compiled.write(temporary)
        return compiled

    def profile(self, graph: Path, compiled: Path) -> LatencyProfile:
        """Simulate the graph on each simulated chip, unless that was done before, and estimate every device from it."""
        manifest = self._read_manifest(graph, compiled)
        profile = LatencyProfile(
            device=manifest.device,
            placed_on_npu=manifest.placed_on_npu,
            binary_mb=None if manifest.binary_bytes is None else _mb(manifest.binary_bytes),
            note=manifest.note,
        )
        if not manifest.placed_on_npu:
            return profile
        simulations = simulate_all(graph, self._simulations)
        simulation = simulations[self._device.simulated_chip]
        if simulation.cost.ops_without_cost:
            names = ", ".join(simulation.cost.costless_ops)
            _LOG.warning("the simulated figures leave out %d operations: %s", simulation.cost.ops_without_cost, names)
        times_ms = {chip: each.cost.bounds_ms for chip, each in simulations.items()}
        profile = replace(profile, estimates=tuple(estimate_all(times_ms, manifest.precision)))
        return _with_simulation(profile, self._device.lines.get(manifest.precision), simulation)

    def run(self, graph: Path, compiled: Path, inputs: Iterable[HubInput]) -> Iterator[HubOutput]:
        """Yield the masks of the context binary in the HTP emulator: about 8 s each for nano at 320 px on two cores."""
        if not self._read_manifest(graph, compiled).placed_on_npu:
            raise ValueError(f"{compiled}: got nothing that was compiled for the NPU, wanted a binary to emulate")
        return (self._emulate(compiled, sample) for sample in inputs)

    def explain(self, graph: Path, sample: HubInput) -> str:
        """Compare the graph's tensors in the emulator with ONNX Runtime's: compiles and emulates once or twice."""
        from promptseg.hubs.local.tensors import first_straying_tensor  # it runs as a program of its own, too

        _LOG.info("looking for the first tensor that strays, on %s", sample.sample_id)
        try:
            straying = first_straying_tensor(graph, _feed(sample), self._device)
        except (RuntimeError, OSError) as error:
            return f"not found ({error})"
        return "" if straying is None else str(straying)

    def _emulate(self, compiled: Path, sample: HubInput) -> HubOutput:
        _LOG.info("emulating %s", sample.sample_id)
        with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
            inputs, output = Path(scratch) / "inputs.npz", Path(scratch) / "output.npy"
            np.savez(inputs, allow_pickle=False, **_feed(sample))
            wrapper = (compiled / WRAPPER).resolve()
            run_emulator(EmulateRequest(str(wrapper), self._device.chip, str(inputs), str(output)))
            pred_mask = np.load(output)
        return HubOutput.decide(sample.sample_id, pred_mask)

    def _manifest(self, graph: Path, binary: Path | None, note: str) -> CompiledGraph:
        record = read_record(graph)
        return CompiledGraph(
            backend=BACKEND,
            device=self._device.name,
            model=record.model,
            res=record.res,
            runtime="QNN context binary" if binary else "ONNX Runtime, CPU",
            precision=record.precision if binary else "fp32",
            placed_on_npu=binary is not None,
            graph_sha256=sha256_of(graph),
            binary_file=BINARY if binary else None,
            binary_bytes=binary.stat().st_size if binary else None,
            binary_sha256=sha256_of(binary) if binary else None,
            wrapper_file=WRAPPER if binary else None,
            chip=_chip_of(binary, self._device) if binary else None,
            service=None,
            account=None,
            job_id=None,
            job_address=None,
            tool_versions=tool_versions(),
            note=note,
        )

    def _read_manifest(self, graph: Path, compiled: Path) -> CompiledGraph:
        manifest = read_compiled(graph, compiled, self._config)
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


def _check_wrapper(folder: Path) -> None:
    nodes = [node.op_type for node in onnx.load(folder / WRAPPER, load_external_data=False).graph.node]
    if nodes != ["EPContext"] or not (folder / BINARY).is_file():
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


def _feed(sample: HubInput) -> dict[str, Any]:
    return {IMAGE_INPUT.name: sample.image_input, TEXT_INPUT.name: sample.text_input}


def _mb(size_bytes: int) -> float:
    return round(size_bytes / 1e6, 3)
