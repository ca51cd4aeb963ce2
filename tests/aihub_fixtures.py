"""Fixtures of the cloud backend's tests: a bench of one's own, a graph, and hubs that remember as one machine does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptseg.hubs.aihub.hub import AiHub
from tests.aihub_bench import Bench
from tests.aihub_helpers import forget_sleep, open_bench_hub
from tests.graphs import write_bright_graph


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    forget_sleep(monkeypatch.setattr)
    with Bench(tmp_path / "bench") as bench:
        yield bench


@pytest.fixture
def opened(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a hub as another process would: the same journal, nothing else in common."""

    def open_hub(**changes: Any) -> AiHub:
        return open_bench_hub(bench, tmp_path / "mine", monkeypatch, **changes)

    return open_hub
