"""The whole graph with the cloud in place of the local compiler: the same masks, and each job once."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptseg.datasets.records import read_predictions
from promptseg.hubs.base import CompiledGraphs
from promptseg.hubs.host import GraphInputs, masks_on_host
from tests.aihub_bench import Bench
from tests.aihub_bench.state import COLLEAGUES_TOKEN, TOKEN
from tests.projects import SMALL, STAGES, copy_run, dvc, edit_yaml, git, metric, run_command, run_dvc, stages_run

pytestmark = pytest.mark.slow

CLOUD = {
    **SMALL,
    "hub.backend": "aihub",
    "hub.emulator_samples": 2,
    "hub.aihub.chunk_mb": 26,  # two samples
    "hub.aihub.share_with": ["jury@example.org"],
}


@pytest.fixture(scope="module")
def chain(
    finished_run: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Bench]]:
    """A project that ran with the local compiler, and then in the cloud, committed."""
    folder = tmp_path_factory.mktemp("cloud")
    project = copy_run(finished_run[0], folder / "project")
    edit_yaml(project / "params.yaml", CLOUD)
    with pytest.MonkeyPatch.context() as patch, Bench(folder / "bench") as bench:
        patch.setenv("QAIHUB_CLIENT_INI", str(bench.write_configuration(folder / "client.ini")))
        assert sorted(stages_run(project, "repro")) == sorted(STAGES[4:])
        git(project, "add", "--all")
        git(project, "commit", "--message", "first run")
        yield project, bench


def test_the_cloud_gives_the_masks_of_onnx_runtime(chain: tuple[Path, Bench]) -> None:
    project, bench = chain
    graph, tokens = project / "models/graphs/model.onnx", project / "data/tokens.npy"
    inputs = GraphInputs(project / "data/images", project / "data/samples.jsonl", tokens, "val", SMALL["hub.samples"])
    predictions = read_predictions(project / "data/predictions.jsonl")
    wanted = {output.sample_id: output.pred_mask for output in masks_on_host(graph, inputs)}
    assert list(predictions) == list(wanted)
    for sample_id, mask in wanted.items():
        assert (predictions[sample_id].to_mask() == mask).all(), sample_id
    assert len(bench.state.names("infer")) >= 3


def test_metrics_say_what_was_measured_on_a_device(chain: tuple[Path, Bench]) -> None:
    project, _ = chain
    latency, fidelity = metric(project, "latency"), metric(project, "fidelity")
    assert (latency["latency_ms_device"], latency["latency_ms_estimated"]) == (6.5, None)
    assert latency["host"]["latency_ms_cpu"] > 0
    assert fidelity["scored_by"] == fidelity["binary"]["runner"] == latency["runner"] == "Snapdragon X Elite CRD"
    assert fidelity["binary"]["samples"] == 2
    assert metric(project, "score")["phrases"] == SMALL["hub.samples"]
    page = (project / "metrics/report.html").read_text(encoding="utf-8")
    assert "5.00 to 40.0 ms over 4 runs; Snapdragon X Elite CRD" in page
    assert "3 on the NPU" in page
    (point,) = csv.DictReader((project / "metrics/tradeoff.csv").open(encoding="utf-8"))
    assert (point["latency_ms"], point["latency_source"]) == ("6.5", "device")


def test_what_was_measured_is_drawn_in_a_panel_of_its_own(chain: tuple[Path, Bench]) -> None:
    project, _ = chain
    plots = json.loads(dvc(project, "plots", "show", "--json"))["data"]
    (drawn,) = plots["Latency against mIoU"]
    content = json.loads(drawn["content"]) if isinstance(drawn["content"], str) else drawn["content"]
    (point,) = content["data"]["values"]
    assert (point["latency_ms"], point["latency_source"]) == ("6.5", "device")
    assert content["encoding"]["column"]["field"] == "latency_source"
    assert content["encoding"]["x"]["field"] == "latency_ms"


def test_a_run_in_the_cloud_is_recommended_by_its_measured_latency(chain: tuple[Path, Bench]) -> None:
    project, _ = chain
    done = run_command(project, "-m", "promptseg", "recommend", "--under-ms", "10")
    assert done.returncode == 0, done.stderr
    assert "ms (device)" in done.stdout
    assert "6.50 ms device" in done.stdout


def test_the_manifest_leads_to_the_job(chain: tuple[Path, Bench]) -> None:
    project, bench = chain
    compiled = CompiledGraphs.read(project / "models/compiled")
    assert compiled.binaries[0].job_address == f"{bench.address}/jobs/{compiled.binaries[0].job_id}/"
    assert bench.state.jobs[str(compiled.binaries[0].job_id)].shared_with == {"jury@example.org"}


def test_the_token_is_nowhere_in_the_project(chain: tuple[Path, Bench]) -> None:
    project, _ = chain
    files = [path for path in project.rglob("*") if path.is_file() and not path.is_relative_to(project / "tests")]
    assert len(files) > 100
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_going_through_it_again_submits_nothing(chain: tuple[Path, Bench]) -> None:
    project, bench = chain
    submitted = bench.requests["submit"]
    assert stages_run(project, "repro") == []
    assert sorted(stages_run(project, "repro", "--force", "hub-infer", "--single-item")) == ["hub-infer"]
    assert bench.requests["submit"] == submitted


def test_another_experiment_in_a_copy_of_the_project_finds_the_jobs(chain: tuple[Path, Bench]) -> None:
    """Its copy has no cache of its own: the journal is the project's."""
    project, bench = chain
    submitted = bench.requests["submit"]
    dvc(project, "exp", "run", "--temp", "-S", "hub.cpu_latency_runs=3", "-S", "hub.aihub.wait_hours=2.0")
    assert bench.requests["submit"] == submitted


def test_a_dry_run_needs_no_token_and_asks_nobody(chain: tuple[Path, Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    project, bench = chain
    asked = bench.requests.total()
    known = planned(project)
    assert "submitted before: job j" in known
    assert "0 jobs: 0 submitted before, 0 to submit; 5 samples have their masks stored here" in known
    assert "in all    about 0.0 MB to upload" in known
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(project / "none.ini"))
    new = planned(project)
    assert "https://" in new.splitlines()[0]
    assert "not known yet" in new.splitlines()[1]
    assert new.count("(to submit)") == 2
    assert "3 jobs: 0 submitted before, 3 to submit; 0 samples have their masks stored here" in new
    assert "uploads 5 samples, 62.9 MB of tensors" in new
    assert bench.requests.total() == asked


def test_another_account_gets_nothing_of_the_first_back_from_dvc(
    chain: tuple[Path, Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC knows no account, and would take the first's compiled graph for everybody's: the manifest tells."""
    project, bench = chain
    first = set(bench.state.jobs)
    ini = bench.write_configuration(tmp_path / "client.ini", COLLEAGUES_TOKEN)
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(ini))
    refused = run_dvc(project, "repro", "--force", "--single-item", "hub-profile")
    assert refused.returncode != 0
    assert "got a graph that another account compiled" in refused.stderr
    assert "`dvc repro --force --single-item hub-compile`" in refused.stderr
    dvc(project, "repro", "--force", "--single-item", "hub-compile")
    assert {"hub-profile", "hub-infer"} <= set(stages_run(project, "repro"))
    creators = {bench.state.jobs[job_id].creator for job_id in bench.state.jobs.keys() - first}
    assert creators == {"colleague@example.org"}
    assert bench.state.names("profile")[0] == bench.state.names("profile")[1]


def planned(project: Path) -> str:
    done = run_command(project, "-m", "promptseg", "hub-plan")
    assert done.returncode == 0, done.stderr
    return done.stdout
