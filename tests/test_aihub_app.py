"""The app's three graphs in the cloud: handed over from job to job, each of which is paid for once."""

from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import pytest
from qai_hub import public_api_pb2 as pb

from promptseg.commands.hub_plan import plan
from promptseg.files import sha256_of
from promptseg.hubs.aihub.inference import row_bytes
from promptseg.hubs.base import CompiledGraphs, HubInput
from promptseg.hubs.contract import read_graphs
from promptseg.hubs.host import masks_on_host
from tests.aihub_bench import Bench, Fault
from tests.aihub_helpers import hub_config
from tests.networks import micro_network
from tests.test_app import asked_of, export_app

pytest_plugins = ("tests.aihub_fixtures",)
NAMES = ["picture", "phrase", "decoder"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "graphs"
    export_app(micro_network(), folder)
    return folder


def counts(bench: Bench) -> dict[str, int]:
    return {kind: len(bench.state.names(kind)) for kind in ("compile", "profile", "infer")}


def rows_sent(bench: Bench) -> Counter[str]:
    """How many rows each graph was run on, over all jobs."""
    sent: Counter[str] = Counter()
    for job in (job for job in bench.state.jobs.values() if job.kind == "infer"):
        with h5py.File(bench.state.datasets[job.content.dataset.dataset_id].file) as store:
            first = store["data/0"].attrs
            name = {"picture": "picture", "phrase": "phrase"}.get(str(first["name"]), "decoder")
            sent[name] += int(first["batch_count"])
    return sent


def chunk_mb(graphs: Path, samples: int) -> int:
    """Room for so many samples; the micro network's features take less than a megabyte each."""
    largest = max(map(row_bytes, read_graphs(graphs)))
    return -(-samples * largest // 1_000_000)


def test_three_graphs_are_compiled_each_by_its_own_job(bench: Bench, opened: Any, graphs: Path, tmp_path: Path) -> None:
    compiled = opened().compile(graphs, tmp_path / "compiled")
    assert CompiledGraphs.read(tmp_path / "compiled") == compiled
    assert [(binary.graph, binary.binary_file) for binary in compiled.binaries] == [
        (name, f"{name}.bin") for name in NAMES
    ]
    for binary in compiled.binaries:
        assert binary.binary_sha256 == sha256_of(tmp_path / "compiled" / str(binary.binary_file))
        assert bench.state.jobs[str(binary.job_id)].kind == "compile"
    jobs = [job.content for job in bench.state.jobs.values()]
    assert [job.options.partition("--output_names ")[2].split(" ")[0] for job in jobs][1:] == [
        "embedding",
        "mask_logits,similarity",
    ]
    picture = jobs[0].tensor_type_list.types[0]
    assert (picture.name, tuple(picture.tensor_type.shape)) == ("picture", (1, 100, 100, 3))
    assert picture.tensor_type.dtype == pb.TENSOR_DTYPE_UINT8
    opened().compile(graphs, tmp_path / "again")
    assert counts(bench)["compile"] == 3


def test_three_graphs_are_measured_apart_and_added_up(bench: Bench, opened: Any, graphs: Path, tmp_path: Path) -> None:
    opened().compile(graphs, tmp_path / "compiled")
    profile = opened().profile(graphs, tmp_path / "compiled")
    assert profile.latency_ms_device == 3 * 6.5
    assert profile.further_phrase is not None
    assert profile.further_phrase["latency_ms_device"] == 2 * 6.5
    assert profile.graphs is not None
    assert list(profile.graphs) == NAMES
    opened().profile(graphs, tmp_path / "compiled")
    assert counts(bench)["profile"] == 3


def agree(got: list[Any], wanted: list[Any]) -> bool:
    return all(
        one.sample_id == other.sample_id and (one.pred_mask == other.pred_mask).mean() > 0.999
        for one, other in zip(got, wanted, strict=True)
    )


def test_masks_are_the_hosts_and_nothing_runs_twice(bench: Bench, opened: Any, graphs: Path, tmp_path: Path) -> None:
    samples, room = asked_of(2, 3), chunk_mb(graphs, 6)
    opened(chunk_mb=room).compile(graphs, tmp_path / "compiled")
    got = list(opened(chunk_mb=room).run(graphs, tmp_path / "compiled", samples))
    assert agree(got, list(masks_on_host(graphs, samples)))
    assert rows_sent(bench) == {"picture": 2, "phrase": 3, "decoder": 6}
    asked = bench.requests.total()
    assert agree(list(opened(chunk_mb=room).run(graphs, tmp_path / "compiled", samples)), got)
    assert bench.requests.total() == asked, "masks that are stored need no service"


def test_a_run_that_breaks_between_two_graphs_goes_on_with_the_jobs_it_has(
    bench: Bench, opened: Any, graphs: Path, tmp_path: Path
) -> None:
    samples: list[HubInput] = asked_of(1, 2)
    opened().compile(graphs, tmp_path / "compiled")
    bench.state.failing["infer"] = ""

    def fail_late(step: str) -> None:  # the first two jobs, of picture and phrase, work
        if step == "submit":
            bench.state.failing = {"infer": "the device is gone"} if len(bench.state.names("infer")) >= 2 else {}

    bench.on_request = fail_late
    with pytest.raises(ValueError, match="the device is gone"):
        list(opened().run(graphs, tmp_path / "compiled", samples))
    bench.on_request, bench.state.failing = None, {}
    before = len(bench.state.names("infer"))
    assert before == 3
    got = list(opened().run(graphs, tmp_path / "compiled", samples))
    assert agree(got, list(masks_on_host(graphs, samples)))
    assert len(bench.state.names("infer")) == 4, "the decoder's job alone is submitted again"


def test_an_answer_that_is_lost_submits_nothing_twice(bench: Bench, opened: Any, graphs: Path, tmp_path: Path) -> None:
    samples = asked_of(1, 2)
    bench.faults.append(Fault("submit", "lost", times=1))
    opened().compile(graphs, tmp_path / "compiled")
    bench.faults.append(Fault("submit", "lost", times=1))
    assert len(list(opened().run(graphs, tmp_path / "compiled", samples))) == 2
    assert counts(bench) == {"compile": 3, "profile": 0, "infer": 3}


def test_what_a_run_would_submit_is_told_before(bench: Bench, opened: Any, graphs: Path, tmp_path: Path) -> None:
    opened()
    lines = list(plan(hub_config(), tmp_path / "cache", graphs, asked_of(2, 2)))
    assert sum(line.startswith("compile ") for line in lines) == 3
    assert sum(line.startswith("profile ") for line in lines) == 3
    assert any(line.startswith("infer     3 jobs: 0 submitted before, 3 to submit") for line in lines)
    assert bench.requests.total() == 0
