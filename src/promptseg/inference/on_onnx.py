"""An exported graph as a model that answers phrases, on ONNX Runtime; torch is never imported."""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import check_border
from promptseg.hubs.host import HostSession
from promptseg.inference.answer import Decision


class OnnxModel:
    """A graph of the contract. Raises ValueError when the file is missing, no ONNX, or has another border."""

    why_no_confidence = "an ONNX file hands out the mask alone (docs/contract.md); a checkpoint knows it"

    def __init__(self, graph: Path) -> None:
        check_border(graph)
        self.name = str(graph)
        self._session = HostSession(graph)

    def decide(self, canvas: NDArray[np.float32], tokens: NDArray[np.int32]) -> list[Decision]:
        """See `answer.Model`; one run of the graph a phrase."""
        decisions = []
        for row in tokens:
            start = time.perf_counter()
            mask = self._session.run(HubInput(self.name, canvas, row[:, None]))
            decisions.append(Decision(mask, None, None, 1e3 * (time.perf_counter() - start)))
        return decisions
