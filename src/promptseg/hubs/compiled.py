"""A compiled graph on disk, held to the graph and the backend that ask for it."""

from pathlib import Path

from promptseg.files import sha256_of
from promptseg.hubs.base import CompiledGraph
from promptseg.hubs.graph_border import check_border


def read_compiled(graph: Path, folder: Path, backend: str) -> CompiledGraph:
    """Read the manifest of `folder`.

    Raises ValueError when it is missing, or is of another graph or of another backend.
    """
    check_border(graph)
    manifest = CompiledGraph.read(folder)
    if manifest.graph_sha256 != sha256_of(graph):
        raise ValueError(f"{folder}: got a compilation of another graph than {graph}; run `dvc repro hub-compile`")
    if manifest.backend != backend:
        raise ValueError(
            f"{folder}: got a graph compiled by the backend {manifest.backend!r}, wanted {backend!r}; "
            "run `dvc repro hub-compile`"
        )
    return manifest
