"""Samples in chunks of bounded size: as HDF5 in the service's layout, and masks out of its answer."""

import hashlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from promptseg.hubs.aihub.errors import UnreachableError
from promptseg.hubs.aihub.names import SampleHasher
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import INPUTS, PRED_MASK, mask_of

MB = 1_000_000
SAMPLE_BYTES = sum(int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in INPUTS)


@dataclass(frozen=True)
class Chunk:
    """`samples` go through one job, or there are none; `digests` are the hashes of their tensors.

    `order` is (sample id, digest) of all samples that were met since the chunk before: of these, and of those whose
    masks are known or come with an earlier chunk.
    """

    samples: list[HubInput]
    digests: tuple[str, ...]
    order: tuple[tuple[str, str], ...]

    def release(self) -> None:
        """Free the tensors at once: a caller's frames may live on in the traceback of an error that was retried."""
        self.samples.clear()

    @property
    def sha256(self) -> str:
        """Hash of all the tensors that go through the job, in order."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()


def samples_per_chunk(chunk_mb: int) -> int:
    """Return how many samples fit into `chunk_mb` (1 MB = 1e6 bytes) of tensors, at least one."""
    return max(1, chunk_mb * MB // SAMPLE_BYTES)


def chunks_of(inputs: Iterable[HubInput], chunk_mb: int, known: Container[str]) -> Iterator[Chunk]:
    """Cut samples into chunks, in order; one is in memory at a time, if the caller lets each go before the next.

    A sample goes into a job once, and not at all where its mask is `known` (by its digest). Masks are stored chunk by
    chunk, so that after a crash the samples that are left are cut at the same places, and their jobs are found again.
    """
    most, hasher = samples_per_chunk(chunk_mb), SampleHasher()
    sent: set[str] = set()
    held: dict[str, HubInput] = {}
    order: list[tuple[str, str]] = []
    for sample in inputs:
        digest = hasher.digest(sample)
        order.append((sample.sample_id, digest))
        if digest not in sent and digest not in known:
            sent.add(digest)
            held[digest] = sample
        if len(held) == most or (not held and len(order) == most):
            yield _taken(held, order)
    if order:
        yield _taken(held, order)


def _taken(held: dict[str, HubInput], order: list[tuple[str, str]]) -> Chunk:
    chunk = Chunk(list(held.values()), tuple(held), tuple(order))
    held.clear()
    order.clear()
    return chunk


def write_dataset(path: Path, samples: Iterable[HubInput]) -> None:
    """Write samples the way the client stores them, one at a time: data/<input>/batch_<sample>, gzip."""
    count = 0
    with h5py.File(path, "w") as store:
        for sample in samples:
            for order, tensor in enumerate((sample.image_input, sample.text_input)):
                store.create_dataset(f"data/{order}/batch_{count}", data=tensor, compression="gzip")
            count += 1
        for order, spec in enumerate(INPUTS):
            store[f"data/{order}"].attrs.update({"order": order, "name": spec.name, "batch_count": count})


def read_masks(path: Path, count: int) -> Iterator[NDArray[np.bool_]]:
    """Yield the `count` decided masks, bool [CANVAS, CANVAS], of an inference's outputs, in the samples' order.

    Raises UnreachableError when the file is cut short, ValueError when it holds something else than the contract says.
    """
    try:
        store = h5py.File(path, "r")
    except OSError as error:
        raise UnreachableError(f"{path.name}: got outputs that are cut short ({error})") from None
    with store:
        outputs = list(store["data"].values()) if "data" in store else []
        names = [str(output.attrs["name"]) for output in outputs]
        if names != [PRED_MASK.name]:
            raise ValueError(f"AI Hub: got outputs {names}, wanted {[PRED_MASK.name]}; compile with --output_names")
        got = int(outputs[0].attrs["batch_count"])
        if got != count:
            raise ValueError(f"AI Hub: got outputs of {got} samples, wanted {count}")
        for number in range(count):
            pred_mask = outputs[0][f"batch_{number}"][()]
            PRED_MASK.check(pred_mask, f"AI Hub, output {number}")
            yield mask_of(pred_mask)
