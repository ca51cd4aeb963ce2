"""Small files: retried like large ones, and not taken without end."""

import threading

import pytest

from promptseg.transfer import patience, small
from promptseg.transfer.connection import RefusedError
from promptseg.transfer.small import fetch_small
from tests.fault_server import Fault, Files, serving


def test_faults_are_retried_until_all_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    with serving(Files({"/a": b"abc"}, [Fault(cut_at=2), Fault(status=500), Fault(cut_at=0)])) as server:
        assert fetch_small(server.address + "/a", threading.Event()) == b"abc"
        assert len(server.requests) == 4


def test_what_is_not_there_is_told_from_the_rest() -> None:
    with serving(Files({})) as server, pytest.raises(RefusedError) as caught:
        fetch_small(server.address + "/a", threading.Event())
    assert caught.value.status == 404


def test_a_large_file_is_no_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "MOST_BYTES", 10)
    with serving(Files({"/a": b"x" * 11})) as server, pytest.raises(RefusedError, match="got more than 10 bytes"):
        fetch_small(server.address + "/a", threading.Event())


def test_a_run_that_is_stopped_waits_no_longer() -> None:
    stop = threading.Event()
    stop.set()
    with serving(Files({}, always=Fault(status=500))) as server, pytest.raises(patience.StoppedError):
        fetch_small(server.address + "/a", stop)
