"""One session of Qualcomm's compiler or of its emulator, alone in a fresh process.

Run by `process` as `python -m promptseg.hubs.local.session <request as JSON>`: the compiler keeps state between
sessions and can end its process, so each request gets one of its own.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from promptseg.hubs.devices import Chip

try:
    import onnxruntime_qnn
except ImportError:  # no wheel for this system: the local hub then measures the host only
    onnxruntime_qnn = None

# The name under which the library registers, and which its devices carry.
EXECUTION_PROVIDER = "QNN"
COMPILER = ("onnxruntime_qnn", "qnn_sdk")  # of the versions of the tools, those that a binary depends on
VERBOSE, WARNING = 0, 2  # ONNX Runtime's severities
# How the compiler is asked: its level of optimization, and how many MB of the chip's fast memory (VTCM) it may not use.
# The next are for graphs of which one ends with NO_PLAN, whatever memory the machine has (docs/compiler.md).
PLANS = ((3, 0), (3, 1), (2, 0), (2, 1), (1, 0))
NO_PLAN = "QNN_COMMON_ERROR_MEM_ALLOC"


@dataclass(frozen=True)
class QnnLibrary:
    """The plug-in for ONNX Runtime and the HTP library (compiler and emulator) that it loads."""

    execution_provider: str
    provider_path: Path
    htp_path: Path


def qnn_available() -> bool:
    """Tell whether the wheel is installed and carries the HTP compiler (some systems' wheels do not)."""
    return onnxruntime_qnn is not None and Path(onnxruntime_qnn.get_qnn_htp_path()).is_file()


def qnn_library() -> QnnLibrary:
    """Return the library's files. Raises RuntimeError where `qnn_available` is False."""
    if not qnn_available():
        raise RuntimeError("got no onnxruntime-qnn with an HTP library, wanted it installed; see requirements.txt")
    return QnnLibrary(
        EXECUTION_PROVIDER, Path(onnxruntime_qnn.get_library_path()), Path(onnxruntime_qnn.get_qnn_htp_path())
    )


def tool_versions() -> dict[str, str]:
    """Return the versions to record beside every number."""
    versions = {"onnxruntime": ort.__version__}
    if qnn_available():
        versions["onnxruntime_qnn"] = onnxruntime_qnn.__version__
        versions["qnn_sdk"] = onnxruntime_qnn.build_and_package_info.qnn_version
    return versions


@dataclass(frozen=True)
class CompileRequest:
    """Compile `graph`, a file name in the working folder, to `wrapper` (ONNX) and `<wrapper stem>_qnn.bin` beside it.

    The name and not the path of the graph reaches the compiler, because it names the compiled graph after a hash of
    what it was given: the same graph has the same name wherever it lies. (Some 150 of a binary's bytes differ from one
    compilation to the next; its simulated figures do not.) With `profile_csv` the performance
    simulator's figures are written there, in place of an earlier plan's. With `trace` too, its timeline is written
    beside them (`<profile stem>_qnn.log`), tens of megabytes. `plan` is the place of one of PLANS.
    """

    graph: str
    wrapper: str
    chip: Chip
    profile_csv: str | None
    verbose: bool
    trace: bool = False
    plan: int = 0


@dataclass(frozen=True)
class EmulateRequest:
    """Run `wrapper` in the HTP emulator: `inputs` to `outputs`, both .npz with the graph's own names."""

    wrapper: str
    chip: Chip
    inputs: str
    outputs: str


def compile_graph(request: CompileRequest) -> None:
    """Write the context binary and its wrapper. ONNX Runtime raises when a node cannot be placed on the NPU."""
    if request.profile_csv is not None:  # the tool appends
        Path(request.profile_csv).unlink(missing_ok=True)
    options = session_options(request.chip, request.profile_csv, request.trace, request.plan)
    options.add_session_config_entry("ep.context_enable", "1")
    options.add_session_config_entry("ep.context_file_path", request.wrapper)
    options.add_session_config_entry("ep.context_embed_mode", "0")
    options.log_severity_level = VERBOSE if request.verbose else WARNING
    ort.InferenceSession(request.graph, options)


def emulate(request: EmulateRequest) -> None:
    """Write the outputs of `wrapper`. The time that this takes is the host's and says nothing of the device."""
    session = ort.InferenceSession(request.wrapper, session_options(request.chip))
    with np.load(request.inputs) as tensors:
        outputs = session.run(None, dict(tensors))
    names = [value.name for value in session.get_outputs()]
    np.savez(request.outputs, allow_pickle=False, **dict(zip(names, outputs, strict=True)))


def session_options(
    chip: Chip, profile_csv: str | None = None, trace: bool = False, plan: int = 0
) -> ort.SessionOptions:
    """Register the compiler, and return what a session needs to run wholly on `chip`, or fail."""
    library = qnn_library()
    optimization, spared_mb = PLANS[plan]
    ort.register_execution_provider_library(library.execution_provider, str(library.provider_path))
    devices = [device for device in ort.get_ep_devices() if device.ep_name == library.execution_provider]
    provider = {
        "backend_path": str(library.htp_path),
        "htp_arch": str(chip.htp_arch),
        "soc_model": str(chip.soc_model),
        "vtcm_mb": str(chip.vtcm_mb - spared_mb),
        "enable_htp_fp16_precision": "1",
        "htp_graph_finalization_optimization_mode": str(optimization),
        "offload_graph_io_quantization": "0",
    }
    if profile_csv is not None:
        provider |= {"profiling_level": "optrace" if trace else "detailed", "profiling_file_path": profile_csv}
    options = ort.SessionOptions()
    options.add_provider_for_devices(devices, provider)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def main(arguments: list[str]) -> None:
    """Carry out the one request given as a JSON object."""
    fields = json.loads(arguments[0])
    fields["chip"] = Chip(**fields["chip"])
    if "graph" in fields:
        compile_graph(CompileRequest(**fields))
    else:
        emulate(EmulateRequest(**fields))


if __name__ == "__main__":
    main(sys.argv[1:])
