"""hub-compile: the ONNX graph as a binary for the device's NPU."""

from pathlib import Path

from promptseg.hubs.backends import open_hub
from promptseg.params import read_params
from stages import CACHE, ROOT, run_stage


def hub_compile(graphs: Path, compiled: Path) -> None:
    """See the module."""
    open_hub(read_params(ROOT).hub, CACHE).compile(graphs, compiled)


if __name__ == "__main__":
    run_stage(hub_compile, __doc__, "graphs", "compiled")
