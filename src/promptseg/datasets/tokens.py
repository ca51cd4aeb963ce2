"""Token ids on disk: int32 [samples, 2, 77], row by row those of samples.jsonl."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptseg.files import atomic_path


def write_tokens(path: Path, tokens: NDArray[np.int32]) -> None:
    """Write the array atomically, as .npy."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, tokens, allow_pickle=False)


def read_tokens(path: Path, samples: int) -> NDArray[np.int32]:
    """Read the array of `samples` samples. Raises ValueError when the file is damaged or has another number of rows."""
    try:
        with path.open("rb") as stream:
            tokens: NDArray[np.int32] = np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: got no array of tokens ({error}); run `dvc repro tokenize`") from error
    if len(tokens) != samples:
        raise ValueError(f"{path}: got {len(tokens)} rows for {samples} samples; run `dvc repro tokenize`")
    return tokens
