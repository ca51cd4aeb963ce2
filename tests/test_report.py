import base64
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser

from PIL import Image
from report_samples import HOSTILE, box, noise, png

from promptseg.datasets.preprocess import mask_to_canvas
from promptseg.datasets.records import Picture, Rle, Sample
from promptseg.report.curves import draw_curves
from promptseg.report.page import Chart, Report, flatten, render_report, write_report
from promptseg.report.tiles import make_tiles
from promptseg.scoring import score

LATENCY = {
    "latency_ms_estimated": 12.34,
    "latency_ms_estimated_low": 9.5,
    "latency_ms_estimated_high": 17,
    "ops_without_cost": 0,
    "spill_mb": None,
    "host": {"latency_ms_cpu": 123.4},
}


def world(count=4):
    """`count` pictures, one phrase each, predicted ever further off the truth; and how to read the pictures."""
    truth = box(90, 120, 20, 20, 30)
    samples, pictures, predictions = [], [], {}
    for index in range(count):
        image = f"a/{index}.png"
        pictures.append(Picture(image, "val", 90, 120, (Rle.from_mask(truth),)))
        samples.append(Sample(str(index), "val", image, 90, 120, HOSTILE, "short", Rle.from_mask(truth)))
        predictions[str(index)] = Rle.from_mask(mask_to_canvas(box(90, 120, 20, 20 + 8 * index, 30)))
    scores = score(samples, pictures, predictions, seed=0)
    return scores, make_tiles(scores.rows, samples, predictions, lambda _: png(noise()), each=1)


def report(**changes):
    scores, tiles = world()
    curve = Chart("training", "Training", draw_curves([{"step": 1, "loss": 2.0}], "step", [["loss"]]))
    fidelity = {"runner": "HTP emulator", "samples": 2, "mask_agreement": 0.97}
    origin = {"params": {"res": 512}, "note": HOSTILE}
    made = Report("shapes, nano", scores, LATENCY, fidelity, [curve], tiles, origin)
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


def test_the_page_repeats_exactly(tmp_path):
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, report())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_page_does_without_curve_pictures_and_latency():
    page = render_report(report(latency={}, tiles=[], charts=[], fidelity={}, provenance={}))
    assert Tags(page).unclosed == []
    assert "No pictures." in page
    assert 'id="training"' not in page
    assert "<script" not in page


def test_provenance_is_flat():
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1, 2]}) == [("a.b.c", "1"), ("a.d", "null"), ("e", "[1, 2]")]
