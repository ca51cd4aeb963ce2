import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import split_picture, write_bright_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image

from promptseg.datasets.archives import PictureArchives, write_archive
from promptseg.datasets.preprocess import picture_to_canvas
from promptseg.datasets.records import PHRASE_KINDS, PhraseKind, Rle, Sample, write_records
from promptseg.hubs.host import GraphInputs, HostSession, masks_on_host, measure_on_host, rounded_to_half


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx")


def test_masks_come_in_order_and_follow_picture_and_phrase(graph):
    samples = [split_picture("a", 30, 120, first_id=5), split_picture("b", 30, 120, first_id=30000)]
    first, second = masks_on_host(graph, samples)
    assert (first.sample_id, second.sample_id) == ("a", "b")
    assert first.pred_mask[512:].all()
    assert not first.pred_mask[:512].any()
    assert not second.pred_mask.any()


def test_inputs_are_drawn_one_at_a_time(graph):
    drawn = []

    def samples():
        for name in ("a", "b", "c"):
            drawn.append(name)
            yield split_picture(name, 0, 255, first_id=5)

    masks = masks_on_host(graph, samples())
    next(masks)
    assert drawn == ["a"]


def test_the_median_lies_between_the_fastest_and_the_slowest(graph):
    host = measure_on_host(graph, runs=3)
    assert 0 < host.latency_ms_cpu_low <= host.latency_ms_cpu <= host.latency_ms_cpu_high
    assert host.runs == 3
    assert host.threads >= 1
    assert host.cpu


PHRASES = 3  # of each picture
SPLITS = ("train", "val", "val", "test", "val")  # of each picture


def picture(index: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(index).integers(0, 256, (20 + index, 30, 3), np.uint8)


def png(index: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(index)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures with three phrases each; row r of tokens holds r everywhere."""
    return write_world(tmp_path)


def write_world(folder: Path, kinds: Sequence[PhraseKind] = ("short",) * PHRASES) -> Path:
    write_archive(folder / "images" / "a.zip", ((f"{index}.png", png(index)) for index in range(len(SPLITS))))
    samples = []
    for index, split in enumerate(SPLITS):
        for phrase in range(PHRASES):
            mask = Rle.from_mask(np.ones((20 + index, 30), bool))
            image = f"a.zip/{index}.png"
            samples.append(Sample(f"{index}-{phrase}", split, image, 20 + index, 30, "a", kinds[phrase], mask))
    write_records(folder / "samples.jsonl", samples)
    rows = np.arange(len(samples), dtype=np.int32)
    np.save(folder / "tokens.npy", np.broadcast_to(rows[:, None, None], (len(samples), 2, 77)))
    return folder


def inputs(folder: Path, split: Any = "val", limit: int | None = None) -> GraphInputs:
    return GraphInputs(folder / "images", folder / "samples.jsonl", folder / "tokens.npy", split, limit)


def test_a_split_comes_whole_in_order_and_as_often_as_asked(folder: Path) -> None:
    made = inputs(folder)
    wanted = [f"{index}-{phrase}" for index in (1, 2, 4) for phrase in range(PHRASES)]
    assert len(made) == len(wanted)
    for _ in range(2):
        assert [each.sample_id for each in made] == wanted


def test_each_sample_has_its_own_picture_and_phrase(folder: Path) -> None:
    for each in inputs(folder):
        index, phrase = map(int, each.sample_id.split("-"))
        assert np.array_equal(each.image_input[0], picture_to_canvas(picture(index)))
        assert (each.text_input == index * PHRASES + phrase).all()


def test_phrases_of_a_picture_share_its_decoding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()
    original = PictureArchives.read

    def counted(self: PictureArchives, image: str) -> io.BytesIO:
        read[image] += 1
        return original(self, image)

    monkeypatch.setattr(PictureArchives, "read", counted)
    assert sum(1 for _ in inputs(folder)) == 3 * PHRASES
    assert read == {"a.zip/1.png": 1, "a.zip/2.png": 1, "a.zip/4.png": 1}


def test_nothing_is_decoded_before_it_is_asked_for(folder: Path) -> None:
    (folder / "images" / "a.zip").unlink()
    made = inputs(folder)
    with pytest.raises(ValueError, match="no such archive of pictures"):
        next(iter(made))


@pytest.mark.parametrize(("limit", "wanted"), [(1, ["1-0"]), (3, ["1-0", "2-0", "4-0"]), (9, None), (1000, None)])
def test_fewer_are_spread_over_the_whole_split(folder: Path, limit: int, wanted: list[str] | None) -> None:
    everything = [each.sample_id for each in inputs(folder)]
    assert [each.sample_id for each in inputs(folder, limit=limit)] == (wanted or everything)


@pytest.fixture(scope="module")
def long_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """257 samples without pictures."""
    folder = tmp_path_factory.mktemp("long")
    mask = Rle.from_mask(np.ones((1, 1), bool))
    write_records(
        folder / "samples.jsonl", (Sample(str(row), "val", "a.zip/0", 1, 1, "a", "short", mask) for row in range(257))
    )
    np.save(folder / "tokens.npy", np.zeros((257, 2, 77), np.int32))
    return folder


@settings(max_examples=20, deadline=None)
@given(limit=st.integers(1, 300))
def test_the_spread_is_even(long_world: Path, limit: int) -> None:
    rows = inputs(long_world, limit=limit)._rows
    steps = np.diff([*rows, 257])
    assert len(rows) == min(limit, 257)
    assert rows[0] == 0
    assert steps.min() >= 1
    assert steps.max() - steps.min() <= 1


def test_no_sample_asked_for_is_none(folder: Path) -> None:
    """`hub.emulator_samples: 0`."""
    assert list(inputs(folder, limit=0)) == []


def test_a_split_without_samples_is_refused(folder: Path) -> None:
    lines = (folder / "samples.jsonl").read_text().splitlines()
    (folder / "samples.jsonl").write_text("".join(line.replace('"test"', '"val"') + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"has no sample of the split 'test'; choose another one for hub\.split"):
        inputs(folder, "test")


def test_tokens_of_other_samples_are_refused(folder: Path) -> None:
    np.save(folder / "tokens.npy", np.zeros((7, 2, 77), np.int32))
    with pytest.raises(ValueError, match=r"tokens\.npy: got 7 rows for 15 samples; run `dvc repro tokenize`"):
        inputs(folder)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array", b"PK\x03\x04"])
def test_tokens_that_are_no_array_are_refused(folder: Path, content: bytes) -> None:
    (folder / "tokens.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokens\.npy: got no array of tokens .*; run `dvc repro tokenize`"):
        inputs(folder)


def test_tokens_of_another_shape_are_refused(folder: Path) -> None:
    np.save(folder / "tokens.npy", np.zeros((15, 2, 76), np.int32))
    with pytest.raises(ValueError, match=r"got text_input as int32 \[2, 1, 76\], wanted int32 \[2, 1, 77\]"):
        next(iter(inputs(folder)))


@pytest.mark.parametrize(("limit", "pictures"), [(1, 1), (3, 3), (8, 3), (9, 3), (1000, 3)])
def test_few_are_spread_over_the_kinds_of_phrase_and_over_the_pictures(
    tmp_path: Path, limit: int, pictures: int
) -> None:
    folder = write_world(tmp_path, kinds=PHRASE_KINDS)
    few = inputs(folder).few(limit)
    chosen = few.samples
    assert [each.sample_id for each in few] == [sample.sample_id for sample in chosen]
    assert len(chosen) == min(limit, 9)
    counts = Counter(sample.phrase_kind for sample in chosen)
    assert max(counts.values()) - min(counts[kind] for kind in PHRASE_KINDS) <= 1
    assert len({sample.image for sample in chosen}) == pictures
    assert [sample.sample_id for sample in chosen] == sorted({sample.sample_id for sample in chosen})


def test_few_of_a_rare_kind_are_made_up_for_by_others(tmp_path: Path) -> None:
    folder = write_world(tmp_path, kinds=("keyword", "keyword", "sentence"))
    assert Counter(sample.phrase_kind for sample in inputs(folder).few(8).samples) == {"keyword": 5, "sentence": 3}


def half_session(nodes: list[onnx.NodeProto], constants: dict[str, float]) -> ort.InferenceSession:
    """A graph from x, float32 [2], to y, rounded to float16."""
    value = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        nodes,
        "test",
        [value("x", onnx.TensorProto.FLOAT, [2])],
        [value("y", onnx.TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.array(number, np.float32), name) for name, number in constants.items()],
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return ort.InferenceSession(rounded_to_half(model).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("there", "back", "by"), [("Mul", "Div", 1000.0), ("Add", "Sub", 60000.0)])
def test_what_exceeds_float16_between_two_operations_is_infinite(there: str, back: str, by: float) -> None:
    """ONNX Runtime would keep it in float32 between operations on float16 tensors, and hide that it overflows."""
    node = onnx.helper.make_node
    nodes = [
        node(there, ["x", "by"], ["once"]),
        node(there, ["once", "by"], ["twice"]),
        node(back, ["twice", "by"], ["again"]),
        node(back, ["again", "by"], ["y"]),
    ]
    (y,) = half_session(nodes, {"by": by}).run(None, {"x": np.array([3, 4], np.float32)})
    assert np.isinf(y).all()


def test_results_and_constants_are_rounded_to_float16_and_moves_are_not_touched() -> None:
    node = onnx.helper.make_node
    nodes = [node("Add", ["x", "third"], ["sum"]), node("Identity", ["sum"], ["y"])]
    (y,) = half_session(nodes, {"third": 1 / 3}).run(None, {"x": np.array([1, 2048], np.float32)})
    third = np.float32(np.float16(1 / 3))
    assert y.tolist() == [float(np.float16(1 + third)), 2048.0]
    assert y[0] != np.float32(1 + 1 / 3)


def test_what_is_a_float16_value_already_is_not_rounded_again() -> None:
    """Rounding is half of the host's time: the results of choices, and of float16 tensors, need none."""
    node, value, kinds = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    nodes = [
        node("Cast", ["h"], ["wide"], to=kinds.FLOAT),
        node("Add", ["wide", "x"], ["sum"]),
        node("Relu", ["sum"], ["most"]),
        node("Cast", ["i"], ["large"], to=kinds.FLOAT),  # an integer may be beyond float16
        node("Max", ["most", "large"], ["y"]),
    ]
    inputs = [value("h", kinds.FLOAT16, [2]), value("x", kinds.FLOAT, [2]), value("i", kinds.INT32, [2])]
    made = onnx.helper.make_graph(nodes, "test", inputs, [value("y", kinds.FLOAT, [2])])
    rounded = rounded_to_half(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)]))
    assert [each.output[0] for each in rounded.graph.node if each.output[0].endswith("/half")] == [
        "sum/half",
        "large/half",
    ]


def test_a_graph_that_hands_out_no_number_is_no_empty_mask(tmp_path: Path) -> None:
    content = onnx.load(write_bright_graph(tmp_path / "model.onnx"))
    steepness = next(constant for constant in content.graph.initializer if constant.name == "steepness")
    steepness.CopyFrom(numpy_helper.from_array(np.array(np.nan, np.float32), "steepness"))
    onnx.save(content, tmp_path / "model.onnx")
    session = HostSession(tmp_path / "model.onnx")
    sample = split_picture("a", 30, 120, first_id=5)
    assert session.decide(sample).non_finite == 1024 * 1024
    with pytest.raises(FloatingPointError, match="a: got 1048576 pixels that are NaN or infinite"):
        session.run(sample)
