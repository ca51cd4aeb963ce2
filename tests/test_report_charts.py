"""Charts as SVG: training curves, and bars of groups, layers, parts and operations."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from promptseg.report.charts import (
    Bar,
    device_bars,
    draw_bars,
    draw_curves,
    group_bars,
    layer_bars,
    operation_bars,
    part_bars,
    read_curve,
)
from promptseg.scoring import Scores


def test_curves_skip_gaps_and_repeat_exactly(tmp_path):
    (tmp_path / "loss.tsv").write_text("step\tloss\n1\t2.5\n2\t2.0\n3\tnan\n4\t1.5\n")
    (tmp_path / "val_miou.tsv").write_text("step\tval_miou\n2\t0.25\n4\t0.5\n")
    rows = read_curve(tmp_path)
    assert rows.iloc[0, :2].to_dict() == {"step": 1.0, "loss": 2.5}
    assert np.isnan(rows["val_miou"][0])
    drawn = draw_curves(rows, "step", [["loss"], ["val_miou"]])
    texts = [element.text for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("}text")]
    assert {"step", "loss", "val_miou"} <= set(texts)
    assert "<dc:date>" not in drawn
    assert draw_curves(rows, "step", [["loss"], ["val_miou"]]) == drawn
    assert draw_curves(rows, "step", [["loss"]]) != drawn


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"\['loss', 'step'\], wanted the column 'val_miou'"):
        draw_curves(pd.DataFrame([{"step": 1, "loss": 2.0}]), "step", [["loss", "val_miou"]])


def test_a_curve_without_rows_is_refused():
    with pytest.raises(ValueError, match="without rows"):
        draw_curves(pd.DataFrame(), "step", [["loss"]])


@pytest.mark.parametrize("content", [None, "", "loss\n1\n", "step\tloss\n1\t2\n2\toops\n"])
def test_a_curve_that_is_missing_or_damaged_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "loss.tsv").write_text(content)
    with pytest.raises(ValueError, match=r"got no training curve .*; run `dvc repro finetune`"):
        read_curve(tmp_path)


def test_bars_say_their_values_and_repeat_exactly():
    bars = [Bar("red (3)", 0.51234, 0.4, 0.6, 0.2), Bar("all", 242)]
    drawn = draw_bars(bars, "mIoU", "best baseline")
    texts = [element.text for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("}text")]
    assert {"red (3)", "all", "0.512", "242", "mIoU; grey: best baseline"} <= set(texts)
    assert draw_bars(bars, "mIoU", "best baseline") == drawn
    with pytest.raises(ValueError, match="no bars"):
        draw_bars([], "ms")


def test_a_groups_interval_is_that_of_its_own_rows() -> None:
    rows = [{"iou": 0.9, "image": f"a/{n}", "phrase_kind": "keyword", "size": "small"} for n in range(9)]
    rows += [{"iou": 0.1 * (n % 3), "image": f"b/{n}", "phrase_kind": "short", "size": "large"} for n in range(9)]
    baselines = {"everything": 0.1, "largest_object": 0.3, "random_object": 0.2}
    groups = pd.DataFrame(
        [
            {"group": "all", "phrases": 18, "miou": 0.5, **baselines},
            {"group": "small", "phrases": 9, "miou": 0.9, **baselines},
            {"group": "medium", "phrases": 0},
            {"group": "short", "phrases": 9, "miou": 0.1, **baselines},
        ]
    ).set_index("group")
    bars = {bar.label: bar for bar in group_bars(Scores({}, groups, pd.DataFrame(rows)), seed=0)}
    assert list(bars) == ["all (18)", "small (9)", "short (9)"]
    assert bars["small (9)"].low == pytest.approx(0.9)
    assert bars["small (9)"].high == pytest.approx(0.9)
    assert bars["short (9)"].high is not None
    assert 0 <= (bars["short (9)"].low or 0) < bars["short (9)"].high <= 0.2
    assert bars["all (18)"].mark == 0.3


@pytest.mark.parametrize(
    ("rows", "unit", "values"),
    [
        ("conv (1),NPU,1.25,\nup,NPU,0.5,\n", "ms, NPU", {"conv (1)": 1.25, "up": 0.5}),
        ("conv,NPU,1.25,\nup,CPU,0.5,\n", "ms", {"conv (NPU)": 1.25, "up (CPU)": 0.5}),
        ("softmax,CPU,,12345\n", "cycles, CPU", {"softmax": 12345}),
        (
            f"network.{'stages.' * 9}blocks.0/Conv_12,NPU,1,\n",
            "ms, NPU",
            {"…s.stages.blocks.0/Conv_12": 1},
        ),
        ("", "cycles", {}),
    ],
)
def test_the_slowest_layers_are_bars_in_time_or_else_in_cycles(
    tmp_path: Path, rows: str, unit: str, values: dict[str, float]
) -> None:
    (tmp_path / "layers.csv").write_text("name,unit,ms,cycles\n" + rows)
    bars, got = layer_bars(tmp_path / "layers.csv")
    assert ({bar.label: bar.value for bar in bars}, got) == (values, unit)


def test_parts_of_the_network_come_with_the_slowest_first() -> None:
    bars = part_bars({"simulated_parts_ms": {"picture": 0.5, "backbone": 2.0, "mask": 1.0}})
    assert [(bar.label, bar.value) for bar in bars] == [("backbone", 2.0), ("mask", 1.0), ("picture", 0.5)]
    assert part_bars({"simulated_parts_ms": None}) == []


def test_devices_are_drawn_with_their_bounds_the_quickest_first(tmp_path):
    columns = "device,precision,latency_ms_estimated,latency_ms_estimated_low,latency_ms_estimated_high"
    (tmp_path / "devices.csv").write_text(f"{columns}\nSlow,fp16,5,4,7\nQuick,fp16,3,2,4.5\nNo line,fp16,,,\n")
    assert device_bars(tmp_path / "devices.csv") == [Bar("Quick", 3, 2, 4.5), Bar("Slow", 5, 4, 7)]
    (tmp_path / "devices.csv").write_text(f"{columns}\n")  # of a run on real devices: nothing is estimated
    assert device_bars(tmp_path / "devices.csv") == []


def test_rare_operations_are_added_up(tmp_path: Path) -> None:
    counts = [(f"Op{number}", 100 - number) for number in range(17)]
    pd.DataFrame(counts, columns=["op", "count"]).to_csv(tmp_path / "ops.csv", index=False)
    bars = operation_bars(tmp_path / "ops.csv")
    assert (bars[0].label, bars[0].value) == ("Op0", 100)
    assert (bars[-1].label, bars[-1].value) == ("3 other kinds", 86 + 85 + 84)
