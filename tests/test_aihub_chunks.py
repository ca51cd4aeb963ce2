import weakref
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from promptseg.datasets.records import Rle
from promptseg.hubs.aihub.chunks import SAMPLE_BYTES, chunks_of, read_masks, samples_per_chunk
from promptseg.hubs.aihub.errors import UnreachableError
from promptseg.hubs.aihub.masks import MaskStore
from promptseg.hubs.aihub.names import SampleHasher
from promptseg.hubs.base import HubInput
from tests.graphs import split_picture


def samples(count: int) -> list[HubInput]:
    return [split_picture(f"s{number}", number, 9, first_id=number) for number in range(count)]


@pytest.mark.parametrize(("chunk_mb", "count"), [(1, 1), (13, 1), (26, 2), (1000, 79)])
def test_chunks_are_cut_by_bytes_and_hold_one_sample_at_least(chunk_mb: int, count: int) -> None:
    assert samples_per_chunk(chunk_mb) == count
    assert SAMPLE_BYTES == 3 * 1024 * 1024 * 4 + 2 * 77 * 4


def test_a_chunk_lets_its_tensors_go_whoever_holds_it() -> None:
    (chunk,) = chunks_of(samples(1), chunk_mb=26, known=())
    tensor = weakref.ref(chunk.samples[0])
    chunk.release()
    assert tensor() is None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_chunks_are_all_of_the_samples_in_order(count: int) -> None:
    chunks = list(chunks_of(samples(count), chunk_mb=26, known=()))
    assert [sample.sample_id for chunk in chunks for sample in chunk.samples] == [f"s{n}" for n in range(count)]
    assert all(len(chunk.samples) == 2 for chunk in chunks[:-1])
    assert len({chunk.sha256 for chunk in chunks}) == len(chunks)


def test_one_chunk_is_made_at_a_time() -> None:
    taken = []

    def watched() -> Iterator[HubInput]:
        for sample in samples(4):
            taken.append(sample.sample_id)
            yield sample

    chunks = chunks_of(watched(), chunk_mb=26, known=())
    next(chunks)
    assert taken == ["s0", "s1"]


def spelled(pictures: list[HubInput], known: set[str]) -> list[tuple[list[str], list[str]]]:
    """The ids of what each chunk sends, and of what it answers."""
    return [
        ([sample.sample_id for sample in chunk.samples], [sample_id for sample_id, _ in chunk.order])
        for chunk in chunks_of(pictures, chunk_mb=26, known=known)
    ]


def test_known_samples_are_answered_in_their_place_and_not_sent() -> None:
    pictures = samples(7)
    known = {SampleHasher().digest(pictures[number]) for number in (0, 1, 2, 4)}
    assert spelled(pictures, known) == [([], ["s0", "s1"]), (["s3", "s5"], ["s2", "s3", "s4", "s5"]), (["s6"], ["s6"])]
    assert spelled(pictures[:3], known) == [([], ["s0", "s1"]), ([], ["s2"])]


def test_a_sample_that_comes_again_is_sent_once() -> None:
    first, second, third = samples(3)
    again = HubInput("again", first.image_input, first.text_input)
    assert spelled([first, again, second, again, third], set()) == [
        (["s0", "s1"], ["s0", "again", "s1"]),
        (["s2"], ["again", "s2"]),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_after_a_crash_is_cut_at_the_same_places(seed: int) -> None:
    """Masks are stored chunk by chunk, from the first: the later chunks, and so their jobs, stay what they were."""
    random, pictures = np.random.default_rng(seed), samples(6)
    drawn = [pictures[number] for number in random.integers(0, 6, 12)]
    known = {SampleHasher().digest(pictures[number]) for number in random.integers(0, 6, 2)}
    whole = [chunk for chunk in chunks_of(drawn, chunk_mb=26, known=known) if chunk.samples]
    for stored in range(len(whole) + 1):
        there = known | {digest for chunk in whole[:stored] for digest in chunk.digests}
        left = [chunk.sha256 for chunk in chunks_of(drawn, chunk_mb=26, known=there) if chunk.samples]
        assert left == [chunk.sha256 for chunk in whole[stored:]]


def write_outputs(path: Path, masks: list[np.ndarray], name: str = "pred_mask") -> Path:
    with h5py.File(path, "w") as store:
        for number, mask in enumerate(masks):
            store.create_dataset(f"data/0/batch_{number}", data=mask)
        store["data/0"].attrs.update({"order": 0, "name": name, "batch_count": len(masks)})
    return path


def test_outputs_become_masks(tmp_path: Path) -> None:
    outputs = [np.zeros((1024, 1024), np.float32), np.ones((1024, 1024), np.float32)]
    assert [mask.mean() for mask in read_masks(write_outputs(tmp_path / "o.h5", outputs), 2)] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("masks", "name", "message"),
    [
        ([np.zeros((1024, 1024), np.float32)], "output_0", r"got outputs \['output_0'\], wanted \['pred_mask'\]"),
        ([np.zeros((1024, 1024), np.float32)] * 2, "pred_mask", "got outputs of 2 samples, wanted 1"),
        ([np.zeros((1, 1024, 1024), np.float32)], "pred_mask", r"got pred_mask as float32 \[1, 1024, 1024\]"),
        ([np.zeros((1024, 1024), np.float16)], "pred_mask", "got pred_mask as float16"),
    ],
)
def test_outputs_that_are_not_the_contracts_are_refused(
    tmp_path: Path, masks: list[np.ndarray], name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(read_masks(write_outputs(tmp_path / "o.h5", masks, name), 1))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_outputs_that_are_cut_short_are_told(tmp_path: Path, share: float) -> None:
    path = write_outputs(tmp_path / "o.h5", [np.ones((1024, 1024), np.float32)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreachableError, match="cut short"):
        list(read_masks(path, 1))


def test_masks_are_kept_from_run_to_run_whole_or_not_at_all(tmp_path: Path) -> None:
    mask = np.zeros((1024, 1024), bool)
    mask[5:9, 3:7] = True
    MaskStore(tmp_path / "masks").add("chunk", [("a", Rle.from_mask(mask))])

    def broken() -> Iterator[tuple[str, Rle]]:
        yield "b", Rle.from_mask(mask)
        raise UnreachableError("cut short")

    with pytest.raises(UnreachableError):
        MaskStore(tmp_path / "masks").add("other", broken())
    store = MaskStore(tmp_path / "masks")
    assert "a" in store
    assert "b" not in store
    assert (store["a"].to_mask() == mask).all()
