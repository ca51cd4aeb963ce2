"""hub-plan: what a run in the cloud would submit and upload, worked out on this machine: nothing is sent."""

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from promptseg.commands import say
from promptseg.commands.project import project_root
from promptseg.hubs.aihub.inference import (
    MB,
    MaskStore,
    Step,
    chunks_of,
    masks_name,
    row_bytes,
    samples_per_chunk,
    write_dataset,
)
from promptseg.hubs.aihub.journal import Journal, Work, folder_of
from promptseg.hubs.aihub.preflight import check_graph, remembered_account
from promptseg.hubs.aihub.service import public_address, read_configuration
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import Graphs, read_graphs
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
    for line in plan(config, root / ".cache", paths["graphs"], inputs):
        say(line)
    return 0


def plan(config: HubConfig, cache: Path, path: Path, inputs: Iterable[HubInput]) -> Iterator[str]:
    """Yield the lines of a dry run; every sample is read, for the jobs' names are hashes of them.

    What was submitted before is known of the account that signed in with the present token; else nothing is. Raises
    ValueError when a graph would be refused before an upload.
    """
    check_graph(path)
    graphs = read_graphs(path)
    address = public_address(read_configuration().api_url)
    account = remembered_account(cache)
    folder = folder_of(cache, address, account or "not signed in")
    journal, upload_mb = Journal(folder), 0.0
    steps = [Step(graph, Work.of(graph, config.device, config.aihub.qairt_version), "") for graph in graphs]
    iterations = config.aihub.max_profiler_iterations
    yield f"Dry run for {config.device} at {address}: nothing is sent."
    yield f"account   {account or 'not known yet: nobody signed in from here with this token'}"
    for graph, work in ((step.graph, step.work) for step in steps):
        yield f"compile   {work.compile_name}{_known(journal, work.compile_name)}"
        yield f"          {work.compile_options}"
        there = journal.upload(work.graph_sha256) is not None or journal.job(work.compile_name).job_id is not None
        graph_mb = 0.0 if there else graph.path.stat().st_size / MB
        upload_mb += graph_mb
        yield f"          uploads {graph.path.name}: {graph_mb:.1f} MB"
    if config.aihub.share_with:
        yield f"          shared with {', '.join(config.aihub.share_with)}"
    for work in (step.work for step in steps):
        yield f"profile   {work.profile_name(iterations)}{_known(journal, work.profile_name(iterations))}"
        yield f"          {work.profile_options(iterations)}"
    masks = MaskStore(folder / "masks" / masks_name(steps))
    stored, submitted, new, sent, mb = 0, 0, 0, 0, 0.0
    compressed, measured = 0.0, 0  # share of its bytes that a sample has left when compressed, over so many of them
    first, last = graphs.graphs[0], graphs.graphs[-1]
    for chunk in chunks_of(inputs, samples_per_chunk(config.aihub.chunk_mb, graphs), masks):
        stored += sum(digest in masks for _, digest in chunk.order)
        # Of several graphs the last one's jobs are named after what the others will have put out: not known yet.
        if chunk.samples and len(steps) == 1 and journal.job(steps[0].work.infer_name(chunk.sha256)).job_id is not None:
            submitted += 1
        elif chunk.samples:
            new, sent = new + len(steps), sent + len(chunk.samples)
            pictures = len({id(sample.image_input) for sample in chunk.samples})
            mb += (len(chunk.samples) * row_bytes(last) + (pictures * row_bytes(first) if len(steps) > 1 else 0)) / MB
            if measured == 0:
                measured = min(_MEASURED, len(chunk.samples))
                compressed = _stored_bytes(graphs, chunk.samples[:measured]) / (measured * row_bytes(first))
        chunk.release()
    yield (
        f"infer     {submitted + new} jobs: {submitted} submitted before, {new} to submit; "
        f"{stored} samples have their masks stored here"
    )
    yield (
        f"          uploads {sent} samples, {mb:.1f} MB of tensors: "
        f"about {mb * compressed:.1f} MB compressed (estimated from {measured})"
    )
    yield f"in all    about {upload_mb + mb * compressed:.1f} MB to upload"


def _stored_bytes(graphs: Graphs, samples: list[HubInput]) -> int:
    """Compress what the first graph takes of samples; features, which are not computed yet, are taken to be alike."""
    picture, phrase = graphs.sources
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        path = Path(scratch) / "samples.h5"
        rows = (
            {
                picture.name: graphs.picture_tensor(sample.image_input),
                phrase.name: graphs.phrase_tensor(sample.text_input),
            }
            for sample in samples
        )
        write_dataset(path, rows, graphs.graphs[0].inputs)
        return path.stat().st_size


def _known(journal: Journal, name: str) -> str:
    job_id = journal.job(name).job_id
    return " (to submit)" if job_id is None else f" (submitted before: job {job_id})"
