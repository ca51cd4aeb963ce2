import csv
from pathlib import Path

import numpy as np
import pytest

from promptseg.hubs.local import profile
from promptseg.hubs.local.profile import CALIBRATED_DEVICE, DEVICES, npu_device, read_simulated_cost

DATA = Path(__file__).parent / "data"
WHOLE = DATA / "qnn_profile_whole.csv"  # written by onnxruntime-qnn 2.7.0 for a small graph, placed whole
SPLIT = DATA / "qnn_profile_split.csv"  # the same with one node refused: two graphs, the first written twice


def test_figures_of_a_whole_graph():
    cost = read_simulated_cost(WHOLE)
    assert cost.cycles == 10203165
    assert (cost.time_us_low, cost.time_us, cost.time_us_high) == (5200, 6813, 9507)
    assert (cost.input_fill_bytes, cost.fill_bytes) == (19208192, 18874368)
    assert (cost.spill_bytes, cost.output_bytes) == (18874368, 4194304)
    assert cost.ops_without_cost == 16
    assert cost.costless_ops == ("node_gt",)


def test_a_repeated_graph_counts_once(tmp_path):
    head, *rows = WHOLE.read_text().splitlines()
    twice = tmp_path / "twice.csv"
    twice.write_text("\n".join([head, *rows, *rows]))
    assert read_simulated_cost(twice) == read_simulated_cost(WHOLE)


def test_bytes_beyond_two_gib_are_read_as_what_they_were(tmp_path):
    wrapped = tmp_path / "wrapped.csv"
    true = 2_294_000_000
    wrapped.write_text(WHOLE.read_text().replace("19208192,BYTES", f"{2**64 + true - 2**32},BYTES"))
    assert read_simulated_cost(wrapped).input_fill_bytes == true


def test_two_graphs_are_refused():
    with pytest.raises(ValueError, match="figures of 2 graphs"):
        read_simulated_cost(SPLIT)


def test_a_file_without_figures_is_refused(tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text(WHOLE.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="figures of 0 graphs"):
        read_simulated_cost(empty)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("Input Fill", "Input Filling", "no figure named 'Input Fill'"),
        ("19208192,BYTES", "19208192,KB", "'Input Fill' in KB, wanted BYTES"),
    ],
)
def test_another_versions_file_is_refused(tmp_path, old, new, complaint):
    other = tmp_path / "other.csv"
    other.write_text(WHOLE.read_text().replace(old, new))
    with pytest.raises(ValueError, match=complaint):
        read_simulated_cost(other)


PAIRS = Path(__file__).parents[1] / "docs" / "data" / "xelite_published_vs_simulated.csv"


@pytest.fixture(scope="module")
def latencies():
    with PAIRS.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    simulated = np.array([float(row["simulated_ms"]) for row in rows])
    published = np.array([float(row["published_qnn_dlc_ms"]) for row in rows])
    return simulated, published


def repeated_median_line(x, y):
    """Slope: median over points of the median slope to all others. Intercept: median of what is left."""
    slopes = []
    for point in range(len(x)):
        others = np.arange(len(x)) != point
        slopes.append(np.median((y[others] - y[point]) / (x[others] - x[point])))
    slope = np.median(slopes)
    return float(np.median(y - slope * x)), float(slope)


def ranks(values):
    return np.argsort(np.argsort(values)).astype(float)


def test_the_line_is_the_repeated_median_line_of_the_pairs(latencies):
    intercept_ms, slope = repeated_median_line(*latencies)
    assert round(intercept_ms, 2) == profile.INTERCEPT_MS
    assert round(slope, 2) == profile.SLOPE
    assert len(latencies[0]) == profile.MODELS


def test_the_stated_error_is_that_of_models_left_out(latencies):
    simulated, published = latencies
    errors = []
    for left_out in range(len(simulated)):
        kept = np.arange(len(simulated)) != left_out
        intercept_ms, slope = repeated_median_line(simulated[kept], published[kept])
        errors.append(abs(intercept_ms + slope * simulated[left_out] - published[left_out]) / published[left_out])
    assert round(float(np.median(errors)), 3) == profile.LEAVE_ONE_OUT_MEDIAN_ERROR


def test_the_stated_rank_correlation(latencies):
    correlation = np.corrcoef(ranks(latencies[0]), ranks(latencies[1]))[0, 1]
    assert round(float(correlation), 2) == profile.RANK_CORRELATION


def test_an_estimate_is_a_point_on_the_line():
    assert profile.estimate_ms(0.0) == profile.INTERCEPT_MS
    assert profile.estimate_ms(100.0) == pytest.approx(76.52)


def test_every_device_is_found_by_its_name():
    assert [npu_device(device.name) for device in DEVICES] == list(DEVICES)


def test_the_calibrated_device_is_known_and_simulated_on_a_chip_with_another_number():
    device = npu_device(CALIBRATED_DEVICE)
    assert (device.htp_arch, device.soc_model, device.simulator_soc_model, device.vtcm_mb) == (73, 60, 52, 8)


def test_an_unknown_device_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"hub\.device: got 'Pixel 9', wanted .*'Snapdragon X Elite CRD'"):
        npu_device("Pixel 9")
