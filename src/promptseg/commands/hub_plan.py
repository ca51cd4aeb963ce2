"""hub-plan: what a run in the cloud would submit and upload, worked out on this machine: nothing is sent."""

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from promptseg.commands import say
from promptseg.commands.project import project_root
from promptseg.files import sha256_of
from promptseg.hubs.aihub.inference import MB, SAMPLE_BYTES, MaskStore, chunks_of, write_dataset
from promptseg.hubs.aihub.journal import Journal, Work, folder_of
from promptseg.hubs.aihub.preflight import check_graph, remembered_account
from promptseg.hubs.aihub.service import public_address, read_configuration
from promptseg.hubs.base import HubInput
from promptseg.hubs.host import GraphInputs
from promptseg.params import HubConfig, read_params, read_paths

_MEASURED = 3  # samples that are compressed to estimate what the others will be


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Describe the command line: it takes no options, everything is in params.yaml."""


def run(_: argparse.Namespace) -> int:
    """Print the plan."""
    root = project_root()
    config, paths = read_params(root).hub, read_paths(root)
    inputs = GraphInputs(paths["images"], paths["samples"], paths["tokens"], config.split, config.samples)
    for line in plan(config, root / ".cache", paths["graph"], inputs):
        say(line)
    return 0


def plan(config: HubConfig, cache: Path, graph: Path, inputs: Iterable[HubInput]) -> Iterator[str]:
    """Yield the lines of a dry run; every sample is read, for the jobs' names are hashes of them.

    What was submitted before is known of the account that signed in with the present token; else nothing is. Raises
    ValueError when the graph would be refused before an upload.
    """
    check_graph(graph)
    address = public_address(read_configuration().api_url)
    account = remembered_account(cache)
    folder = folder_of(cache, address, account or "not signed in")
    journal, work = Journal(folder), Work(sha256_of(graph), config.device, config.aihub.qairt_version)
    iterations = config.aihub.max_profiler_iterations
    yield f"Dry run for {config.device} at {address}: nothing is sent."
    yield f"account   {account or 'not known yet: nobody signed in from here with this token'}"
    yield f"compile   {work.compile_name}{_known(journal, work.compile_name)}"
    yield f"          {work.compile_options}"
    there = journal.upload(work.graph_sha256) is not None or journal.job(work.compile_name).job_id is not None
    graph_mb = 0.0 if there else graph.stat().st_size / MB
    yield f"          uploads {graph.name}: {graph_mb:.1f} MB"
    if config.aihub.share_with:
        yield f"          shared with {', '.join(config.aihub.share_with)}"
    yield f"profile   {work.profile_name(iterations)}{_known(journal, work.profile_name(iterations))}"
    yield f"          {work.profile_options(iterations)}"
    masks, chunk_mb = MaskStore(folder / "masks" / work.compile_name), config.aihub.chunk_mb
    stored, submitted, new, new_samples = 0, 0, 0, 0
    compressed, measured = 0.0, 0  # share of its bytes that a sample has left when compressed, over so many of them
    for chunk in chunks_of(inputs, chunk_mb, masks):
        stored += sum(digest in masks for _, digest in chunk.order)
        if chunk.samples and journal.job(work.infer_name(chunk.sha256)).job_id is not None:
            submitted += 1
        elif chunk.samples:
            new, new_samples = new + 1, new_samples + len(chunk.samples)
            if measured == 0:
                measured = min(_MEASURED, len(chunk.samples))
                compressed = _stored_bytes(chunk.samples[:measured]) / (measured * SAMPLE_BYTES)
        chunk.release()
    tensors_mb = new_samples * SAMPLE_BYTES / MB
    yield (
        f"infer     {submitted + new} jobs: {submitted} submitted before, {new} to submit; "
        f"{stored} samples have their masks stored here"
    )
    yield (
        f"          uploads {new_samples} samples, {tensors_mb:.1f} MB of tensors: "
        f"about {tensors_mb * compressed:.1f} MB compressed (estimated from {measured})"
    )
    yield f"in all    about {graph_mb + tensors_mb * compressed:.1f} MB to upload"


def _stored_bytes(samples: list[HubInput]) -> int:
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        path = Path(scratch) / "samples.h5"
        write_dataset(path, samples)
        return path.stat().st_size


def _known(journal: Journal, name: str) -> str:
    job_id = journal.job(name).job_id
    return " (to submit)" if job_id is None else f" (submitted before: job {job_id})"
