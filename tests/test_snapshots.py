"""Snapshots: what was saved comes back, of the same run only, to one process at a time."""

import logging
import os
import pickle
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from promptseg.training import snapshots as snapshots_module
from promptseg.training.snapshots import ABANDONED_DAYS, ABANDONED_KEPT, Snapshots, fingerprint, open_snapshots

STATE = {"step": 3, "network": {"w": torch.arange(500.0)}, "optimizer": None, "curve": [{"loss": None, "step": 0}]}


def test_a_state_there_and_back(tmp_path):
    Snapshots(tmp_path, 0).save(STATE)
    restored = Snapshots(tmp_path, 0).restore()
    assert restored is not None
    assert torch.equal(restored["network"].pop("w"), STATE["network"]["w"])
    assert restored == {**STATE, "network": {}}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_new_run_has_no_state(tmp_path):
    assert Snapshots(tmp_path, 0).restore() is None


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda _: b"abcdefgh" * 10, _cut, lambda b: b[:-30], lambda b: b"x" + b[1:]],
    ids=["empty", "noise", "half", "no end", "no magic"],
)
def test_a_damaged_state_is_refused(tmp_path, damage):
    Snapshots(tmp_path, 0).save(STATE)
    path = tmp_path / "state.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"state\.pt: got a damaged snapshot \(\w+\); delete it to train from the start"
    ):
        Snapshots(tmp_path, 0).restore()


def test_a_flipped_byte_anywhere_is_a_state_or_a_refusal(tmp_path):
    Snapshots(tmp_path, 0).save(STATE)
    path = tmp_path / "state.pt"
    good = path.read_bytes()
    refused = 0
    for place in range(0, len(good), len(good) // 100):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x5A]) + good[place + 1 :])
        try:
            Snapshots(tmp_path, 0).restore()
        except ValueError as error:
            assert "state.pt: got a damaged snapshot" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 0


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_state_runs_no_code(tmp_path):
    (tmp_path / "state.pt").write_bytes(pickle.dumps(_Malicious(tmp_path / "owned"), protocol=2))
    with pytest.raises(ValueError, match="got a damaged snapshot"):
        Snapshots(tmp_path, 0).restore()
    torch.save(_Malicious(tmp_path / "owned"), tmp_path / "state.pt")
    with pytest.raises(ValueError, match="got a damaged snapshot"):
        Snapshots(tmp_path, 0).restore()
    assert not (tmp_path / "owned").exists()


def test_a_full_disk_says_so_and_keeps_the_old_state(tmp_path):
    Snapshots(tmp_path, 0).save(STATE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="make room and run again"):
            Snapshots(tmp_path, 0).save({**STATE, "step": 4, "network": {"w": torch.zeros(10_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    restored = Snapshots(tmp_path, 0).restore()
    assert restored is not None
    assert restored["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_due_when_the_time_since_the_last_has_passed(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(snapshots_module.time, "monotonic", lambda: now)
    snapshots = Snapshots(tmp_path, 60)
    now = 159.0
    assert not snapshots.due()
    now = 160.0
    assert snapshots.due()
    snapshots.save(STATE)
    assert not snapshots.due()
    now = 221.0
    assert snapshots.due()


def _tree(root: Path) -> list[Path]:
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.zip").write_text("a")
    (root / "images" / "b.zip").write_text("b")
    (root / "code.py").write_text("x = 1")
    return [root / "images", root / "code.py"]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "code.py").write_text("x = 2"),
        lambda root: (root / "images" / "a.zip").write_text("c"),
        lambda root: (root / "images" / "c.zip").write_text(""),
        lambda root: (root / "images" / "b.zip").unlink(),
        lambda root: (root / "images" / "b.zip").rename(root / "images" / "c.zip"),
    ],
)
def test_any_changed_file_gives_another_fingerprint(tmp_path, change):
    files = _tree(tmp_path)
    before = fingerprint({"a": 1}, files)
    change(tmp_path)
    assert fingerprint({"a": 1}, files) != before


def test_equal_runs_have_equal_fingerprints_wherever_they_are(tmp_path):
    one = fingerprint({"a": 1, "b": (64, 96)}, _tree(tmp_path / "one"))
    two = fingerprint({"b": (64, 96), "a": 1}, _tree(tmp_path / "two"))
    assert one == two
    assert len(one) == 16
    assert fingerprint({"a": 1, "b": (64, 97)}, _tree(tmp_path / "three")) != one


def test_compiled_python_gives_no_other_fingerprint(tmp_path):
    files = _tree(tmp_path)
    before = fingerprint({}, files)
    (tmp_path / "images/__pycache__").mkdir()
    (tmp_path / "images/__pycache__/code.pyc").write_text("x")
    assert fingerprint({}, files) == before


def test_finished_states_of_others_go_and_unfinished_ones_stay(tmp_path):
    for run in ("finished", "killed", "mine"):
        with open_snapshots(tmp_path, run, 0) as snapshots:
            snapshots.save(STATE)
            if run != "killed":
                snapshots.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "mine"]
    with open_snapshots(tmp_path, "mine", 0) as snapshots:
        assert snapshots.restore() is not None


def _abandon(root: Path, run: str, days: float) -> None:
    with open_snapshots(root, run, 0) as snapshots:
        snapshots.save(STATE)
    saved = time.time() - days * 24 * 3600
    os.utime(root / run / "state.pt", (saved, saved))


def test_of_abandoned_states_the_newest_stay_until_they_are_old(tmp_path):
    for days in range(ABANDONED_KEPT + 2):
        _abandon(tmp_path / "many", f"{days} days", days)
    _abandon(tmp_path / "old", "just young enough", ABANDONED_DAYS - 1)
    _abandon(tmp_path / "old", "too old", ABANDONED_DAYS + 1)
    for root in tmp_path.iterdir():
        with open_snapshots(root, "mine", 0):
            pass
    kept = {path.name for path in (tmp_path / "many").iterdir()}
    assert kept == {"mine", *(f"{days} days" for days in range(ABANDONED_KEPT))}
    assert {path.name for path in (tmp_path / "old").iterdir()} == {"mine", "just young enough"}


def test_an_old_state_that_a_process_is_training_from_stays(tmp_path):
    _abandon(tmp_path, "in use", ABANDONED_DAYS + 1)
    with open_snapshots(tmp_path, "in use", 0) as in_use:
        with open_snapshots(tmp_path, "mine", 0):
            pass
        assert in_use.restore() is not None
    with open_snapshots(tmp_path, "mine", 0):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_a_finished_state_that_another_process_reads_stays(tmp_path):
    with open_snapshots(tmp_path, "in use", 0) as snapshots:
        snapshots.save(STATE)
        snapshots.finish()
    with open_snapshots(tmp_path, "in use", 0) as in_use:
        with open_snapshots(tmp_path, "mine", 0):
            pass
        assert in_use.restore() is not None
        in_use.finish()


def test_a_second_process_waits_and_finds_the_first_ones_state(tmp_path, caplog):
    waiting = threading.Event()

    class _Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert "another process trains this very run" in record.getMessage()
            waiting.set()

    found = []

    def second() -> None:
        with open_snapshots(tmp_path, "run", 0) as snapshots:
            found.append(snapshots.restore())

    logger = logging.getLogger("promptseg.files")
    heard = _Heard()
    logger.addHandler(heard)
    (tmp_path / "run").mkdir()
    thread = threading.Thread(target=second)
    try:
        with caplog.at_level(logging.WARNING), FileLock(tmp_path / "run" / "lock"):
            thread.start()
            assert waiting.wait(30)
            assert found == []
            Snapshots(tmp_path / "run", 0).save(STATE)
        thread.join(30)
    finally:
        logger.removeHandler(heard)
    assert [state["step"] for state in found] == [3]


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(FloatingPointError), open_snapshots(tmp_path, "run", 0):
        raise FloatingPointError
    with FileLock(tmp_path / "run" / "lock", timeout=0):
        pass
