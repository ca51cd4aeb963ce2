"""The table of devices, and every committed number of its calibration computed anew."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pandas as pd
import pytest
from graphs import write_bright_graph

from benchmarks.calibrate import COVERAGE, FEWEST, MOST_OFF, best_line, compare_twins, fit, pairs, read_simulated, rows
from promptseg.__main__ import main
from promptseg.commands import devices as command
from promptseg.hubs.contract import read_record
from promptseg.hubs.devices import TABLES, Line, devices, find_device
from promptseg.hubs.local.hub import LocalHub, _chip_of
from promptseg.hubs.local.profile import SimulatedCost, Simulation
from promptseg.hubs.local.session import qnn_available
from tests.aihub_helpers import hub_config

needs_compiler = pytest.mark.skipif(not qnn_available(), reason="no onnxruntime-qnn with an HTP library here")
NAMES = [device.name for device in devices()]


@pytest.fixture(scope="module")
def committed():
    return pd.read_csv(TABLES / "calibration.csv")


def test_every_number_of_the_calibration_is_what_the_fit_says(committed):
    pd.testing.assert_frame_equal(pd.DataFrame(rows()), committed)


def test_the_estimates_keep_what_is_promised_of_them(committed):
    """In fp16 15 % for devices from v73 on; in integers 20 % for all; and bounds that hold four of five models."""
    recent = {device.name for device in devices() if device.chip.htp_arch >= 73}
    floats = committed["precision"] == "fp16"
    assert (committed["median_error"][floats & committed["device"].isin(recent)] <= 0.15).all()
    assert (committed["median_error"][~floats] <= 0.2).all()
    assert ((committed["covered"] - COVERAGE).abs() <= np.maximum(0.05, 1 / committed["models"])).all()
    assert (committed["models"] >= FEWEST).all()
    assert (committed["third_quartile_error"] <= MOST_OFF).all()


def test_each_v81_device_takes_the_simulated_chip_with_the_smaller_error():
    errors = compare_twins()["median_error"]
    for device in devices():
        if device.chip.htp_arch == 81:
            assert device.simulated_chip.soc_model == errors.loc[device.name].idxmin(), device.name


def test_the_best_line_is_no_worse_than_any_other_and_ignores_an_outlier():
    simulated = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 3.0])
    published = 0.5 + 0.75 * simulated
    published[5] = 90.0
    assert best_line(simulated, published) == pytest.approx((0.5, 0.75))
    noisy = published * np.random.default_rng(0).uniform(0.8, 1.2, 6)
    intercept, slope = best_line(simulated, noisy)

    def error(a, b):
        return np.mean(np.abs(a + b * simulated - noisy) / noisy)

    steps = np.linspace(-0.3, 0.3, 21)
    assert all(error(intercept, slope) <= error(intercept + a, slope + b) + 1e-12 for a in steps for b in steps)


def test_a_model_that_is_held_out_does_not_shape_its_own_line():
    table = pairs(NAMES[0], "fp16", read_simulated(52))
    changed = table.copy()
    changed.iloc[3, changed.columns.get_loc("published_ms")] *= 1000
    ratio = fit(table).ratios[3], fit(changed).ratios[3]
    assert ratio[0] == pytest.approx(1000 * ratio[1])


def test_bounds_are_the_simulators_put_through_the_line_and_widened():
    estimate = Line(0.5, 0.75, models=34, median_error=0.1, spread=1.25).estimate(4.0, 2.0, 6.0)
    assert (estimate.latency_ms, estimate.low_ms, estimate.high_ms) == pytest.approx((3.5, 2.0 / 1.25, 5.0 * 1.25))


def test_every_device_is_found_by_its_name_and_has_a_line():
    assert len(set(NAMES)) == len(NAMES) == 11
    assert [find_device(name).name for name in NAMES] == NAMES
    assert all(device.lines.keys() >= {"fp16", "w8a8"} and device.precisions for device in devices())
    assert not any("mixed" in device.lines for device in devices())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Galaxy S25", "Samsung Galaxy S25"),
        ("snapdragon x elite", "Snapdragon X Elite CRD"),
        ("qcs8550", "QCS8550 (Proxy)"),
    ],
)
def test_an_unknown_device_is_told_the_nearest_names(name, nearest):
    with pytest.raises(ValueError, match=f"hub.device: got {name!r}.*did you mean.*{re.escape(repr(nearest))}"):
        find_device(name)


def test_a_name_like_no_other_is_told_all_of_them():
    with pytest.raises(ValueError, match=r"wanted one of .*Snapdragon X Elite CRD.*SA8295P ADP"):
        find_device("zzz")


@needs_compiler
@pytest.mark.slow
def test_each_device_gets_a_binary_that_names_its_chip(tmp_path):
    graph = write_bright_graph(tmp_path / "model.onnx")
    for device in devices():
        hub = LocalHub(hub_config(backend="local", device=device.name), tmp_path / "cache")
        compiled = hub.compile(graph, tmp_path / str(device.chip.soc_model))
        assert compiled.chip == f"{device.soc_type}, v{device.chip.htp_arch}"


def test_a_binary_for_another_chip_is_refused(tmp_path):
    for content in (b"..soc_type=SM8750;arch=79..", b"nothing"):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"got a binary for another chip.*wanted SC8380XP, v73"):
            _chip_of(tmp_path / "a.bin", find_device("Snapdragon X Elite CRD"))


@needs_compiler
@pytest.mark.slow
def test_any_onnx_file_is_estimated_on_every_device(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # outside of a project
    graph = write_bright_graph(tmp_path / "any.onnx")
    assert main(["devices", "--graph", str(graph), "--csv", str(tmp_path / "table.csv")]) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "table.csv").set_index("device")
    assert list(table.index) == NAMES
    for device in devices():
        row = table.loc[device.name]
        assert row["latency_ms_estimated"] == pytest.approx(device.lines["fp16"](row["latency_ms_simulated"]), abs=1e-3)
        (printed,) = (line.removeprefix(device.name) for line in said.splitlines() if line.startswith(device.name))
        assert float(printed.split()[0]) == pytest.approx(row["latency_ms_estimated"], abs=0.006)
    assert main(["devices", "--graph", str(graph), "--precision", "mixed"]) == 0
    assert capsys.readouterr().out.count("no line yet") == len(NAMES)


@pytest.mark.parametrize("precision", ["fp16", "w8a8", "mixed"])
def test_the_projects_graph_is_estimated_by_the_line_of_its_own_precision(tmp_path, monkeypatch, precision):
    (tmp_path / "graphs").mkdir()
    path = write_bright_graph(tmp_path / "graphs" / "model.onnx")
    content = onnx.load(path)
    replace(read_record(path), precision=precision).write_into(content)
    onnx.save(content, path)
    cost = SimulatedCost(1, 2000, 1500, 2500, 0, 0, 0, 0, 0, ())
    chips = {device.simulated_chip for device in devices()}
    monkeypatch.setattr(command, "simulate_all", lambda *_: {chip: Simulation(cost, {}, 1) for chip in chips})
    monkeypatch.setattr(command, "project_root", lambda: tmp_path)
    monkeypatch.setattr(command, "read_paths", lambda _: {"graphs": tmp_path / "graphs"})
    monkeypatch.setattr(command, "read_params", lambda _: SimpleNamespace(hub=SimpleNamespace(device=NAMES[0])))
    assert main(["devices", "--csv", str(tmp_path / "table.csv")]) == 0
    table = pd.read_csv(tmp_path / "table.csv").set_index("device")
    assert set(table["precision"]) == {precision}
    for device in devices():
        estimate = table.loc[device.name, "latency_ms_estimated"]
        if precision == "mixed":
            assert np.isnan(estimate)
        else:
            assert estimate == pytest.approx(device.lines[precision](2.0), abs=1e-3)


def test_a_graph_that_is_not_there_is_refused_in_one_line(tmp_path, caplog):
    assert main(["devices", "--graph", str(tmp_path / "none.onnx")]) == 1
    assert "none.onnx: got no such file" in caplog.text


def test_a_precision_that_a_device_lacks_is_refused() -> None:
    device = replace(devices()[0], precisions=frozenset({"w8a8"}))
    device.check_precision("w8a8")
    for precision in ("w8a16", "mixed", "fp16"):
        with pytest.raises(ValueError, match=f"export.precision: got '{precision}', which .* wanted one of w8a8, or"):
            device.check_precision(precision)
