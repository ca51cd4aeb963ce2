"""Where Qualcomm's compiler lies on this machine, if it does, and its versions."""

from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

try:
    import onnxruntime_qnn
except ImportError:  # no wheel for this system: the local hub then measures the host only
    onnxruntime_qnn = None

# The name under which the library registers, and which its devices carry.
EXECUTION_PROVIDER = "QNN"


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
