import pytest
from graphs import split_picture, write_bright_graph

from promptseg.hubs.host import masks_on_host, measure_on_host


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
