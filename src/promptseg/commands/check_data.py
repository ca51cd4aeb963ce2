"""check-data: list what is wrong with a data set, line by line, before anything runs; what is not here is fetched."""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

from promptseg.commands import say
from promptseg.commands.project import project_root
from promptseg.datasets.records import SPLITS
from promptseg.params import FolderConfig, ShapesConfig, read_data_config, read_params
from promptseg.sources.build import Contents, open_contents


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("name", help="of a file of configs/data, without its .yaml")
    parser.add_argument(
        "--mirror", action="append", help="folder or address of a data set's archives; by default that of params.yaml"
    )


def run(options: argparse.Namespace) -> int:
    """List the mistakes, or say what the data set holds; 1 when there is a mistake."""
    root = project_root()
    config, params = read_data_config(root, options.name), read_params(root)
    if isinstance(config, ShapesConfig):
        for split in SPLITS:
            say(f"{split}: {config.scenes(split)} scenes, drawn by fetch itself")
        say("no mistakes")
        return 0
    mirror = tuple(options.mirror) if options.mirror else params.mirror
    command = ""
    if isinstance(config, FolderConfig):
        if params.watch != config.path:
            command = f"dvc exp run -S data={options.name} -S watch={config.path}"
        if Path.cwd() != root:
            config = replace(config, path=str(root / Path(config.path).expanduser()))
    with open_contents(config, mirror, root / ".cache" / "downloads") as contents:
        status = _tell(contents)
    if not status and command:
        say(f"run it with: {command}")
    return status


def _tell(contents: Contents) -> int:
    mistakes = contents.mistakes.in_order()
    for mistake in mistakes:
        say(str(mistake))
    for reason, places in contents.mistakes.left_out.items():
        for place in places:
            say(f"left out ({reason}): {place}")
    if mistakes:
        say(f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}; see docs/own-data.md")
        return 1
    pictures = Counter(entry.picture.split for entry in contents.entries)
    phrases = Counter(sample.split for entry in contents.entries for sample in entry.samples)
    for split in SPLITS:
        say(f"{split}: {phrases[split]} phrases on {pictures[split]} pictures")
    say("no mistakes")
    return 0
