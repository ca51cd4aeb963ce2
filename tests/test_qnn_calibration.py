import csv
from pathlib import Path

import numpy as np
import pytest

from promptseg.hubs.local import calibration as qnn_calibration

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
    assert round(intercept_ms, 2) == qnn_calibration.INTERCEPT_MS
    assert round(slope, 2) == qnn_calibration.SLOPE
    assert len(latencies[0]) == qnn_calibration.MODELS


def test_the_stated_error_is_that_of_models_left_out(latencies):
    simulated, published = latencies
    errors = []
    for left_out in range(len(simulated)):
        kept = np.arange(len(simulated)) != left_out
        intercept_ms, slope = repeated_median_line(simulated[kept], published[kept])
        errors.append(abs(intercept_ms + slope * simulated[left_out] - published[left_out]) / published[left_out])
    assert round(float(np.median(errors)), 3) == qnn_calibration.LEAVE_ONE_OUT_MEDIAN_ERROR


def test_the_stated_rank_correlation(latencies):
    correlation = np.corrcoef(ranks(latencies[0]), ranks(latencies[1]))[0, 1]
    assert round(float(correlation), 2) == qnn_calibration.RANK_CORRELATION


def test_an_estimate_is_a_point_on_the_line():
    assert qnn_calibration.estimate_ms(0.0) == qnn_calibration.INTERCEPT_MS
    assert qnn_calibration.estimate_ms(100.0) == pytest.approx(76.52)
