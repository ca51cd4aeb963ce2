from dataclasses import replace

import numpy as np
import pytest

from promptseg.hubs.aihub.names import SampleHasher, Work, job_name
from promptseg.hubs.base import HubInput
from tests.graphs import split_picture

WORK = Work("ab" * 32, "Snapdragon X Elite CRD", "2.45")


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
