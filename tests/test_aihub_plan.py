import re
from pathlib import Path

import pytest

from promptseg.files import sha256_of
from promptseg.hubs.aihub.chunks import write_dataset
from promptseg.hubs.aihub.journal import SUBMITTED, Journal, folder_of
from promptseg.hubs.aihub.names import Work
from promptseg.hubs.aihub.plan import plan
from tests.aihub_helpers import DEVICE, hub_config
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
    work = Work(sha256_of(graph), DEVICE, "2.45")
    assert lines[0] == f"Dry run for {DEVICE} at {ADDRESS}: nothing is sent, no token is read."
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
    write_dataset(tmp_path / "all.h5", SAMPLES)
    assert float(estimate[1]) == pytest.approx((tmp_path / "all.h5").stat().st_size / 1e6, abs=0.06)
    assert not (tmp_path / "cache").exists()


def test_what_was_submitted_before_is_not_counted(tmp_path: Path) -> None:
    graph = write_bright_graph(tmp_path / "model.onnx")
    work = Work(sha256_of(graph), DEVICE, "2.45")
    journal = Journal(folder_of(tmp_path / "cache", ADDRESS))
    journal.record(SUBMITTED, work.compile_name, job_id="j7", address="a")
    lines = list(plan(hub_config(), tmp_path / "cache", graph, SAMPLES))
    assert f"compile   {work.compile_name} (submitted before: job j7)" in lines
    assert "          uploads model.onnx: 0.0 MB" in lines


def test_a_graph_that_would_be_refused_is_refused_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NonZero"):
        list(plan(hub_config(), tmp_path / "cache", write_refused_graph(tmp_path / "model.onnx"), SAMPLES))
