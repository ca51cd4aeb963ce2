"""A sweep as a table and as one picture."""

import csv
import io
from xml.etree import ElementTree

import pytest

from promptseg.experiments.sweep import draw_sweep, sweep_csv
from tests.test_points import point

POINTS = [
    point("b", 6.8, 0.50, res=320, latency_ms_low=6.0, latency_ms_high=8.0, latency_ms_cpu=25.0),
    point("a", 4.512345678, 0.46, res=192),
    point("c", 12.8, 0.47, res=512, latency_ms_cpu=52.0),
]


def test_the_table_is_sorted_by_res_and_holds_every_field() -> None:
    rows = list(csv.DictReader(io.StringIO(sweep_csv(POINTS))))
    assert [(row["res"], row["name"]) for row in rows] == [("192", "a"), ("320", "b"), ("512", "c")]
    assert (rows[0]["latency_ms"], rows[0]["latency_ms_cpu"], rows[1]["latency_ms_high"]) == ("4.51235", "", "8.0")


def test_the_picture_names_every_size_and_repeats_exactly() -> None:
    drawn = draw_sweep(POINTS)
    texts = {element.text for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("}text")}
    assert {"192", "320", "512", "mIoU", "ms", "NPU, estimated", "this host's CPU"} <= texts
    assert draw_sweep(POINTS) == drawn


@pytest.mark.parametrize(("source", "label"), [("device", "NPU, measured"), ("cpu", "this host's CPU")])
def test_the_picture_says_whose_clock_it_was(source: str, label: str) -> None:
    points = [point(name, 4.0 + res, 0.5, res=res, latency_source=source) for name, res in (("a", 192), ("b", 320))]
    texts = [element.text for element in ElementTree.fromstring(draw_sweep(points)).iter()]
    assert texts.count(label) == 1
    assert f"ms ({label})" in texts
    assert "NPU, estimated" not in texts


def test_one_point_is_no_sweep() -> None:
    with pytest.raises(ValueError, match="got 1 experiments to draw, wanted at least two"):
        draw_sweep(POINTS[:1])
