"""The client as its own examples call it, and why it is wrapped; tokens; what is said of a network."""

import logging
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from qai_hub import public_rest_api as api
from qai_hub.client import Client, Device, InternalError
from qai_hub.util.dataset_entries_converters import h5_to_dataset_entries

from promptseg.hubs.aihub.hub import AiHub
from promptseg.hubs.aihub.inference import write_dataset
from promptseg.hubs.aihub.service import RefusedError, Service, UnreachableError, public_address, read_configuration
from promptseg.hubs.contract import INPUTS
from tests.aihub_bench import Bench, Fault
from tests.aihub_bench.device import MAGIC
from tests.aihub_bench.state import DEVICES, EMAIL, TOKEN
from tests.aihub_helpers import DEVICE, hub_config
from tests.graphs import split_picture, write_bright_graph

pytest_plugins = ("tests.aihub_fixtures",)


def plain_client(bench: Bench) -> Client:
    return Client(config=api.ClientConfig(api_token=TOKEN, api_url=bench.address, web_url=bench.address))


def test_the_plain_client_is_at_home_on_the_bench(bench: Bench, tmp_path: Path) -> None:
    client, graph = plain_client(bench), write_bright_graph(tmp_path / "model.onnx")
    assert {device.name for device in client.get_devices()} == set(DEVICES)
    job = client.submit_compile_job(str(graph), Device(DEVICE), options="--target_runtime qnn_context_binary")
    assert job.wait().success
    job.modify_sharing(add_emails=[EMAIL])
    assert list(job.get_sharing()) == [EMAIL]
    sample = split_picture("s", 30, 120, first_id=5)
    entries = {"image_input": [sample.image_input], "text_input": [sample.text_input]}
    run = client.submit_inference_job(job.get_target_model(), Device(DEVICE), entries, profile=False)
    outputs = run.download_output_data()
    assert outputs is not None
    assert outputs["pred_mask"][0].shape == (1024, 1024)
    profile = client.submit_inference_job(job.get_target_model(), Device(DEVICE)).download_profile()
    assert profile["execution_summary"]["all_inference_times"] == [6000, 5000, 7000, 40000]
    assert [summary.job_id for summary in client.get_job_summaries()][-1] == job.job_id


def test_the_bench_hands_out_credentials_where_it_is_told_to(bench: Bench, tmp_path: Path) -> None:
    bench.state.hands_out_credentials = True
    client, graph = plain_client(bench), write_bright_graph(tmp_path / "model.onnx")
    job = client.submit_compile_job(str(graph), Device(DEVICE), options="--target_runtime qnn_context_binary")
    target = job.get_target_model()
    assert target is not None
    assert Path(target.download(str(tmp_path / "model.bin"))).read_bytes() == MAGIC + graph.read_bytes()
    asked = {step: bench.requests[step] for step in ("put part", "put object", "get model", "get object")}
    assert asked == {"put part": 0, "put object": 1, "get model": 0, "get object": 1}


def test_a_new_account_leaves_what_another_holds_alone(bench: Bench, tmp_path: Path) -> None:
    """Ids that came again let the second upload of one account overwrite the binary that another one kept."""
    client, graph = plain_client(bench), str(write_bright_graph(tmp_path / "model.onnx"))
    target = client.submit_compile_job(graph, Device(DEVICE)).get_target_model()
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
    plain_client(bench).submit_compile_job(str(write_bright_graph(tmp_path / "m.onnx")), Device(DEVICE), name="n")
    assert bench.state.names("compile") == ["n", "n"]


def test_the_plain_client_loses_a_job_whose_next_request_fails(bench: Bench, tmp_path: Path) -> None:
    bench.faults.append(Fault("job", "500"))
    with pytest.raises(InternalError):
        plain_client(bench).submit_compile_job(str(write_bright_graph(tmp_path / "m.onnx")), Device(DEVICE))
    assert len(bench.state.jobs) == 1


def test_the_plain_client_takes_half_a_file_for_the_whole(bench: Bench, tmp_path: Path) -> None:
    client, graph = plain_client(bench), write_bright_graph(tmp_path / "model.onnx")
    job = client.submit_compile_job(str(graph), Device(DEVICE))
    job.wait()
    bench.faults.append(Fault("get model", "truncated without a length"))
    got = Path(job.download_target_model(str(tmp_path / "half.bin")))
    assert 0 < got.stat().st_size < graph.stat().st_size


def test_our_data_sets_are_what_the_client_writes_and_reads(tmp_path: Path) -> None:
    samples = [split_picture("a", 1, 2, first_id=3), split_picture("b", 4, 5, first_id=6)]
    rows = [{"image_input": each.image_input, "text_input": each.text_input} for each in samples]
    write_dataset(tmp_path / "samples.h5", rows, INPUTS)
    with h5py.File(tmp_path / "samples.h5") as store:
        entries = h5_to_dataset_entries(store)
    assert list(entries) == ["image_input", "text_input"]
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(entries["image_input"][number], sample.image_input)
        np.testing.assert_array_equal(entries["text_input"][number], sample.text_input)
        assert entries["text_input"][number].dtype == np.int32


SAMPLES = [split_picture(f"s{number}", 30 + number, 120, first_id=number * 15000) for number in range(3)]


@pytest.mark.parametrize("token", ["wrong-token-987", "100%-sure-token", "né-token", "two words"])
def test_a_bad_token_is_refused_and_shown_nowhere(
    bench: Bench,
    graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    token: str,
) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(bench.write_configuration(tmp_path / "client.ini", token)))
    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match=r"token|read|Header|sign in") as refusal:
        AiHub(hub_config(), tmp_path / "cache").compile(graph, tmp_path / "compiled")
    for text in (str(refusal.value), caplog.text):
        assert token not in text
    assert refusal.value.__suppress_context__
    assert bench.requests["new model"] == 0


@pytest.mark.parametrize("ini", ["", "[api]\n", "[other]\na = b\n", "[api]\napi_token =\n"])
def test_without_a_token_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ini: str) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "client.ini"))
    monkeypatch.delenv("QAIHUB_API_TOKEN", raising=False)
    if ini:
        (tmp_path / "client.ini").write_text(ini)
    with pytest.raises(RefusedError, match=r"client\.ini .*qai-hub configure --api_token.*QAIHUB_API_TOKEN"):
        Service()


@pytest.mark.parametrize("line", ["", "api_token =", "api_token = an-old-token"])
def test_a_token_in_the_environment_counts_whatever_the_file_says(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "client.ini").write_text(f"[api]\napi_url = {bench.address}\n{line}\n")
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "client.ini"))
    monkeypatch.setenv("QAIHUB_API_TOKEN", TOKEN)
    account, email = Service().sign_in()
    assert email == EMAIL
    assert account not in (TOKEN, EMAIL)


def test_a_token_in_the_environment_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "none.ini"))
    monkeypatch.setenv("QAIHUB_API_TOKEN", f" {TOKEN}\n")
    config = read_configuration()
    assert (config.api_token, config.api_url) == (TOKEN, api.DEFAULT_HUB_API_URL)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://workbench.aihub.qualcomm.com/", "https://workbench.aihub.qualcomm.com"),
        ("http://me:secret@127.0.0.1:80/hub/?key=secret#x", "http://127.0.0.1:80/hub"),
    ],
)
def test_addresses_are_shown_and_stored_without_secrets(address: str, shown: str) -> None:
    assert public_address(address) == shown


def sign_in_at(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said when signing in at an address fails."""
    (folder / "client.ini").write_text(f"[api]\napi_url = {address}\napi_token = {TOKEN}\n")
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(folder / "client.ini"))
    with pytest.raises((RefusedError, UnreachableError)) as error:
        Service().sign_in()
    message = str(error.value)
    assert TOKEN not in message
    assert "\n" not in message
    return message


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_a_service_that_is_down_is_not_the_user_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    address = f"http://127.0.0.1:{free_port()}"
    message = sign_in_at(address, tmp_path, monkeypatch)
    assert f"{address}: not reached, the service is down or behind a firewall" in message
    assert "try again later" in message


def test_a_dead_proxy_is_named_with_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{free_port()}")
    message = sign_in_at("http://hub.invalid", tmp_path, monkeypatch)
    assert "the proxy http://127.0.0.1:" in message
    assert "HTTP_PROXY, or name hub.invalid in NO_PROXY" in message
    assert "secret@" not in message


def test_a_certificate_that_is_not_trusted_asks_for_its_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path / "server.pem"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # the client hangs up: that is the point
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        message = sign_in_at(f"https://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    finally:
        server.shutdown()
        server.server_close()
    assert "its certificate is not trusted (self-signed certificate)" in message
    assert "REQUESTS_CA_BUNDLE" in message


def self_signed(path: Path) -> Path:
    """Write a key and a certificate that it signs itself."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    begin = datetime.now(UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=9))
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(secret + certificate.public_bytes(pem))
    return path


@pytest.mark.parametrize("kind", ["404", "another type"])
def test_an_address_without_ai_hub_names_the_file_to_correct(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    bench.faults.append(Fault("user", kind))
    assert f"wanted the service's address as api_url in {tmp_path / 'client.ini'}" in sign_in_at(
        bench.address, tmp_path, monkeypatch
    )


def test_a_host_that_nobody_knows_may_be_misspelt_or_the_machine_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "hub.invalid")
    message = sign_in_at("https://hub.invalid", tmp_path, monkeypatch)
    assert "no host of the name 'hub.invalid' is found" in message
    assert "check the spelling, and that this machine is online" in message


def test_the_token_is_in_no_file_no_log_and_no_error(
    bench: Bench, opened: Any, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    said = []
    with caplog.at_level(logging.DEBUG):
        opened().compile(graph, tmp_path / "out" / "compiled")
        opened().profile(graph, tmp_path / "out" / "compiled")
        list(opened().run(graph, tmp_path / "out" / "compiled", SAMPLES[:1]))
        for step in ("submit", "result", "list"):
            bench.faults = [Fault(step, "400")]  # the service's answer quotes the header
            with pytest.raises((RefusedError, UnreachableError)) as error:
                opened(max_profiler_iterations=len(said) + 1).profile(graph, tmp_path / "out" / "compiled")
            said.append(str(error.value))
    files = [path for folder in ("out", "mine/cache") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert len(files) > 5
    assert all("<token>" in text for text in said[:1])
    captured = capfd.readouterr()
    for text in (*said, caplog.text, captured.out, captured.err):
        assert TOKEN not in text
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path


def test_what_the_client_prints_reaches_nobody(
    opened: Any, graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It prints progress bars, addresses and boxes; standard output belongs to whoever called."""
    opened().compile(graph, tmp_path / "compiled")
    list(opened().run(graph, tmp_path / "compiled", SAMPLES[:1]))
    assert capfd.readouterr().out == ""
