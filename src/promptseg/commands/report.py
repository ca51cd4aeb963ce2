"""report: a copy of the pipeline's report that names the git commit, to hand on.

The pipeline's own page knows no commit: it follows from the stage's dependencies alone, so that the same inputs give
the same page, and none is made again after each commit. What changed since another one: `dvc metrics diff`. The chart
of `sensitivity`, metrics/sensitivity.svg, is put in where there is one.
"""

import argparse
from pathlib import Path

from promptseg.commands import say
from promptseg.commands.project import git_commit, project_root
from promptseg.files import write_bytes
from promptseg.params import read_paths
from promptseg.report.page import insert_later


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Write the page, and say where it is."""
    root = project_root()
    source = read_paths(root)["report"]
    if not source.is_file():
        raise ValueError(f"{source}: no such file; run `dvc repro`, or `dvc checkout` if it ran before")
    commit = git_commit(root)
    chart = root / "metrics" / "sensitivity.svg"
    sensitivity = chart.read_text(encoding="utf-8") if chart.is_file() else None
    write_bytes(options.out, insert_later(source.read_text(encoding="utf-8"), commit, sensitivity).encode("utf-8"))
    say(f"{options.out}: the report at commit {commit}")
    return 0
