"""From scores to the page and the sheet."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptseg.datasets.preprocess import mask_to_canvas
from promptseg.datasets.records import Picture, Rle, Sample
from promptseg.report.build import CURVE_PANELS, Shown, build_report
from promptseg.report.page import render_report
from promptseg.scoring import score
from promptseg.training.run import CURVE_COLUMNS

LATENCY = {"latency_ms_estimated": 3.25, "host": {"latency_ms_cpu": 77.0}}
ORIGIN = {"res": 320, "checkpoint": {"model": "nano"}}
HEADER = ",".join(CURVE_COLUMNS) + "\n"


def read(_: str) -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(stream, "PNG")
    return io.BytesIO(stream.getvalue())


def build(curve: Path, each: int = 1, count: int = 5) -> tuple[str, bytes]:
    """`count` pictures whose predicted boxes lie ever further off the truth."""
    truth = np.zeros((60, 80), bool)
    truth[10:40, 10:40] = True
    rle = Rle.from_mask(truth)
    samples = [Sample(f"s{i}", "val", f"a.zip/{i}", 60, 80, f"phrase {i}", "short", rle) for i in range(count)]
    pictures = [Picture(sample.image, "val", 60, 80, (rle,)) for sample in samples]
    predictions = {f"s{i}": Rle.from_mask(mask_to_canvas(np.roll(truth, 5 * i, axis=1))) for i in range(count)}
    scores = score(samples, pictures, predictions, seed=0)
    export = {"ops": "Add 5, Conv 3"}
    records = {"latency": LATENCY, "export": export, "fidelity": {}, "provenance": ORIGIN}
    report, sheet = build_report(scores, Shown(samples, predictions, read), records, curve, each, seed=0)
    return render_report(report), sheet


@pytest.fixture
def curve(tmp_path: Path) -> Path:
    path = tmp_path / "train.csv"
    path.write_text(HEADER + "1,3.0,1.0,1.0,1.0,\n2,2.0,0.5,0.5,1.0,0.4\n")
    return path


def test_the_panels_draw_columns_that_training_writes() -> None:
    assert {column for panel in CURVE_PANELS for column in panel} <= set(CURVE_COLUMNS)


def test_page_and_sheet_show_what_they_were_given(curve: Path) -> None:
    page, sheet = build(curve)
    for wanted in ("phrase 0", "3.25 ms", "checkpoint.model", "nano", 'id="training"', 'id="operations"'):
        assert wanted in page
    image = Image.open(io.BytesIO(sheet))
    image.load()
    assert image.format == "JPEG"


def test_more_pictures_make_a_larger_sheet(curve: Path) -> None:
    areas = [np.prod(Image.open(io.BytesIO(build(curve, each)[1])).size) for each in (1, 2)]
    assert areas[0] < areas[1]


@pytest.mark.parametrize("rows", ["", "0,,,,,0.5\n"])
def test_without_training_there_is_no_curve(curve: Path, rows: str) -> None:
    """`finetune.steps: 0` leaves at most the start's validation."""
    curve.write_text(HEADER + rows)
    page, _ = build(curve)
    assert 'id="training"' not in page
    assert "phrase 0" in page


def test_the_same_run_gives_the_same_bytes(curve: Path) -> None:
    first: Any = build(curve)
    assert first == build(curve)
