"""Answers that come when the client has given up, by its own time-outs: 28 s for the service, 4 s for storage."""

from pathlib import Path

import pytest

from tests.aihub_bench import Bench, Fault
from tests.aihub_helpers import forget_sleep, open_bench_hub
from tests.graphs import split_picture, write_bright_graph

pytestmark = pytest.mark.slow
SAMPLE = split_picture("s", 30, 120, first_id=5)


@pytest.mark.parametrize(
    ("step", "late_s"), [("submit", 29.0), ("job", 29.0), ("post dataset", 5.0), ("get outputs", 5.0)]
)
def test_a_late_answer_costs_no_second_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, late_s: float
) -> None:
    forget_sleep(monkeypatch.setattr)
    graph = write_bright_graph(tmp_path / "model.onnx")
    with Bench(tmp_path / "bench") as bench:
        open_bench_hub(bench, tmp_path / "mine", monkeypatch).compile(graph, tmp_path / "compiled")
        bench.faults.append(Fault(step, "late", times=1, late_s=late_s))
        hub = open_bench_hub(bench, tmp_path / "mine", monkeypatch)
        (output,) = hub.run(graph, tmp_path / "compiled", [SAMPLE])
        assert float(output.pred_mask.mean()) == 0.5
        assert len(bench.state.names("infer")) == 1
        assert bench.faults[0].times <= 0, "it did come late"
