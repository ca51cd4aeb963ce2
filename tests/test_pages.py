"""The report and the demo in a real browser: nothing fails, nothing is asked for, everything fits a phone."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import Browser, opened_browser
from graphs import write_bright_graph
from PIL import Image
from test_report import FIDELITY, LATENCY
from test_report_gallery import tiles

from promptseg.demo.server import EXAMPLES, DemoServer
from promptseg.inference.model import load
from promptseg.report.charts import Bar, draw_bars, draw_curves
from promptseg.report.page import Chart, Report, render_report
from promptseg.scoring import Scores

pytestmark = pytest.mark.slow
PHONE, DESKTOP = 320, 1200


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report with everything on it."""
    names = ("miou", "miou_ci_low", "miou_ci_high", "miou_over_best_baseline", "miou_canvas", "ciou", "p_at_50")
    summary = {**dict.fromkeys(names, 0.5), "phrases": 27, "pictures": 9, "phrases_without_prediction": 0}
    baselines = {"everything": 0.1, "largest_object": 0.2, "random_object": 0.2}
    groups = pd.DataFrame([{"phrases": 27, "miou": 0.5, **baselines}], index=pd.Index(["all"], name="group"))
    losses = pd.DataFrame({"step": range(9), "loss": range(9)})
    charts = [
        Chart("groups", "mIoU", draw_bars([Bar("all (27)", 0.5, 0.4, 0.6, 0.2)], "mIoU", "best baseline")),
        Chart("operations", "Operations", draw_bars([Bar("LayerNormalization", 52), Bar("Add", 242)], "operations")),
        Chart("training", "Training", draw_curves(losses, "step", [["loss"]])),
    ]
    origin = {"res": 320, "sha256": {"samples": "0123456789abcdef" * 4}}
    page = render_report(
        Report("test", Scores(summary, groups, pd.DataFrame()), LATENCY, FIDELITY, charts, tiles(), origin)
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a demo whose model finds what is bright."""
    graph = write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx")
    with DemoServer(load(graph), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


def test_a_browser_that_complains_is_heard(browser: Browser, tmp_path: Path) -> None:
    """Otherwise the tests below could not fail."""
    page = tmp_path / "page.html"
    page.write_text("<script>undefined_name()</script><img src='http://127.0.0.1:9/none.png'>")
    browser.open(page.as_uri(), DESKTOP)
    assert any("undefined_name" in message for message in browser.complaints())
    assert "http://127.0.0.1:9/none.png" in browser.requests()


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_report_works_offline_and_fits(browser: Browser, report: str, width: int) -> None:
    browser.complaints()
    browser.requests()
    browser.open(report, width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [report]
    broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
    assert browser.run(broken) == 0
    assert browser.run("return document.images.length") > 36


def shown(browser: Browser) -> int:
    return int(browser.run("return [...document.querySelectorAll('.tile')].filter((tile) => tile.offsetHeight).length"))


def choose(browser: Browser, name: str, value: str) -> None:
    select = f"document.querySelector('select[data-filter={name}]')"
    browser.run(f"{select}.value = '{value}'; {select}.dispatchEvent(new Event('change'))")


def test_filters_hide_what_does_not_fit_and_say_how_many_do(browser: Browser, report: str) -> None:
    browser.open(report, DESKTOP)
    assert shown(browser) == 9
    choose(browser, "group", "worst")
    assert shown(browser) == 3
    choose(browser, "kind", "short")
    assert shown(browser) == 1
    assert browser.run("return document.getElementById('shown').textContent") == "1 of 9 shown"
    choose(browser, "size", "large")
    assert shown(browser) == 0
    for name in ("group", "kind", "size"):
        choose(browser, name, "")
    assert shown(browser) == 9


@pytest.mark.parametrize(
    ("view", "layers"),
    [("both", {"prediction", "truth"}), ("difference", {"difference"}), ("truth", {"truth"}), ("picture", set())],
)
def test_views_lay_over_what_they_name(browser: Browser, report: str, view: str, layers: set[str]) -> None:
    browser.open(report, DESKTOP)
    browser.run(f"document.querySelector('input[value={view}]').click()")
    visible = """return [...document.querySelector('.stack').querySelectorAll('img[class]')]
        .filter((image) => getComputedStyle(image).visibility === 'visible').map((image) => image.className)"""
    assert set(browser.run(visible)) == layers


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_demo_answers_a_phrase_about_a_picture(browser: Browser, demo: str, tmp_path: Path, width: int) -> None:
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, 60:] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    browser.complaints()
    browser.requests()
    browser.open(demo, width)
    browser.driver.find_element("id", "file").send_keys(str(tmp_path / "half.png"))
    assert browser.run("return document.getElementById('go').disabled")
    browser.driver.find_element("id", "phrase").send_keys("a cup")
    browser.driver.find_element("id", "go").click()
    wait_for(browser, "3,600 px (50 %) · box 60,0 to 120,60 · ")
    assert browser.run("return document.getElementById('shown').naturalWidth") == 120
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []
    asked = {url for url in browser.requests() if not url.startswith("data:")}
    assert {url for url in asked if "/examples/" not in url} == {demo, f"{demo}ask?phrase=a%20cup"}


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_demo_opens_with_an_example_to_click(browser: Browser, demo: str, width: int) -> None:
    browser.complaints()
    browser.open(demo, width)
    browser.run("document.querySelector('.example').click()")
    wait_for(browser, " px (")
    assert browser.run("return document.getElementById('phrase').value") == EXAMPLES[0][2]
    assert browser.run("return document.getElementById('shown').naturalWidth") > 100
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


def test_the_demo_tells_of_a_mistake_and_goes_on(browser: Browser, demo: str, tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    browser.open(demo, DESKTOP)
    browser.driver.find_element("id", "file").send_keys(str(tmp_path / "damaged.png"))
    browser.driver.find_element("id", "phrase").send_keys("a cup")
    browser.driver.find_element("id", "go").click()
    wait_for(browser, "the picture: got bytes that are no known picture format")
    assert not browser.run("return document.getElementById('go').disabled")


def wait_for(browser: Browser, text: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    told = "return document.getElementById('told').textContent"
    WebDriverWait(browser.driver, 60).until(lambda _: text in browser.run(told), f"wanted {text!r}")
