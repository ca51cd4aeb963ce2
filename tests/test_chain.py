"""The whole graph in a copy of the project: eight stages, nothing twice, and back to an earlier size for free."""

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.datasets.records import read_predictions, read_samples
from promptseg.files import sha256_of
from promptseg.hubs.base import CompiledGraphs
from promptseg.hubs.contract import IMAGE_INPUT
from promptseg.hubs.local.session import qnn_available
from promptseg.report.charts import read_curve
from promptseg.training.curve import FIGURES
from tests.projects import METRICS, SMALL, STAGES, copy_run, dvc, metric, run_dvc, stages_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chain(finished_run: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A copy of the project after its first `dvc repro`, committed, and the stages that ran."""
    project, ran = finished_run
    return copy_run(project, tmp_path_factory.mktemp("chain") / "project"), ran


def test_all_stages_run(chain: tuple[Path, list[str]]) -> None:
    project, ran = chain
    assert sorted(ran) == sorted(STAGES)
    assert not list(project.rglob("*.part"))


def test_each_artefact_is_what_it_says(chain: tuple[Path, list[str]]) -> None:
    project, _ = chain
    samples = read_samples(project / "data/samples.jsonl")
    assert np.load(project / "data/tokens.npy").shape == (len(samples), 2, 77)
    _, provenance = load_checkpoint(project / "models/finetuned.safetensors")
    assert (provenance.model, provenance.init_sha256, provenance.params["steps"]) == ("nano", None, 2)
    curve = read_curve(project / "metrics/live/plots/metrics")
    assert set(curve) == {"step", *FIGURES}
    assert [*curve["step"]] == [0, 1, 2]
    assert onnx.load(project / "models/graphs/model.onnx").graph.input[0].name == IMAGE_INPUT.name
    assert CompiledGraphs.read(project / "models/compiled").placed_on_npu == qnn_available()
    predictions = read_predictions(project / "data/predictions.jsonl")
    assert len(predictions) == SMALL["hub.samples"]
    assert set(predictions) <= {sample.sample_id for sample in samples if sample.split == "val"}
    page = (project / "metrics/report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert (project / "metrics/gallery.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_metrics_hold_what_is_promised(chain: tuple[Path, list[str]]) -> None:
    project, _ = chain
    export, latency = metric(project, "export"), metric(project, "latency")
    score, fidelity = metric(project, "score"), metric(project, "fidelity")
    assert {"differing_pixels", "model_mb", "gflops", "nodes", "parameters"} <= set(export)
    assert (export["res"], export["parity_samples"]) == (64, 1)
    assert {"latency_ms_estimated", "latency_ms_device", "spill_mb", "ops_without_cost", "ddr_read_mb"} <= set(latency)
    assert latency["host"]["latency_ms_cpu"] > 0
    assert latency["host"]["runs"] == 2
    if qnn_available():
        assert latency["placed_on_npu"]
        assert 0 < latency["latency_ms_estimated_low"] <= latency["latency_ms_estimated_high"]
    assert latency["latency_ms_device"] is None
    assert fidelity["binary"] is None
    assert (fidelity["model"], fidelity["res"], fidelity["phrases"], fidelity["non_finite"]) == ("nano", 64, 5, 0)
    assert fidelity["graph_sha256"] == latency["graph_sha256"] == sha256_of(project / "models/graphs/model.onnx")
    assert fidelity["predictions_sha256"] == sha256_of(project / "data/predictions.jsonl")
    assert {"miou", "miou_canvas", "ciou", "p_at_50", "p_at_90", "miou_small", "miou_keyword"} <= set(score)
    assert {"baseline_everything", "baseline_largest_object", "baseline_random_object"} <= set(score)
    assert score["phrases"] == SMALL["hub.samples"]
    shown = json.loads(dvc(project, "metrics", "show", "--json"))[""]["data"]
    assert set(shown) == set(METRICS)


def test_artefacts_stay_out_of_git(chain: tuple[Path, list[str]]) -> None:
    """DVC writes the lines of .gitignore that keep what it caches out of git; metrics and plots are git's."""
    project, _ = chain
    listed = subprocess.run(["git", "ls-files"], cwd=project, capture_output=True, text=True, check=True).stdout.split()
    made = {name for name in listed if name.startswith(("data/", "models/", "metrics/", ".cache/", ".dvc/"))}
    assert {name for name in made if not name.endswith(".gitignore")} == {
        *METRICS, *(f"metrics/live/plots/metrics/{name}.tsv" for name in FIGURES),
        "metrics/ops.csv", "metrics/layers.csv", "metrics/devices.csv",
        "metrics/tradeoff.csv", "metrics/sweep.csv", "metrics/gallery.jpg",
        ".dvc/config", ".dvc/plots/tradeoff.json",
    }  # fmt: skip


def test_a_second_repro_runs_nothing(chain: tuple[Path, list[str]]) -> None:
    assert stages_run(chain[0], "repro") == []


def test_an_experiment_runs_what_follows_from_res_and_going_back_runs_nothing(chain: tuple[Path, list[str]]) -> None:
    project, _ = chain
    before = {name: (project / name).read_bytes() for name in (*METRICS, "models/graphs/model.onnx")}
    assert sorted(stages_run(project, "exp", "run", "-S", "res=96")) == sorted(STAGES[3:])
    assert metric(project, "export")["res"] == 96
    changed = json.loads(dvc(project, "metrics", "diff", "--json"))
    assert changed["metrics/export.json"]["res"] == {"old": 64, "new": 96, "diff": 32}
    assert "metrics/latency.json" in changed
    assert stages_run(project, "exp", "run", "-S", "res=64") == []
    assert {name: (project / name).read_bytes() for name in before} == before


def test_a_mistaken_experiment_says_so_and_loses_nothing(chain: tuple[Path, list[str]]) -> None:
    project, _ = chain
    before = {name: (project / name).read_bytes() for name in (*METRICS, "models/graphs/model.onnx")}
    done = run_dvc(project, "exp", "run", "-S", "res=abc")
    assert done.returncode != 0
    assert "error: res: got 'abc', wanted a whole number" in done.stderr
    assert stages_run(project, "exp", "run", "-S", "res=64") == []
    assert {name: (project / name).read_bytes() for name in before} == before
