"""A large transfer takes no more memory than a small one: measured in a process of its own, from a made-up stream."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.transfer import MADE_UP, made_up_blocks, serving_made_up
from tests.imports import ROOT

FETCH = """
import resource, sys
from pathlib import Path
from promptseg.transfer.download import download
address, sha256, size, folder = sys.argv[1:]
download(address, Path(folder) / "big", sha256=sha256, expected_bytes=int(size), cache=Path(folder) / "cache")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_bytes(size: int, folder: Path) -> int:
    """Fetch `size` made-up bytes in a fresh process; return its peak resident memory."""
    digest = hashlib.sha256()
    for block in made_up_blocks(0, size):
        digest.update(block)
    with serving_made_up(size, cut_every=size // 3) as address:
        command = [sys.executable, "-c", FETCH, address, digest.hexdigest(), str(size), str(folder)]
        environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert (folder / "big").stat().st_size == size
    return int(done.stdout)


def test_a_made_up_stream_is_the_same_from_any_byte_on() -> None:
    whole = b"".join(made_up_blocks(0, 3 * len(MADE_UP) + 5))
    for start in (1, len(MADE_UP) - 1, len(MADE_UP), 2 * len(MADE_UP) + 7):
        assert b"".join(made_up_blocks(start, len(whole))) == whole[start:]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """64 MiB more of a file, cut and taken up twice on the way, cost under a quarter of that in memory."""
    more = 64 << 20
    small = peak_bytes(1 << 20, tmp_path / "small")
    large = peak_bytes((1 << 20) + more, tmp_path / "large")
    assert large - small < more // 4
