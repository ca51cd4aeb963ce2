"""grid: queue one DVC experiment for each combination of values, with names that say what they are."""

import argparse
import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

from promptseg.commands import say
from promptseg.commands.project import project_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("values", nargs="+", metavar="key=a,b,c", help="a key of params.yaml with the values to try")
    parser.add_argument("--pair", action="store_true", help="first with first, second with second; not all with all")
    parser.add_argument("--prefix", default="", help="put before each experiment's name")
    parser.add_argument("--dry-run", action="store_true", help="show the commands, queue nothing")


def run(options: argparse.Namespace) -> int:
    """Queue, by DVC's own command line; start them with `dvc queue start`."""
    root = project_root()
    for settings in combinations([parse(text) for text in options.values], options.pair):
        command = ["dvc", "exp", "run", "--queue", "--name", options.prefix + name_of(settings)]
        command += [part for key, value in settings for part in ("-S", f"{key}={quoted(value)}")]
        say(" ".join(command))
        if not options.dry_run:
            done = subprocess.run(
                [sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False
            )
            if done.returncode:
                said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
                raise ValueError(f"dvc refused: {said[-1]}")
    if not options.dry_run:
        say("start them: dvc queue start; look: dvc queue status; choose: python -m promptseg recommend")
    return 0


def parse(text: str) -> tuple[str, list[str]]:
    """Split "key=a,b,[c,d]" into the key and its values: commas within brackets part nothing. Else ValueError."""
    key, equals, values = text.partition("=")
    found = re.findall(r"((?:\[[^\]]*\]|\{[^}]*\}|[^,\[{])+)(?:,|$)", values)
    if not equals or not key or not values or ",".join(found) != values:
        raise ValueError(f"got {text!r}, wanted key=value,value such as res=256,320 or finetune.res=[256],[256,320]")
    return key, found


def combinations(choices: Sequence[tuple[str, list[str]]], pair: bool) -> list[list[tuple[str, str]]]:
    """Return each experiment's (key, value) settings: all with all, or the n-th of each together.

    Raises ValueError when values are to be paired and their numbers differ.
    """
    keys = [key for key, _ in choices]
    if pair and len({len(values) for _, values in choices}) > 1:
        counts = ", ".join(f"{len(values)} of {key}" for key, values in choices)
        raise ValueError(f"got {counts}, wanted as many values of each key (--pair)")
    columns = [values for _, values in choices]
    rows = zip(*columns, strict=True) if pair else itertools.product(*columns)
    return [list(zip(keys, row, strict=True)) for row in rows]


def quoted(value: str) -> str:
    """Return a value as DVC takes it with -S: "QCS8550 (Proxy)" in quotes of its own, for its parentheses."""
    return f'"{value}"' if re.search(r"[()]", value) and not value.startswith(('"', "'")) else value


def name_of(settings: Sequence[tuple[str, str]]) -> str:
    """Return a name such as "res256-precision_w8a16", of letters that git allows in one.

    Of a key the last part is named, or all of it where two keys end alike.
    """
    ends = Counter(key.rpartition(".")[2] for key, _ in settings)
    parts = []
    for key, value in settings:
        end = key.rpartition(".")[2]
        name, said = (re.sub(r"\W+", "_", text).strip("_") for text in (end if ends[end] == 1 else key, value))
        parts.append(f"{name}{'' if said[:1].isdigit() else '_'}{said}")
    return "-".join(parts)
