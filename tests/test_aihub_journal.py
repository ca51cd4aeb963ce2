import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from promptseg.hubs.aihub.journal import (
    DISTRUSTED,
    FAILED,
    FOUND,
    INTENT,
    REFUSED,
    SUBMITTED,
    UPLOADED,
    JobHistory,
    Journal,
    SampleHasher,
    Work,
    folder_of,
    job_name,
)
from promptseg.hubs.base import HubInput
from tests.graphs import split_picture


def test_a_job_that_was_submitted_is_known_by_its_id(tmp_path: Path) -> None:
    Journal(tmp_path).record(INTENT, "n")
    assert Journal(tmp_path).job("n").unanswered_since is not None
    Journal(tmp_path).record(SUBMITTED, "n", job_id="j1", address="a")
    assert Journal(tmp_path).job("n") == JobHistory(job_id="j1")
    assert Journal(tmp_path).job("other") == JobHistory()


@pytest.mark.parametrize(
    ("events", "job_id", "doubtful"),
    [
        ([INTENT, REFUSED], None, False),
        ([INTENT, INTENT], None, True),
        ([INTENT, FOUND], "j", False),
        ([INTENT, SUBMITTED, FAILED], None, False),
        ([INTENT, SUBMITTED, FAILED, INTENT], None, True),
        ([INTENT, SUBMITTED, INTENT], None, True),
        ([INTENT, SUBMITTED, INTENT, REFUSED], None, False),
    ],
)
def test_what_came_last_counts(tmp_path: Path, events: list[str], job_id: str | None, doubtful: bool) -> None:
    journal = Journal(tmp_path)
    for event in events:
        facts = {"job_id": "j"} if event in (SUBMITTED, FOUND, FAILED) else {}
        journal.record(event, "n", **facts)
    history = journal.job("n")
    assert (history.job_id, history.unanswered_since is not None) == (job_id, doubtful)
    assert history.failed == ({"j"} if FAILED in events else set())


def test_another_job_of_a_failed_name_is_known(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for event, job_id in ((SUBMITTED, "j1"), (FAILED, "j1"), (SUBMITTED, "j2")):
        journal.record(event, "n", job_id=job_id)
    assert journal.job("n") == JobHistory(job_id="j2", failed={"j1"})


def test_doubt_begins_with_the_first_intent(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record(INTENT, "n")
    first = journal.job("n").unanswered_since
    journal.record(INTENT, "n")
    assert journal.job("n").unanswered_since == first


@pytest.mark.parametrize(
    "torn", ['{"at": 1, "event": "subm', '{"at": 1, "event": "submitted", "name": "n", "job_id": "\xff', "\n", "[]\n"]
)
def test_a_line_that_a_crash_cut_short_hides_no_other(tmp_path: Path, torn: str) -> None:
    journal = Journal(tmp_path)
    journal.record(SUBMITTED, "n", job_id="j1")
    with (tmp_path / "journal.jsonl").open("ab") as stream:
        stream.write(torn.encode("latin-1"))
    assert journal.job("n").job_id == "j1"
    journal.record(FAILED, "n", job_id="j1")
    assert journal.job("n") == JobHistory(failed={"j1"})


def test_the_latest_upload_of_a_content_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.upload("00") is None
    journal.record(UPLOADED, "00", asset_id="d1", expires_at=5.0)
    journal.record(UPLOADED, "00", asset_id="d2", expires_at=None)
    assert journal.upload("00") == ("d2", None)
    journal.record(DISTRUSTED, "00")
    assert journal.upload("00") is None


def append(folder: Path, writer: int) -> None:
    for number in range(25):
        Journal(folder).record(SUBMITTED, f"{writer}-{number}", job_id="j" * 200)


def test_several_processes_write_whole_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append, args=(tmp_path, writer)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    entries = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert {entry["name"] for entry in entries} == {f"{writer}-{number}" for writer in range(4) for number in range(25)}


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("https://workbench.aihub.qualcomm.com", "workbench.aihub.qualcomm.com/0a1b"),
        ("http://127.0.0.1:80/", "127.0.0.1_80/0a1b"),
    ],
)
def test_each_account_has_a_folder_of_its_own(tmp_path: Path, address: str, folder: str) -> None:
    assert folder_of(tmp_path, address, "0a1b") == tmp_path / "aihub" / folder


WORK = Work("ab" * 32, "Snapdragon X Elite CRD", "2.45", ("pred_mask",))


def test_the_same_work_has_the_same_name_and_any_change_another() -> None:
    works = [
        WORK,
        replace(WORK, graph_sha256="cd" * 32),
        replace(WORK, device="QCS8550 (Proxy)"),
        replace(WORK, qairt_version="2.46"),
    ]
    names = [name for work in works for name in (work.compile_name, work.profile_name(9), work.infer_name("00"))]
    assert len(set(names)) == len(names) == 12
    assert replace(WORK).compile_name == WORK.compile_name
    assert WORK.profile_name(9) != WORK.profile_name(10)
    assert WORK.infer_name("00") != WORK.infer_name("01")


def test_only_what_may_hold_float_is_compiled_with_a_float_precision() -> None:
    asked = {
        each: "FLOAT16" in replace(WORK, precision=each).compile_options for each in ("fp16", "mixed", "w8a8", "w8a16")
    }
    assert asked == {"fp16": True, "mixed": True, "w8a8": False, "w8a16": False}
    assert replace(WORK, precision="fp16").compile_name == WORK.compile_name


def test_names_stay_the_same_from_release_to_release() -> None:
    """Another name would submit every job of every user once more."""
    assert job_name("compile", {"b": "2", "a": "1"}) == job_name("compile", {"a": "1", "b": "2"})
    assert job_name("compile", {"a": "1"}) == "promptseg-compile-09cf579c5d99d1c612e3"


def test_a_sample_is_hashed_by_its_tensors_and_not_by_its_name() -> None:
    digest = SampleHasher().digest
    base = split_picture("a", 1, 2, first_id=3)
    assert digest(base) == digest(split_picture("b", 1, 2, first_id=3))
    assert digest(base) != digest(split_picture("a", 1, 2, first_id=4))
    assert digest(base) != digest(split_picture("a", 1, 3, first_id=3))


@pytest.mark.parametrize("fresh", [True, False])
def test_phrases_of_one_picture_hash_as_they_would_alone(fresh: bool) -> None:
    first = split_picture("a", 1, 2, first_id=3)
    text_input = np.full_like(first.text_input, 7)
    second = HubInput("b", first.image_input.copy() if fresh else first.image_input, text_input)
    hasher = SampleHasher()
    assert [hasher.digest(first), hasher.digest(second)] == [
        SampleHasher().digest(first),
        SampleHasher().digest(second),
    ]
