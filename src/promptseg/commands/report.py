"""report: the pipeline's report with the git commit, and what changed since another one, put in.

DVC's own report.html knows no commit: it follows from the stage's dependencies alone, so that the same inputs give the
same page, and none is made again after each commit. This command adds what only git knows, when someone looks.
"""

import argparse
from pathlib import Path

from promptseg.commands.console import say
from promptseg.commands.project import ROOT, artefact_paths
from promptseg.experiments.changes import changes_between
from promptseg.experiments.records import commit_of, read_state
from promptseg.files import write_bytes
from promptseg.report.page import insert_changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--against", metavar="REV", help="commit, branch or tag; by default the last that differs")
    parser.add_argument("--out", type=Path, default=ROOT / "report.html", help="file to write (report.html)")


def run(options: argparse.Namespace) -> int:
    """Write the page, and say where it is."""
    source = artefact_paths()["report"]
    if not source.is_file():
        raise ValueError(f"{source}: no such file; run `dvc repro`, or `dvc checkout` if it ran before")
    now = read_state(ROOT, None)
    changes = changes_between(read_state(ROOT, options.against or "HEAD"), now)
    against = options.against or "HEAD"
    if options.against is None and not (changes.params or changes.metrics):
        against = "HEAD~1"  # the run is committed: what it changed, it changed against that commit's parent
        changes = changes_between(read_state(ROOT, against), now)
    head, base = commit_of(ROOT, "HEAD"), commit_of(ROOT, against)
    page = insert_changes(source.read_text(encoding="utf-8"), changes, head, f"{against} ({base[:10]})")
    write_bytes(options.out, page.encode("utf-8"))
    say(f"{options.out}: changed since {against}: {len(changes.params)} of params, {len(changes.metrics)} of metrics")
    return 0
