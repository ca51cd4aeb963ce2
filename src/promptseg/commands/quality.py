"""quality: score weights on photographs: names and single objects, by size and by how often a name was trained on, and
whether they say no to what a picture does not show.

The masks are the network's own on this machine. With --rows they are those of the deployed graph, which the pipeline
scored: the same groups, without saying no, which a mask alone does not tell.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptseg.commands import say
from promptseg.commands.project import project_root
from promptseg.datasets.records import Sample, read_pictures, read_samples
from promptseg.datasets.tokenizer import read_tokens
from promptseg.files import write_json, write_table
from promptseg.params import read_params, read_paths
from promptseg.params.sections import check_res

if TYPE_CHECKING:
    import pandas as pd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--model", type=Path, help="a .safetensors file; by default the pipeline's own")
    parser.add_argument("--res", type=int, help="side in px at which it works; by default that of params.yaml")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="which is scored (%(default)s)")
    parser.add_argument("--data", type=Path, help="folder with images, samples.jsonl, objects.jsonl and tokens.npy")
    parser.add_argument("--rows", type=Path, help="what the pipeline scored (data/scores.csv), in place of --model")
    parser.add_argument("--pictures", type=int, help="how many, the first ones; by default all")
    parser.add_argument("--out", type=Path, help="a .json file for the figures; a .csv beside it gets a row a phrase")


def run(options: argparse.Namespace) -> int:
    """Score, and tell."""
    from promptseg.quality import pictures_with, read_scored, summary  # pandas: half a second

    if options.rows is not None and (options.model is not None or options.res is not None):
        raise ValueError("--rows: got --model or --res too; what was scored has a model and a res of its own")

    paths = read_paths(project_root()) if options.data is None else None
    images, samples_path, objects, tokens = (
        (paths["images"], paths["samples"], paths["objects"], paths["tokens"])
        if paths is not None
        else (options.data / name for name in ("images", "samples.jsonl", "objects.jsonl", "tokens.npy"))
    )
    if not samples_path.is_file():
        raise ValueError(f"{samples_path}: no such file; run `dvc repro tokenize` with `data: photos` first")
    samples = read_samples(samples_path)
    if options.rows is not None:
        rows, source = read_scored(options.rows, samples, options.split), {"rows": str(options.rows)}
    else:
        rows, source = _ask(options, samples, images, objects, tokens)
    figures = summary(rows, pictures_with(samples))
    for name, value in figures.items():
        say(f"{name}: {value}")
    if options.out is not None:
        write_json(options.out, {**source, "split": options.split, **figures})
        write_table(options.out.with_suffix(".csv"), rows)
    return 0


def _ask(
    options: argparse.Namespace, samples: Sequence[Sample], images: Path, objects: Path, tokens: Path
) -> "tuple[pd.DataFrame, dict[str, Any]]":
    """Ask the network that was named -> its rows, and which it was."""
    import torch  # seconds: not before the command line is understood

    from promptseg.checkpoints.checkpoint import load_checkpoint
    from promptseg.quality import answers

    if options.res is not None:
        check_res("--res", options.res)
    root = project_root()
    model = options.model or read_paths(root)["checkpoint"]
    res = options.res or read_params(root).res
    if model.suffix != ".safetensors":
        raise ValueError(f"--model: got {model}, wanted a .safetensors file: another kind does not say no")
    token_ids = read_tokens(tokens, len(samples))
    network, _ = load_checkpoint(model)
    with torch.inference_mode():
        rows = answers(
            network, images, samples, read_pictures(objects), token_ids, options.split, res, options.pictures
        )
    return rows, {"model": str(model), "res": res}
