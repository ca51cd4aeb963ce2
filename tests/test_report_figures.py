import pytest

from promptseg.report.figures import deployment_figures, headline, quality_figures

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


def test_the_headline_says_how_sure_it_is():
    first = headline(SUMMARY, LATENCY)[0]
    assert (first.label, first.value) == ("mIoU", "0.612")
    assert first.note == "95 % interval 0.580 to 0.640; 2.9 times the best trivial baseline"


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
    assert headline(SUMMARY, latency)[1].note == "no simulation of the NPU was made"


def test_zero_is_a_measurement():
    values = {figure.label: figure.value for figure in deployment_figures(LATENCY)}
    assert values["Operations without a cost"] == "0"
    assert values["Spill"] == "not measured"
    assert values["Host CPU latency"] == "123 ms"


def test_an_estimate_is_never_called_a_measurement():
    estimated = headline(SUMMARY, LATENCY)[1]
    assert estimated.label == "Latency on the NPU, estimated"
    assert estimated.note.startswith("9.50 to 17 ms; an estimate for the NPU")
    measured = headline(SUMMARY, {**LATENCY, "latency_ms_device": 20.0, "device": "a laptop"})[1]
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
    assert headline(SUMMARY, measured)[1].note == "19.0 to 30.5 ms over 100 runs; a laptop"


def test_latency_of_the_host_names_the_host():
    assert headline(SUMMARY, LATENCY)[2].note == "120 to 151 ms; measured on A & B"
