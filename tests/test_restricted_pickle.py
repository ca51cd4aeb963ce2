"""A pickle is a program: plain values come through, anything that would run is refused before it does."""

import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptseg.sources.restricted_pickle import load_plain_pickle

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
keys = st.integers() | st.text()
plain = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner, inner))


class Malicious:
    """Unpickles as a call of a shell command."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self._command,)


@given(plain, st.sampled_from([3, 4, 5]))  # for protocol 2, Python 3 writes bytes as a call
def test_plain_values_come_through(value: Any, protocol: int) -> None:
    assert load_plain_pickle(pickle.dumps(value, protocol), "x", "ascii") == value


@pytest.mark.parametrize("protocol", range(6))
def test_a_command_is_not_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    content = pickle.dumps([{"ref_id": 1}, Malicious(f"touch {trace}")], protocol)
    with pytest.raises(
        ValueError, match=r"refs\.p: got a pickle that is damaged or not plain \(it asks for \w+\.system\)"
    ):
        load_plain_pickle(content, "refs.p", "latin1")
    assert not trace.exists()
    pickle.loads(content)  # the command was a working one
    assert trace.exists()


@pytest.mark.parametrize("value", [Path(), print, int, object(), os.environ])
def test_objects_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="it asks for"):
        load_plain_pickle(pickle.dumps(value) if value is not os.environ else b"cos\nenviron\n.", "x", "latin1")


def test_strings_of_python_2_follow_the_encoding() -> None:
    written_by_python_2 = b"\x80\x02}q\x00U\x04sentq\x01U\x04caf\xe9q\x02s."  # {'sent': 'caf\xe9'}
    assert load_plain_pickle(written_by_python_2, "x", "latin1") == {"sent": "café"}
    assert load_plain_pickle(written_by_python_2, "x", "bytes") == {b"sent": b"caf\xe9"}
    with pytest.raises(ValueError, match="UnicodeDecodeError"):
        load_plain_pickle(written_by_python_2, "x", "ascii")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_truncated_pickle_is_refused_wherever_it_ends(protocol: int) -> None:
    content = pickle.dumps([{"ref_id": 1, "sentences": [{"sent": "the cat", "sent_id": 3}]}], protocol)
    for size in range(len(content)):
        with pytest.raises(ValueError, match="damaged or not plain"):
            load_plain_pickle(content[:size], "x", "latin1")


@given(st.binary(max_size=40))
def test_noise_is_a_value_or_refused(content: bytes) -> None:
    with suppress(ValueError):
        load_plain_pickle(content, "x", "latin1")


def test_a_memo_beyond_the_content_is_refused() -> None:
    with pytest.raises(ValueError, match="it asks for 2,147,483,647 memo entries in 9 bytes"):
        load_plain_pickle(b"\x80\x02Nr\xff\xff\xff\x7f.", "x", "latin1")
