import onnxruntime as ort
import pytest

from promptseg.hubs.local import tools as qnn_tools


@pytest.fixture
def no_wheel(monkeypatch):
    monkeypatch.setattr(qnn_tools, "onnxruntime_qnn", None)


@pytest.mark.usefixtures("no_wheel")
def test_without_the_wheel_only_the_runtimes_version_is_known():
    assert not qnn_tools.qnn_available()
    assert qnn_tools.tool_versions() == {"onnxruntime": ort.__version__}


@pytest.mark.usefixtures("no_wheel")
def test_without_the_wheel_asking_for_the_library_says_what_to_install():
    with pytest.raises(RuntimeError, match="onnxruntime-qnn"):
        qnn_tools.qnn_library()


def test_a_wheel_without_the_htp_library_does_not_count(monkeypatch, tmp_path):
    class Wheel:
        @staticmethod
        def get_qnn_htp_path():
            return str(tmp_path / "libQnnHtp.so")

    monkeypatch.setattr(qnn_tools, "onnxruntime_qnn", Wheel)
    assert not qnn_tools.qnn_available()


@pytest.mark.skipif(not qnn_tools.qnn_available(), reason="no onnxruntime-qnn with an HTP library for this system")
def test_with_the_wheel_files_and_versions_are_there():
    library = qnn_tools.qnn_library()
    assert library.provider_path.is_file()
    assert library.htp_path.is_file()
    assert set(qnn_tools.tool_versions()) == {"onnxruntime", "onnxruntime_qnn", "qnn_sdk"}
