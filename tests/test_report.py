"""The report: its figures, the page, and what of a run it shows."""

import base64
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_samples import HOSTILE, box, noise, png

from promptseg.datasets.preprocess import mask_to_canvas
from promptseg.datasets.records import Picture, Rle, Sample
from promptseg.report.charts import draw_curves
from promptseg.report.gallery import Shown, make_tiles
from promptseg.report.page import (
    CURVE_PANELS,
    TOOLS,
    Chart,
    Report,
    build_report,
    deployment_figures,
    flatten,
    headline,
    provenance,
    quality_figures,
    render_report,
)
from promptseg.scoring import GRAPH, score
from promptseg.training.curve import FIGURES

LATENCY = {
    "latency_ms_estimated": 12.34,
    "latency_ms_estimated_low": 9.5,
    "latency_ms_estimated_high": 17,
    "ops_without_cost": 0,
    "spill_mb": None,
    "host": {"latency_ms_cpu": 123.4, "latency_ms_cpu_low": 120.0, "latency_ms_cpu_high": 150.6, "cpu": "A & B"},
}
SUMMARY = {
    "miou": 0.6123,
    "miou_ci_low": 0.58,
    "miou_ci_high": 0.64,
    "miou_canvas": 0.6,
    "ciou": 0.7,
    "p_at_50": 0.75,
    "miou_over_best_baseline": 2.94,
    "phrases": 4,
    "pictures": 3,
    "phrases_without_prediction": 0,
}
COMPARED = {
    "runner": "HTP emulator",
    "reference": "ONNX Runtime, CPU, fp16",
    "samples": 8,
    "empty_pairs": 0,
    "iou_mean": 0.99865,
    "iou_mean_low": 0.99729,
    "iou_mean_high": 1.0,
    "iou_worst": 0.943,
    "worst_sample": "val-7",
    "miou_change": -0.00115,
    "miou_change_low": -0.0023,
    "miou_change_high": 0.0,
}
FIDELITY = {
    "binary": COMPARED,
    "float32": {**COMPARED, "runner": "ONNX Runtime, CPU, fp16", "reference": "ONNX Runtime, CPU, fp32"},
    "scored_by": "ONNX Runtime, CPU, fp16",
    "non_finite": 0,
}
RECORDS = {
    "latency": LATENCY,
    "fidelity": FIDELITY,
    "provenance": {"res": 320, "checkpoint": {"model": "nano"}},
}


def world(count=4):
    """`count` pictures, one phrase each, predicted ever further off the truth: (scores, what can be looked at)."""
    truth = box(90, 120, 20, 20, 30)
    samples, pictures, predictions = [], [], {}
    for index in range(count):
        image = f"a/{index}.png"
        pictures.append(Picture(image, "val", 90, 120, (Rle.from_mask(truth),)))
        samples.append(Sample(str(index), "val", image, 90, 120, HOSTILE, "short", Rle.from_mask(truth)))
        predictions[str(index)] = Rle.from_mask(mask_to_canvas(box(90, 120, 20, 20 + 8 * index, 30)))
    scores = score(samples, pictures, predictions, seed=0)
    return scores, Shown(samples, predictions, lambda _: png(noise()))


def report(**changes):
    scores, shown = world()
    curve = Chart("training", "Training", draw_curves(pd.DataFrame([{"step": 1, "loss": 2.0}]), "step", [["loss"]]))
    origin = {"params": {"res": 512}, "note": HOSTILE}
    tiles = make_tiles(scores.rows, shown, each=1)
    made = Report("shapes, nano", scores, LATENCY, FIDELITY, [curve], tiles, origin)
    return dataclasses.replace(made, **changes)


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.opened, self.unclosed, self.addresses, self.text = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]
        if tag not in ("meta", "img", "br", "input"):
            self.unclosed.append(tag)

    def handle_endtag(self, tag):
        assert self.unclosed.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_well_formed_and_loads_nothing():
    page = render_report(report())
    tags = Tags(page)
    assert tags.unclosed == []
    assert tags.addresses
    assert all(address.startswith("data:image/") for address in tags.addresses)
    assert not re.search(r"https?:|@import|url\(", page)


def test_the_one_script_is_allowed_by_its_hash_and_no_other():
    page = render_report(report())
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_phrases_and_provenance_are_escaped():
    tags = Tags(render_report(report()))
    assert tags.opened.count("script") == 1
    assert tags.text.count(HOSTILE) == 4  # three captions, one line of provenance


def test_the_page_shows_the_scores_and_the_pictures_it_was_given():
    made = report()
    page = render_report(made)
    assert f"{made.scores.summary['miou']:.3f}" in page
    assert "12.3 ms" in page
    assert "9.50 to 17 ms; an estimate for the NPU from the compiler" in page
    first = re.search(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    assert Image.open(io.BytesIO(base64.b64decode(first[1]))).size == (480, 360)


def test_groups_without_phrases_are_not_listed():
    page = render_report(report())
    assert '<th scope="row">short <span class="note">4</span></th>' in page
    assert '<th scope="row">sentence' not in page
    assert ">nan<" not in page


def test_the_page_does_without_curve_pictures_and_latency():
    page = render_report(report(latency={}, tiles=[], charts=[], fidelity={}, provenance={}))
    assert Tags(page).unclosed == []
    assert "No pictures." in page
    assert 'id="training"' not in page
    assert "<script" not in page


def test_provenance_is_flat():
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1, 2]}) == [("a.b.c", "1"), ("a.d", "null"), ("e", "[1, 2]")]


def build(curve, each=1, count=5):
    """Return the page as text and the sheet, as the stage makes them."""
    scores, shown = world(count)
    ops = curve.with_name("ops.csv")
    ops.write_text("op,count\nAdd,5\nConv,3\n")
    layers = curve.with_name("layers.csv")
    layers.write_text("name,unit,ms,cycles\nconv_1,NPU,1.25,\n")
    devices = curve.with_name("devices.csv")
    columns = ("device", "latency_ms_estimated", "latency_ms_estimated_low", "latency_ms_estimated_high")
    devices.write_text("\n".join((",".join(columns), "Slow,5,4,7", "Quick,3,2,4.5", "No line,,,")))
    tables = {"curve": curve, "ops": ops, "layers": layers, "devices": devices}
    made, sheet = build_report(scores, shown, RECORDS, tables, each, seed=0)
    return render_report(made), sheet


@pytest.fixture
def curve(tmp_path):
    for name in FIGURES:
        (tmp_path / f"{name}.tsv").write_text(f"step\t{name}\n1\t3.0\n2\t2.0\n")
    return tmp_path


def test_the_panels_draw_columns_that_training_writes():
    assert {column for panel in CURVE_PANELS for column in panel} <= set(FIGURES)


def test_page_and_sheet_show_what_they_were_given(curve, caplog):
    caplog.set_level("INFO", "promptseg")
    page, sheet = build(curve)
    assert "Binary's masks, IoU with the scored ones: 0.999; Latency on the NPU, estimated: 12.3 ms" in caplog.text
    for wanted in ("12.3 ms", "checkpoint.model", "nano", 'id="groups"'):
        assert wanted in page
    for chart in ("layers", "devices", "operations", "training"):  # a chart without a place on the page is lost
        assert f'id="{chart}"' in page
    image = Image.open(io.BytesIO(sheet))
    image.load()
    assert image.format == "JPEG"


def test_more_pictures_make_a_larger_sheet(curve):
    areas = [np.prod(Image.open(io.BytesIO(build(curve, each)[1])).size) for each in (1, 2)]
    assert areas[0] < areas[1]


@pytest.mark.parametrize("row", ["", "0\t0.5\n"])
def test_without_training_there_is_no_curve(curve, row):
    """`finetune.steps: 0` leaves at most the start's validation."""
    for name in FIGURES:
        (curve / f"{name}.tsv").write_text(f"step\t{name}\n" + (row if name == "val_miou" else ""))
    page, _ = build(curve)
    assert 'id="training"' not in page
    assert 'id="groups"' in page


def test_the_same_run_gives_the_same_bytes(curve):
    assert build(curve) == build(curve)


def test_provenance_shows_each_artefacts_own_record_and_leaves_out_what_is_not_known():
    graph = dict.fromkeys(GRAPH, "x")
    records = {
        "checkpoint": {"model": "nano", "step": 150},
        "export": {"res": 320, "nodes": 9},
        "compiled": {**graph, "job_id": None, "note": ""},
        "latency": {**graph, "latency_ms_estimated": 5.0},
        "fidelity": {**graph, "predictions_sha256": "y", "binary": {}},
    }
    told = provenance({"res": 320}, records, {"samples": "0" * 64})
    assert set(told["tools"]) == set(TOOLS)
    assert told["compiled"] == told["latency"] == graph
    assert told["fidelity"] == {**graph, "predictions_sha256": "y"}
    assert (told["checkpoint"]["step"], told["export"]) == (150, {"res": 320})
    assert (told["res"], told["sha256"]) == (320, {"samples": "0" * 64})


def test_the_headline_says_how_sure_it_is():
    first = headline(SUMMARY, LATENCY, {})[0]
    assert (first.label, first.value) == ("mIoU", "0.612")
    assert first.note == "95 % interval 0.580 to 0.640; 2.9 times the best trivial baseline"


def test_the_headline_says_whether_the_binary_gives_the_scored_masks():
    figure = headline(SUMMARY, LATENCY, FIDELITY)[1]
    assert (figure.label, figure.value) == ("Binary's masks, IoU with the scored ones", "0.999")
    assert figure.note == (
        "95 % interval 0.997 to 1.000; the worst 0.943 (val-7); mIoU changes by -0.001 (-0.002 to +0.000); "
        "8 samples, HTP emulator beside ONNX Runtime, CPU, fp16"
    )
    page = render_report(report())
    assert page.index("0.999") < page.index("By size and by kind")
    assert "ONNX Runtime, CPU, fp32" in page


@pytest.mark.parametrize(
    ("fidelity", "note"),
    [
        ({}, "no masks were compared"),
        ({"binary": None}, "no masks were compared"),
        ({"binary": {**COMPARED, "iou_mean": None, "iou_worst": None}}, "nothing but empty masks; mIoU changes by"),
    ],
)
def test_masks_that_nobody_compared_are_not_said_to_agree(fidelity, note):
    figure = headline(SUMMARY, LATENCY, fidelity)[1]
    assert figure.value == "not measured"
    assert figure.note.startswith(note)


def test_precision_is_named_by_its_limit():
    assert quality_figures(SUMMARY)[-1].label == "P@50"
    assert quality_figures(SUMMARY)[-1].note == "IoU of 0.50 or more"


def test_phrases_that_were_not_run_are_counted():
    summary = SUMMARY
    assert quality_figures(summary)[0].note == "on the original pictures: 4 phrases of 3 pictures"
    assert quality_figures({**summary, "phrases_without_prediction": 7})[0].note.endswith("; 7 more were not run")


@pytest.mark.parametrize(
    "latency", [{}, {"host": None, "latency_ms_estimated": None}, {"host": {"latency_ms_cpu": None}}]
)
def test_what_was_not_measured_says_so(latency):
    assert {figure.value for figure in deployment_figures(latency)} == {"not measured"}
    assert headline(SUMMARY, latency, {})[2].note == "no simulation of the NPU was made"


def test_a_simulation_that_no_line_leads_from_is_told():
    figure = headline(SUMMARY, {"latency_ms_simulated": 4.84, "latency_ms_estimated": None}, {})[2]
    assert figure.value == "not measured"
    assert figure.note == "4.84 ms simulated, and no line to estimate this precision by"


def test_zero_is_a_measurement():
    values = {figure.label: figure.value for figure in deployment_figures(LATENCY)}
    assert values["Operations without a cost"] == "0"
    assert values["Spill"] == "not measured"
    assert values["Host CPU latency"] == "123 ms"


def test_an_estimate_is_never_called_a_measurement():
    estimated = headline(SUMMARY, LATENCY, {})[2]
    assert estimated.label == "Latency on the NPU, estimated"
    assert estimated.note.startswith("9.50 to 17 ms; an estimate for the NPU")
    measured = headline(SUMMARY, {**LATENCY, "latency_ms_device": 20.0, "device": "a laptop"}, {})[2]
    assert (measured.label, measured.value, measured.note) == ("Latency on the NPU, measured", "20.0 ms", "a laptop")


def test_a_device_is_asked_what_it_knows_and_a_simulator_what_it_knows():
    spread = {"latency_ms_device_low": 19.0, "latency_ms_device_high": 30.5, "device_runs": 100}
    told = {"first_load_ms": 310.0, "peak_memory_mb": 160.0, "layers_npu": 40, "layers_gpu": 0, "layers_cpu": 2}
    measured = {"device": "a laptop", "latency_ms_device": 20.0, **spread, **told}
    figures = {figure.label: figure.value for figure in deployment_figures(measured)}
    assert (figures["First load"], figures["Warm load"], figures["Peak memory"]) == ("310 ms", "not measured", "160 MB")
    assert figures["Layers"] == "40 on the NPU; 2 on the CPU"
    assert "Spill" not in figures
    assert "Peak memory" not in {figure.label for figure in deployment_figures(LATENCY)}
    assert headline(SUMMARY, measured, {})[2].note == "19.0 to 30.5 ms over 100 runs; a laptop"


def test_latency_of_the_host_names_the_host():
    assert headline(SUMMARY, LATENCY, {})[3].note == "120 to 151 ms; measured on A & B"
