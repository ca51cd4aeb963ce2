"""check-data: list what is wrong with a data set of your own, line by line, before anything runs."""

import argparse
from collections import Counter

from promptseg.commands.console import say
from promptseg.commands.project import project_root
from promptseg.datasets.records import SPLITS
from promptseg.params import FolderConfig, read_data_config, read_params
from promptseg.sources.folder.build import FolderData, read_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("name", help="of a file of configs/data, without its .yaml")


def run(options: argparse.Namespace) -> int:
    """List the mistakes, or say what the data set holds; 1 when there is a mistake."""
    root = project_root()
    config = read_data_config(root, options.name)
    if not isinstance(config, FolderConfig):
        raise ValueError(
            f"{options.name}: got a data set of kind {config.kind!r}, wanted `kind: folder`: nothing to check"
        )
    data = read_folder(config)
    for mistake in data.mistakes:
        say(str(mistake))
    if data.mistakes:
        say(f"{len(data.mistakes)} mistakes; see docs/own-data.md")
        return 1
    for line in _summary(data):
        say(line)
    if read_params(root).watch != config.path:
        say(f"run it with: dvc exp run -S data={options.name} -S watch={config.path}")
    return 0


def _summary(data: FolderData) -> list[str]:
    pictures = Counter(picture.split for picture in data.pictures)
    phrases = Counter(sample.split for sample in data.samples)
    return [f"{split}: {phrases[split]} phrases on {pictures[split]} pictures" for split in SPLITS] + ["no mistakes"]
