from pathlib import Path

import numpy as np
import pytest

from promptseg.datasets.tokens import read_tokens, write_tokens

TOKENS = np.arange(3 * 2 * 77, dtype=np.int32).reshape(3, 2, 77)


def test_a_round_trip_keeps_every_id_and_leaves_one_file(tmp_path: Path):
    write_tokens(tmp_path / "tokens.npy", TOKENS)
    assert (read_tokens(tmp_path / "tokens.npy", 3) == TOKENS).all()
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.npy"]


def test_tokens_of_other_samples_are_refused(tmp_path: Path):
    write_tokens(tmp_path / "tokens.npy", TOKENS)
    with pytest.raises(ValueError, match="got 3 rows for 4 samples"):
        read_tokens(tmp_path / "tokens.npy", 4)


@pytest.mark.parametrize("length", [0, 9, 60, 700])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int):
    path = tmp_path / "tokens.npy"
    write_tokens(path, TOKENS)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"tokens\.npy: got no array"):
        read_tokens(path, 3)


def test_a_pickled_array_is_refused(tmp_path: Path):
    np.save(tmp_path / "tokens.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="got no array"):
        read_tokens(tmp_path / "tokens.npy", 2)
