import re
from pathlib import Path

import pytest

from promptseg.commands.hub_plan import plan
from promptseg.files import sha256_of
from promptseg.hubs.aihub.inference import write_dataset
from promptseg.hubs.aihub.journal import Work
from promptseg.hubs.contract import INPUTS
from tests.aihub_bench import Bench
from tests.aihub_bench.state import COLLEAGUES_TOKEN
from tests.aihub_helpers import DEVICE, hub_config, open_bench_hub
from tests.graphs import split_picture, write_bright_graph, write_refused_graph

SAMPLES = [split_picture(f"s{number}", number, 9, first_id=number) for number in range(3)]
ADDRESS = "https://workbench.aihub.qualcomm.com"


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "none.ini"))
    monkeypatch.delenv("QAIHUB_API_TOKEN", raising=False)


def test_jobs_and_bytes_are_told_without_a_token_and_nothing_is_written(tmp_path: Path) -> None:
    graph = write_bright_graph(tmp_path / "model.onnx")
    config = hub_config(chunk_mb=26, share_with=("jury@example.org",))
    lines = list(plan(config, tmp_path / "cache", graph, SAMPLES))
    text = "\n".join(lines)
    work = Work(sha256_of(graph), DEVICE, "2.45", ("pred_mask",))
    assert lines[0] == f"Dry run for {DEVICE} at {ADDRESS}: nothing is sent."
    assert f"compile   {work.compile_name} (to submit)" in lines
    assert f"          {work.compile_options}" in lines
    assert f"          uploads model.onnx: {graph.stat().st_size / 1e6:.1f} MB" in lines
    assert f"profile   {work.profile_name(100)} (to submit)" in lines
    assert "shared with jury@example.org" in text
    assert "infer     2 jobs: 0 submitted before, 2 to submit; 0 samples have their masks stored here" in lines
    estimate = re.search(
        r"uploads 3 samples, 37\.8 MB of tensors: about ([\d.]+) MB compressed .estimated from 2.", text
    )
    assert estimate
    rows = [{"image_input": each.image_input, "text_input": each.text_input} for each in SAMPLES]
    write_dataset(tmp_path / "all.h5", rows, INPUTS)
    assert float(estimate[1]) == pytest.approx((tmp_path / "all.h5").stat().st_size / 1e6, abs=0.06)
    assert not (tmp_path / "cache").exists()


def test_what_this_account_submitted_before_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, cache = write_bright_graph(tmp_path / "model.onnx"), tmp_path / "cache"
    with Bench(tmp_path / "bench") as bench:
        open_bench_hub(bench, tmp_path, monkeypatch).compile(graph, tmp_path / "compiled")
        asked = bench.requests.total()
        lines = list(plan(hub_config(), cache, graph, SAMPLES))
        monkeypatch.setenv("QAIHUB_API_TOKEN", COLLEAGUES_TOKEN)
        colleagues = list(plan(hub_config(), cache, graph, SAMPLES))
        assert bench.requests.total() == asked
    (job_id,) = bench.state.jobs
    name = Work(sha256_of(graph), DEVICE, "2.45", ("pred_mask",)).compile_name
    assert f"compile   {name} (submitted before: job {job_id})" in lines
    assert "          uploads model.onnx: 0.0 MB" in lines
    assert "account   not known yet: nobody signed in from here with this token" in colleagues
    assert f"compile   {name} (to submit)" in colleagues


def test_a_graph_that_would_be_refused_is_refused_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NonZero"):
        list(plan(hub_config(), tmp_path / "cache", write_refused_graph(tmp_path / "model.onnx"), SAMPLES))
