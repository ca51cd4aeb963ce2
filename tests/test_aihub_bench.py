"""What the cloud backend is for: how the client behaves when it is called the way its own examples do."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from qai_hub import public_rest_api as api
from qai_hub.client import Client, Device, InternalError
from qai_hub.util.dataset_entries_converters import h5_to_dataset_entries

from promptseg.hubs.aihub.chunks import write_dataset
from tests.aihub_bench import Bench, Fault
from tests.aihub_bench.device import MAGIC
from tests.aihub_bench.state import DEVICES, EMAIL, TOKEN
from tests.aihub_helpers import forget_sleep
from tests.graphs import split_picture, write_bright_graph


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    forget_sleep(monkeypatch.setattr)
    with Bench(tmp_path / "bench") as bench:
        yield bench


def plain_client(bench: Bench) -> Client:
    return Client(config=api.ClientConfig(api_token=TOKEN, api_url=bench.address, web_url=bench.address))


def test_the_plain_client_is_at_home_on_the_bench(bench: Bench, tmp_path: Path) -> None:
    client, graph = plain_client(bench), write_bright_graph(tmp_path / "model.onnx")
    assert {device.name for device in client.get_devices()} == set(DEVICES)
    job = client.submit_compile_job(str(graph), Device(DEVICES[0]), options="--target_runtime qnn_context_binary")
    assert job.wait().success
    job.modify_sharing(add_emails=[EMAIL])
    assert list(job.get_sharing()) == [EMAIL]
    sample = split_picture("s", 30, 120, first_id=5)
    entries = {"image_input": [sample.image_input], "text_input": [sample.text_input]}
    run = client.submit_inference_job(job.get_target_model(), Device(DEVICES[0]), entries, profile=False)
    outputs = run.download_output_data()
    assert outputs is not None
    assert outputs["pred_mask"][0].shape == (1024, 1024)
    profile = client.submit_inference_job(job.get_target_model(), Device(DEVICES[0])).download_profile()
    assert profile["execution_summary"]["all_inference_times"] == [6000, 5000, 7000, 40000]
    assert [summary.job_id for summary in client.get_job_summaries()][-1] == job.job_id


def test_the_bench_hands_out_credentials_where_it_is_told_to(bench: Bench, tmp_path: Path) -> None:
    bench.state.hands_out_credentials = True
    client, graph = plain_client(bench), write_bright_graph(tmp_path / "model.onnx")
    job = client.submit_compile_job(str(graph), Device(DEVICES[0]), options="--target_runtime qnn_context_binary")
    target = job.get_target_model()
    assert target is not None
    assert Path(target.download(str(tmp_path / "model.bin"))).read_bytes() == MAGIC + graph.read_bytes()
    asked = {step: bench.requests[step] for step in ("put part", "put object", "get model", "get object")}
    assert asked == {"put part": 0, "put object": 1, "get model": 0, "get object": 1}


def test_a_new_account_leaves_what_another_holds_alone(bench: Bench, tmp_path: Path) -> None:
    """Ids that came again let the second upload of one account overwrite the binary that another one kept."""
    client, graph = plain_client(bench), str(write_bright_graph(tmp_path / "model.onnx"))
    target = client.submit_compile_job(graph, Device(DEVICES[0])).get_target_model()
    assert target is not None
    kept = bench.state
    content = kept.models[target.model_id].file.read_bytes()
    for _ in kept.models:
        bench.start_over()
        assert not bench.state.models
        for _ in range(3):
            client.upload_model(graph)
        assert not kept.models.keys() & bench.state.models.keys()
        assert kept.models[target.model_id].file.read_bytes() == content
    bench.start_over(kept)
    assert bench.state.models.keys() == kept.models.keys()


def test_the_plain_client_submits_twice_when_an_answer_is_lost(bench: Bench, tmp_path: Path) -> None:
    """The reason for submitting with one POST: without it this backend would pay twice, too."""
    bench.faults.append(Fault("submit", "lost", times=1))
    plain_client(bench).submit_compile_job(str(write_bright_graph(tmp_path / "m.onnx")), Device(DEVICES[0]), name="n")
    assert bench.state.names("compile") == ["n", "n"]


def test_the_plain_client_loses_a_job_whose_next_request_fails(bench: Bench, tmp_path: Path) -> None:
    bench.faults.append(Fault("job", "500"))
    with pytest.raises(InternalError):
        plain_client(bench).submit_compile_job(str(write_bright_graph(tmp_path / "m.onnx")), Device(DEVICES[0]))
    assert len(bench.state.jobs) == 1


def test_the_plain_client_takes_half_a_file_for_the_whole(bench: Bench, tmp_path: Path) -> None:
    client, graph = plain_client(bench), write_bright_graph(tmp_path / "model.onnx")
    job = client.submit_compile_job(str(graph), Device(DEVICES[0]))
    job.wait()
    bench.faults.append(Fault("get model", "truncated without a length"))
    got = Path(job.download_target_model(str(tmp_path / "half.bin")))
    assert 0 < got.stat().st_size < graph.stat().st_size


def test_our_data_sets_are_what_the_client_writes_and_reads(tmp_path: Path) -> None:
    samples = [split_picture("a", 1, 2, first_id=3), split_picture("b", 4, 5, first_id=6)]
    write_dataset(tmp_path / "samples.h5", samples)
    with h5py.File(tmp_path / "samples.h5") as store:
        entries = h5_to_dataset_entries(store)
    assert list(entries) == ["image_input", "text_input"]
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(entries["image_input"][number], sample.image_input)
        np.testing.assert_array_equal(entries["text_input"][number], sample.text_input)
        assert entries["text_input"][number].dtype == np.int32
