from xml.etree import ElementTree

import pytest

from promptseg.report.curves import Bar, draw_bars, draw_curves, read_curve


def test_curves_skip_gaps_and_repeat_exactly(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("step,loss,val_miou\n1,2.5,\n2,2.0,0.25\n3,nan,\n4,1.5,0.5\n")
    rows = read_curve(path)
    assert rows[0] == {"step": 1.0, "loss": 2.5, "val_miou": None}
    drawn = draw_curves(rows, "step", [["loss"], ["val_miou"]])
    texts = [element.text for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("}text")]
    assert {"step", "loss", "val_miou"} <= set(texts)
    assert "<dc:date>" not in drawn
    assert draw_curves(rows, "step", [["loss"], ["val_miou"]]) == drawn
    assert draw_curves(rows, "step", [["loss"]]) != drawn


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"\['loss', 'step'\], wanted the column 'val_miou'"):
        draw_curves([{"step": 1, "loss": 2.0}], "step", [["loss", "val_miou"]])


def test_a_curve_without_rows_is_refused():
    with pytest.raises(ValueError, match="without rows"):
        draw_curves([], "step", [["loss"]])


def test_a_cell_that_is_no_number_is_named(tmp_path):
    (tmp_path / "curve.csv").write_text("step,loss\n1,2\n2,oops\n")
    with pytest.raises(ValueError, match=r"curve.csv:3, loss: got 'oops'"):
        read_curve(tmp_path / "curve.csv")


def test_bars_say_their_values_and_repeat_exactly():
    bars = [Bar("red (3)", 0.51234, 0.4, 0.6, 0.2), Bar("all", 242)]
    drawn = draw_bars(bars, "mIoU", "best baseline")
    texts = [element.text for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("}text")]
    assert {"red (3)", "all", "0.512", "242", "mIoU; grey: best baseline"} <= set(texts)
    assert draw_bars(bars, "mIoU", "best baseline") == drawn
    with pytest.raises(ValueError, match="no bars"):
        draw_bars([], "ms")
