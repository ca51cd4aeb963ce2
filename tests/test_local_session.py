import json
from dataclasses import asdict, replace

import onnxruntime as ort
import pytest

from promptseg.hubs.devices import Chip
from promptseg.hubs.local import session
from promptseg.hubs.local.session import CompileRequest, EmulateRequest

CHIP = Chip(htp_arch=73, soc_model=60, vtcm_mb=8)
COMPILE = CompileRequest(graph="model.onnx", wrapper="out.onnx", chip=CHIP, profile_csv=None, verbose=False)
EMULATE = EmulateRequest(wrapper="out.onnx", chip=CHIP, inputs="in.npz", outputs="out.npz")


@pytest.mark.parametrize(("request_sent", "wanted"), [(COMPILE, "compile"), (EMULATE, "emulate")])
def test_a_request_survives_the_command_line(monkeypatch, request_sent, wanted):
    received = []
    monkeypatch.setattr(session, "compile_graph", lambda request: received.append(("compile", request)))
    monkeypatch.setattr(session, "emulate", lambda request: received.append(("emulate", request)))
    session.main([json.dumps(asdict(request_sent))])
    assert received == [(wanted, request_sent)]


def test_an_earlier_plans_profile_is_replaced_and_not_continued(monkeypatch, tmp_path):
    profile = tmp_path / "profile.csv"
    profile.write_text("of an earlier plan")
    monkeypatch.setattr(session, "session_options", lambda *_: ort.SessionOptions())
    monkeypatch.setattr(ort, "InferenceSession", lambda *_: profile.open("a").write("figures"))
    session.compile_graph(replace(COMPILE, profile_csv=str(profile)))
    assert profile.read_text() == "figures"


@pytest.fixture
def no_wheel(monkeypatch):
    monkeypatch.setattr(session, "onnxruntime_qnn", None)


@pytest.mark.usefixtures("no_wheel")
def test_without_the_wheel_only_the_runtimes_version_is_known():
    assert not session.qnn_available()
    assert session.tool_versions() == {"onnxruntime": ort.__version__}


@pytest.mark.usefixtures("no_wheel")
def test_without_the_wheel_asking_for_the_library_says_what_to_install():
    with pytest.raises(RuntimeError, match="onnxruntime-qnn"):
        session.qnn_library()


def test_a_wheel_without_the_htp_library_does_not_count(monkeypatch, tmp_path):
    class Wheel:
        @staticmethod
        def get_qnn_htp_path():
            return str(tmp_path / "libQnnHtp.so")

    monkeypatch.setattr(session, "onnxruntime_qnn", Wheel)
    assert not session.qnn_available()


@pytest.mark.skipif(not session.qnn_available(), reason="no onnxruntime-qnn with an HTP library for this system")
def test_with_the_wheel_files_and_versions_are_there():
    library = session.qnn_library()
    assert library.provider_path.is_file()
    assert library.htp_path.is_file()
    assert set(session.tool_versions()) == {"onnxruntime", "onnxruntime_qnn", "qnn_sdk"}
