"""The app's contract: three graphs that answer as the network does, each run no more often than it must be."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from promptseg.datasets.preprocess import CANVAS, MASK_STRIDE, canvas_to_square, logits_to_canvas, picture_to_canvas
from promptseg.export.deployed_graph import deployed
from promptseg.export.onnx_export import MOST_DIFFERING_PIXELS, ExportReport, export_graphs
from promptseg.hubs.base import KEPT_PHRASES, Chain, HubInput, LatencyProfile, Layer, profile_of_all
from promptseg.hubs.contract import AppGraphs, Graph, read_graphs
from promptseg.hubs.host import HostSession, masks_on_host, measure_on_host
from promptseg.inference.runners import OnnxRunner
from promptseg.networks.xdecoder import model
from promptseg.networks.xdecoder.model import XDecoder, masks_to_canvas, resize_canvas
from tests.graphs import export_config
from tests.networks import PAPER_RULE, drawn, micro_network, micro_phrase, random_phrases, random_pictures

RES = 100
APP = export_config(2, contract="app")


def asked_of(pictures: int, phrases: int, seed: int = 3) -> list[HubInput]:
    """Each picture with each phrase, the phrases of a picture following each other; the last 300 rows are padding."""
    ids = random_phrases(phrases, seed).numpy()
    texts = [np.stack((row, np.ones_like(row)))[:, None] for row in ids]
    made = []
    for number in range(pictures):
        coarse = random_pictures(1, 16, seed + number)
        large = torch.nn.functional.interpolate(coarse, size=(CANVAS, CANVAS), mode="bicubic").clamp(0, 255).round()
        large[:, :, 724:] = 0
        image = large.numpy()
        made += [HubInput(f"{number}-{index}", image, text) for index, text in enumerate(texts)]
    return made


@pytest.fixture(scope="module")
def network() -> XDecoder:
    return micro_network()


def export_app(network: XDecoder, folder: Path) -> ExportReport:
    return export_graphs(network, RES, APP, asked_of(2, 1), folder, model="micro", checkpoint_sha256="ab" * 32)


@pytest.fixture(scope="module")
def exported(network: XDecoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    folder = tmp_path_factory.mktemp("export") / "graphs"
    return folder, export_app(network, folder)


@pytest.fixture
def graphs(exported: tuple[Path, ExportReport]) -> Path:
    return exported[0]


@pytest.fixture(scope="module")
def challenge(network: XDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, config = tmp_path_factory.mktemp("challenge") / "graphs", replace(APP, contract="challenge")
    export_graphs(network, RES, config, asked_of(1, 1), folder, model="micro", checkpoint_sha256="ab" * 32)
    return folder


def test_the_border_is_the_contracts(exported: tuple[Path, ExportReport]) -> None:
    folder, report = exported
    picture, phrase, decoder = read_graphs(folder)
    cells = -(-RES // MASK_STRIDE)
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*picture.inputs, *phrase.inputs)] == [
        ("picture", "uint8", (1, RES, RES, 3)),
        ("phrase", "int32", (1, 77)),
    ]
    assert [(spec.name, spec.dtype, spec.shape) for spec in decoder.outputs] == [
        ("mask_logits", "float32", (1, cells, cells)),
        ("similarity", "float32", (1, 6)),
    ]
    assert decoder.inputs == (*phrase.outputs, *picture.outputs)
    assert {spec.dtype for spec in picture.outputs} == {"float16"}
    assert (report.contract, report.differing_pixels_worst <= MOST_DIFFERING_PIXELS) == ("app", True)
    assert report.model_mb == pytest.approx(sum(path.stat().st_size for path in folder.iterdir()) / 1e6, abs=1e-3)


def test_the_chain_says_what_the_network_says_of_the_same_picture(network: XDecoder, graphs: Path) -> None:
    session = HostSession(graphs)
    for sample in asked_of(3, 3):
        *_, (_, _, outputs) = session.chain.steps(sample)
        square = torch.from_numpy(session.graphs.picture_tensor(sample.image_input)).float().permute(0, 3, 1, 2)
        with torch.inference_mode():
            layers, phrase = network(square, torch.from_numpy(sample.text_input[0]))
            similarity = network.similarity(layers[-1].query_embedding, phrase)
        best = int(similarity.argmax())
        wanted = layers[-1].mask_logits[0, best].numpy()
        # Features are handed over in half precision; before that the export holds the same files to 0.1 % of pixels.
        np.testing.assert_allclose(outputs["mask_logits"][0], wanted, rtol=0, atol=2e-2 * np.abs(wanted).max())
        np.testing.assert_allclose(outputs["similarity"], similarity.numpy(), rtol=2e-2, atol=2e-2)


def test_its_masks_are_the_challenges_up_to_the_pictures_rounding(graphs: Path, challenge: Path) -> None:
    """Drawn weights are far more sensitive than trained ones: docs/app.md has nano's figure, over 64 phrases."""
    asked = asked_of(4, 4)
    ious = []
    for app, one in zip(masks_on_host(graphs, asked), masks_on_host(challenge, asked), strict=True):
        assert app.sample_id == one.sample_id
        ious.append((app.pred_mask & one.pred_mask).sum() / max(1, (app.pred_mask | one.pred_mask).sum()))
    assert np.mean(ious) > 0.97
    assert any(0.02 < one.pred_mask.mean() < 0.98 for one in masks_on_host(challenge, asked[:4]))


def counted(chain: Chain) -> Counter[str]:
    runs: Counter[str] = Counter()
    run = chain._run

    def count(graph: Graph, feed: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        runs[graph.name] += 1
        return run(graph, feed)

    chain._run = count
    return runs


def test_a_picture_is_encoded_once_and_a_phrase_once(graphs: Path) -> None:
    session = HostSession(graphs)
    runs = counted(session.chain)
    asked = asked_of(3, 4)
    kept = [session.decide(sample).pred_mask for sample in asked]
    assert runs == {"picture": 3, "phrase": 4, "decoder": 12}
    for sample, mask in zip(asked, kept, strict=True):
        assert (HostSession(graphs).decide(sample).pred_mask == mask).all(), "what is kept is of another sample"


def test_phrases_that_were_long_ago_are_forgotten(graphs: Path) -> None:
    session = HostSession(graphs)
    (sample,) = asked_of(1, 1)
    for number in range(KEPT_PHRASES + 5):
        text = sample.text_input.copy()
        text[0, 0, 1] = number
        session.chain._of_phrase[text[0].tobytes()] = {"phrase": text[0]}
    session.decide(sample)
    assert len(session.chain._of_phrase) == KEPT_PHRASES
    assert sample.text_input[0].tobytes() in session.chain._of_phrase


def test_the_challenges_graph_runs_for_each_sample(challenge: Path) -> None:
    session = HostSession(challenge)
    runs = counted(session.chain)
    for sample in asked_of(1, 3):
        session.decide(sample)
    assert runs == {"model": 3}


def test_the_hosts_time_is_told_by_graph(graphs: Path) -> None:
    latency = measure_on_host(graphs, 2)
    assert latency.graphs is not None
    assert list(latency.graphs) == ["picture", "phrase", "decoder"]
    assert latency.latency_ms_cpu == pytest.approx(sum(latency.graphs.values()), abs=0.01)


def test_a_model_answers_from_a_folder_of_graphs(graphs: Path, network: XDecoder) -> None:
    picture = random_pictures(1, 64)[0].permute(1, 2, 0).byte().numpy()
    ids = random_phrases(2).numpy()
    tokens = np.stack((ids, np.ones_like(ids)), 1)
    answers = OnnxRunner(graphs).answer(picture, tokens)
    square = canvas_to_square(picture_to_canvas(picture).astype(np.float32), RES)
    with torch.inference_mode():
        batch = torch.from_numpy(square).float().permute(2, 0, 1)[None]
        wanted = network.predict(batch, torch.from_numpy(ids), 64).mask_logits > 0
    for answer, mask in zip(answers, wanted.numpy(), strict=True):
        assert answer.mask.shape == (64, 64)
        assert (answer.mask == mask).mean() > 0.98  # of the canvas the nearest pixel is taken
        assert answer.score is None


def test_a_network_that_has_learnt_presence_says_it_in_a_third_output(tmp_path: Path) -> None:
    network = drawn(micro_phrase(PAPER_RULE), 0)
    export_app(network, tmp_path / "graphs")
    session, (sample,) = HostSession(tmp_path / "graphs"), asked_of(1, 1)
    square = torch.from_numpy(session.graphs.picture_tensor(sample.image_input)).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = network.predict(square, torch.from_numpy(sample.text_input[0]), 64).presence
    assert wanted is not None
    assert session.decide(sample).presence == pytest.approx(wanted.item(), abs=0.01)
    assert OnnxRunner(tmp_path / "graphs").why_no_score == ""


Spoil = Callable[[Path], Any]


def rewritten(name: str, change: Callable[[onnx.ModelProto], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        content = onnx.load(folder / name)
        change(content)
        onnx.save(content, folder / name)

    return spoil


def of_another_checkpoint(content: onnx.ModelProto) -> None:
    next(entry for entry in content.metadata_props if entry.key == "promptseg.checkpoint_sha256").value = "cd" * 32


def of_another_size(content: onnx.ModelProto) -> None:
    content.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "decoder.onnx").unlink(), r"decoder\.onnx: got no such file"),
        (lambda folder: (folder / "picture.onnx").unlink(), r"got a folder without model\.onnx or picture\.onnx"),
        (lambda folder: (folder / "phrase.onnx").write_bytes(b"nothing"), r"phrase\.onnx: got a file that is no ONNX"),
        (
            rewritten("decoder.onnx", of_another_checkpoint),
            r"decoder\.onnx: got a graph of another export than",
        ),
        (rewritten("decoder.onnx", of_another_size), r"decoder\.onnx: got outputs mask_logits .*wanted mask_logits"),
        (
            lambda folder: (folder / "phrase.onnx").write_bytes((folder / "picture.onnx").read_bytes()),
            r"phrase\.onnx: got inputs picture uint8 .* wanted phrase int32 \[1, 77\]",
        ),
    ],
)
def test_graphs_that_do_not_belong_together_are_refused(
    graphs: Path, tmp_path: Path, spoil: Spoil, message: str
) -> None:
    for path in graphs.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_graphs(tmp_path)


def test_one_graph_of_three_is_not_taken_for_the_whole(graphs: Path) -> None:
    with pytest.raises(ValueError, match=rf"got one graph of 3, wanted their folder, {graphs}"):
        read_graphs(graphs / "picture.onnx")


def test_values_that_are_no_numbers_are_counted(graphs: Path) -> None:
    found, cells = read_graphs(graphs), -(-RES // MASK_STRIDE)
    logits = np.full((1, cells, cells), -1, np.float32)
    logits[0, 0, :3] = np.nan, np.inf, -np.inf
    assert found.decide({"mask_logits": logits}, "s").non_finite == 3
    with pytest.raises(ValueError, match=r"s: got mask_logits as float32 \[25, 25\], wanted float32 \[1, 25, 25\]"):
        found.decide({"mask_logits": logits[0]}, "s")


def test_a_presence_that_the_graphs_say_is_handed_on(graphs: Path) -> None:
    found = read_graphs(graphs)
    assert isinstance(found, AppGraphs)
    logits = np.zeros(found._mask_logits.shape, np.float32)
    assert found.decide({"mask_logits": logits, "presence": np.full((1, 1), 0.25, np.float32)}, "s").presence == 0.25


@settings(max_examples=15, deadline=None)
@given(st.integers(64, CANVAS), st.integers(0, 100))
def test_the_square_is_the_networks_resize_rounded(res: int, seed: int) -> None:
    canvas = random_pictures(1, CANVAS, seed).round()
    wanted = resize_canvas(canvas, res)[0].permute(1, 2, 0).numpy()
    got = canvas_to_square(canvas[0].numpy(), res)
    assert (got.dtype, got.shape) == (np.uint8, (res, res, 3))
    assert np.abs(got - wanted).max() <= 0.53  # pure noise: places that differ in the 6th digit


@settings(max_examples=15, deadline=None)
@given(st.integers(64, CANVAS), st.sampled_from(["crop", "stretch"]), st.integers(0, 100))
def test_mask_logits_reach_the_canvas_as_in_torch(res: int, rule: Any, seed: int) -> None:
    cells = -(-res // MASK_STRIDE)
    logits = torch.randn(1, cells, cells, generator=torch.Generator().manual_seed(seed))
    wanted = masks_to_canvas(logits, res, CANVAS, rule)[0].numpy()
    np.testing.assert_allclose(logits_to_canvas(logits[0].numpy(), res, rule), wanted, atol=1e-4)
    assert MASK_STRIDE == model.MASK_STRIDE


def profile(simulated_ms: float, estimated_ms: float | None, peak_mb: float) -> LatencyProfile:
    row = {"device": "d", "latency_ms_estimated": estimated_ms, "latency_ms_simulated": simulated_ms, "models": 3}
    return LatencyProfile(
        device="d", placed_on_npu=True, note="", latency_ms_simulated=simulated_ms, latency_ms_estimated=estimated_ms,
        peak_memory_mb=peak_mb, simulated_parts_ms={"backbone": simulated_ms}, estimates=(row,),
        layers=[Layer("a", "NPU", ms=simulated_ms)],
    )  # fmt: skip


def test_costs_add_up_and_a_further_phrase_needs_no_picture() -> None:
    parts = {"picture": profile(5.0, 4.0, 30), "phrase": profile(0.5, 1.0, 10), "decoder": profile(1.0, None, 20)}
    whole = profile_of_all(parts)
    assert (whole.latency_ms_simulated, whole.latency_ms_estimated, whole.peak_memory_mb) == (6.5, None, 30)
    assert whole.further_phrase is not None
    assert whole.further_phrase["latency_ms_simulated"] == 1.5
    assert whole.graphs is not None
    assert {name: each["latency_ms_simulated"] for name, each in whole.graphs.items()} == {
        "picture": 5.0, "phrase": 0.5, "decoder": 1.0,
    }  # fmt: skip
    assert (whole.simulated_parts_ms, whole.estimates[0]["latency_ms_simulated"]) == ({"backbone": 6.5}, 6.5)
    assert [layer.name for layer in whole.layers] == ["picture: a", "decoder: a", "phrase: a"]
    assert profile_of_all({"model": parts["picture"]}) is parts["picture"]


def test_every_networks_parts_make_its_whole(network: XDecoder) -> None:
    graph, (sample,) = deployed(network, 64), asked_of(1, 1)
    image, text = torch.from_numpy(sample.image_input), torch.from_numpy(sample.text_input)
    with torch.inference_mode():
        features = graph.encode_picture(resize_canvas(image, 64))
        logits, _ = graph.decode(features, graph.encode_phrase(text[0]))
        assert torch.equal(graph(image, text), graph.to_canvas(logits))
    assert network.config.mask_decoder.mask_attention == PAPER_RULE
