"""A quantized graph in the cloud: the same file that ONNX Runtime runs here goes up, and its masks come back."""

from pathlib import Path
from typing import Any

import onnx

from promptseg.export.onnx_export import export_graphs
from promptseg.export.quantize import quantize_graphs
from promptseg.hubs.base import CompiledGraphs
from promptseg.hubs.host import masks_on_host
from tests.aihub_bench import Bench
from tests.graphs import Inputs, export_config
from tests.networks import micro_network
from tests.test_app import asked_of

pytest_plugins = ("tests.aihub_fixtures",)


def test_integers_go_up_as_they_run_here_and_their_masks_come_back(bench: Bench, opened: Any, tmp_path: Path) -> None:
    config, samples = export_config(1, "w8a8"), Inputs(asked_of(2, 2))
    floats, graphs = tmp_path / "float", tmp_path / "graphs"
    export_graphs(micro_network(), 96, config, samples, floats, model="micro", checkpoint_sha256="ab" * 32)
    quantize_graphs(floats, config, samples, graphs)  # type: ignore[arg-type]
    opened().compile(graphs, tmp_path / "compiled")
    assert CompiledGraphs.read(tmp_path / "compiled").precision == "w8a8"
    (job,) = bench.state.jobs.values()
    assert "FLOAT16" not in job.content.options
    sent = onnx.load(bench.state.models[job.content.model.model_id].file)
    assert sent == onnx.load(graphs / "model.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in sent.graph.node}
    got = list(opened().run(graphs, tmp_path / "compiled", samples))
    wanted = list(masks_on_host(graphs, samples, "w8a8"))
    assert any(each.pred_mask.any() for each in wanted), "empty masks show nothing"
    assert all((one.pred_mask == other.pred_mask).all() for one, other in zip(got, wanted, strict=True))
