"""The exported file: the contract's border, parts that an NPU takes, the same bytes again, nothing of this machine."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from promptseg.datasets.preprocess import CANVAS
from promptseg.export import onnx_export
from promptseg.export.deployed_graph import REWRITES, DeployedXDecoder
from promptseg.export.onnx_export import MOST_DIFFERING_PIXELS, ExportReport, count_flops, export_graphs
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import (
    IMAGE_INPUT,
    INPUTS,
    OUTPUTS,
    PRED_MASK,
    TEXT_INPUT,
    GraphRecord,
    read_graphs,
    read_record,
)
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder, tiny
from tests.graphs import RECORD, export_config, write_bright_graph, write_textless_graph
from tests.imports import ROOT
from tests.networks import micro_network, random_phrases, random_pictures

CONFIG = export_config(2)
RES = 68
HARD_FOR_AN_NPU = {
    "NonZero",
    "ScatterND",
    "ScatterElements",
    "If",
    "Loop",
    "Scan",
    "GatherND",
    "Einsum",
    "Where",
    "Shape",
}


def sample(seed: int) -> HubInput:
    image = torch.nn.functional.interpolate(random_pictures(1, 32, seed), size=(CANVAS, CANVAS), mode="bicubic")
    ids = random_phrases(1, seed)
    text = torch.stack((ids, torch.ones_like(ids)))
    return HubInput(f"sample {seed}", image.clamp(0, 255).round().numpy(), text.numpy())


SAMPLES = [sample(1), sample(2)]


def export(network: XDecoder, samples: list[HubInput], path: Path, res: int = RES) -> ExportReport:
    return export_graphs(network, res, CONFIG, samples, path, model="micro", checkpoint_sha256="ab" * 32)


@pytest.fixture(scope="module")
def network() -> XDecoder:
    return micro_network()


@pytest.fixture(scope="module")
def exported(network: XDecoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    folder = tmp_path_factory.mktemp("export") / "models" / "graphs"
    return folder / "model.onnx", export(network, SAMPLES, folder)


class Toy(nn.Module):
    """The contract's border around one convolution; exports in a second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, image_input: Tensor, text_input: Tensor) -> Tensor:
        """Float [1, 3, CANVAS, CANVAS], int32 [2, 1, 77] -> float [CANVAS, CANVAS]."""
        return torch.sigmoid(self.conv(image_input)[0, 0] * text_input[0, 0, 0])


class MeanToy(nn.Module):
    """A mean over an axis: the converter cannot turn it back to opset 17."""

    def forward(self, image_input: Tensor, text_input: Tensor) -> Tensor:
        """Float [1, 3, CANVAS, CANVAS], int32 [2, 1, 77] -> float [CANVAS, CANVAS]."""
        return image_input.mean(1)[0] * text_input[0, 0, 0]


def toy_bytes(path: Path) -> bytes:
    onnx_export.trace_graph(Toy().eval().requires_grad_(False), 18, path, RECORD)
    return path.read_bytes()


def test_an_export_repeats_exactly_wherever_it_lies(tmp_path: Path) -> None:
    first = toy_bytes(tmp_path / "a.onnx")
    (tmp_path / "elsewhere").mkdir()
    assert first == toy_bytes(tmp_path / "elsewhere" / "b.onnx")


def test_no_path_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    content = toy_bytes(tmp_path / "a.onnx")
    read_graphs(tmp_path / "a.onnx")
    for folder in (ROOT, tmp_path, Path(torch.__file__).parents[1]):
        assert str(folder).encode() not in content
    assert b".py" not in content


@pytest.mark.parametrize("opset", [17, 21])
def test_the_file_has_the_opset_that_was_asked_for(opset: int, tmp_path: Path) -> None:
    onnx_export.trace_graph(Toy().eval(), opset, tmp_path / "a.onnx")
    assert onnx_export.opset_of(onnx.load(tmp_path / "a.onnx")) == opset


def test_an_opset_that_the_exporter_cannot_write_is_refused(tmp_path: Path) -> None:
    """It writes 18 and converts; where it cannot, it keeps 18 and says nothing."""
    with pytest.raises(ValueError, match=r"export\.opset: got 17, .* of opset 18: .*; set export\.opset to 18"):
        onnx_export.trace_graph(MeanToy().eval(), 17, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_operations_are_counted_by_kind(tmp_path: Path) -> None:
    onnx_export.write_ops(write_bright_graph(tmp_path / "model.onnx"), tmp_path / "ops.csv")
    wanted = "op,count\nGather,4\nMatMul,2\nConv,1\nMul,1\nReshape,1\nSigmoid,1\nSub,1\n"
    assert (tmp_path / "ops.csv").read_text(encoding="utf-8") == wanted


def test_flops_are_a_hand_count() -> None:
    """A multiplication and an addition for each of 3 x 3 x 3 weights, of each of 2 values at each pixel."""
    assert onnx_export.count_flops(Toy()) == 2 * (3 * 3 * 3) * 2 * CANVAS**2


def test_a_graph_that_decides_otherwise_is_refused_and_not_left(
    network: XDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "trace_graph", lambda _graph, _opset, path, *_: write_bright_graph(path))
    path = tmp_path / "models" / "graphs"
    with pytest.raises(ValueError, match=r"graphs: up to \d+\.\d+% of pixels differ from torch, wanted at most 0.10%"):
        export(network, SAMPLES[:1], path)
    assert list(path.parent.iterdir()) == []


def test_one_sample_that_differs_is_enough(network: XDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "trace_graph", lambda _graph, _opset, path, *_: write_bright_graph(path))
    shares = iter([0.0, MOST_DIFFERING_PIXELS * 1.1])
    monkeypatch.setattr(onnx_export, "_differing_share", lambda *_: next(shares))
    with pytest.raises(ValueError, match="differ from torch"):
        export(network, SAMPLES, tmp_path / "graphs")


def test_a_share_that_is_no_number_is_refused(
    network: XDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "trace_graph", lambda _graph, _opset, path, *_: write_bright_graph(path))
    monkeypatch.setattr(onnx_export, "_differing_share", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="differ from torch"):
        export(network, SAMPLES[:1], tmp_path / "graphs")


def test_an_earlier_graph_survives_a_refused_one(
    network: XDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "trace_graph", lambda _graph, _opset, path, *_: write_textless_graph(path))
    folder = tmp_path / "graphs"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"earlier")
    with pytest.raises(ValueError, match="got inputs image_input"):
        export(network, SAMPLES[:1], folder)
    assert (folder / "model.onnx").read_bytes() == b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["graphs"]


@pytest.mark.parametrize("res", [63, 1025])
def test_a_size_that_the_canvas_cannot_have_is_refused(network: XDecoder, res: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"res: got {res}, wanted a whole number of pixels from 64 to 1024"):
        export(network, SAMPLES, tmp_path / "model.onnx", res)


@pytest.mark.slow
def test_the_border_is_the_contracts(exported: tuple[Path, ExportReport]) -> None:
    read_graphs(exported[0])
    session = ort.InferenceSession(str(exported[0]), providers=["CPUExecutionProvider"])
    dtypes = {"float32": "tensor(float)", "int32": "tensor(int32)"}
    for values, specs in ((session.get_inputs(), INPUTS), (session.get_outputs(), OUTPUTS)):
        assert [(value.name, value.type, tuple(value.shape)) for value in values] == [
            (spec.name, dtypes[spec.dtype], spec.shape) for spec in specs
        ]


@pytest.mark.slow
def test_the_graph_is_made_of_what_an_npu_takes(exported: tuple[Path, ExportReport]) -> None:
    content = onnx.shape_inference.infer_shapes(onnx.load(exported[0]), strict_mode=True)
    graph = content.graph
    assert {node.domain for node in graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in content.opset_import] == [("", CONFIG.opset)]
    assert not content.functions
    assert not {node.op_type for node in graph.node} & HARD_FOR_AN_NPU
    for value in graph.value_info:
        assert all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim), value.name
    modes = {a.s for node in graph.node if node.op_type == "Resize" for a in node.attribute if a.name == "mode"}
    assert modes <= {b"linear", b"nearest"}, "the NPU has no bicubic resize"
    cast_to = {node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    assert cast_to <= {onnx.TensorProto.FLOAT}
    onnx.checker.check_model(content, full_check=True)


@pytest.mark.slow
def test_the_file_says_what_it_is(network: XDecoder, exported: tuple[Path, ExportReport]) -> None:
    rule = network.config.mask_decoder.mask_attention
    wanted = GraphRecord("micro", RES, "fp16", "ab" * 32, rule.attends, rule.resize, network.config.canvas_rule)
    assert read_record(exported[0]) == wanted


@pytest.mark.slow
def test_bools_and_wide_integers_stay_inside(exported: tuple[Path, ExportReport]) -> None:
    """A comparison is turned into numbers at once; the only wide integers computed are the chosen query's."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(exported[0])).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    readers = {name: node.op_type for node in graph.node for name in node.input}
    for node in graph.node:
        kinds = {types.get(name) for name in node.output}
        if onnx.TensorProto.BOOL in kinds:
            assert {readers[name] for name in node.output} == {"Cast"}, node.name
        if onnx.TensorProto.INT64 in kinds:
            assert node.op_type in ("ArgMax", "Unsqueeze", "Reshape", "Squeeze"), node.name


@pytest.mark.slow
def test_the_report_says_what_the_file_is(network: XDecoder, exported: tuple[Path, ExportReport]) -> None:
    path, report = exported
    content = onnx.load(path)
    assert (report.res, report.opset, report.parity_samples) == (RES, CONFIG.opset, len(SAMPLES))
    assert report.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert report.model_mb == round(path.stat().st_size / 1e6, 3)
    assert report.model_mb > report.parameters * 4 / 1e6, "float32 weights and the resizing matrix"
    assert report.nodes == len(content.graph.node)
    assert report.gflops == round(onnx_export.count_flops(DeployedXDecoder(network, RES).eval()) / 1e9, 3)
    assert 0 <= report.differing_pixels <= report.differing_pixels_worst <= MOST_DIFFERING_PIXELS
    assert json.loads(json.dumps(report.to_json())) == report.to_json()


def test_mask_features_are_not_made_at_full_size() -> None:
    """The convolution at 32 x 32 cells goes, and what comes for it is less; of few channels, matrices weigh more."""
    network = XDecoder(tiny(MaskAttention("outside", "bilinear"))).eval().requires_grad_(False)
    made_at_full_size = [name for name in REWRITES if name != "features"]
    saved = count_flops(DeployedXDecoder(network, 128, made_at_full_size)) - count_flops(DeployedXDecoder(network, 128))
    dim = network.config.pixel_decoder.dim
    convolution = 2 * 9 * dim * dim * 32 * 32
    assert 0.3 * convolution < saved < convolution


@pytest.mark.slow
def test_masks_from_the_file_are_masks(exported: tuple[Path, ExportReport]) -> None:
    session = ort.InferenceSession(str(exported[0]), providers=["CPUExecutionProvider"])
    for each in SAMPLES:
        (pred_mask,) = session.run(
            [PRED_MASK.name], {IMAGE_INPUT.name: each.image_input, TEXT_INPUT.name: each.text_input}
        )
        PRED_MASK.check(pred_mask, each.sample_id)
        assert 0 <= pred_mask.min() <= pred_mask.max() <= 1
        assert 0.02 < np.mean(pred_mask > 0.5) < 0.98


@pytest.mark.slow
def test_the_whole_network_repeats_exactly(
    network: XDecoder, exported: tuple[Path, ExportReport], tmp_path: Path
) -> None:
    again = export(network, SAMPLES, tmp_path / "again")
    assert (tmp_path / "again" / "model.onnx").read_bytes() == exported[0].read_bytes()
    assert again == exported[1]
    assert str(ROOT).encode() not in exported[0].read_bytes()
