"""What the inverted mask attention costs: a table of runs that differ in the rule and the seed only.

    dvc exp show --csv | python -m benchmarks.mask_attention_rules docs/data/mask_attention_rules.csv

Reads the experiments that docs/checkpoints.md queues, writes their rows, and prints what they amount to. Runs are
compared in pairs of one seed: the same initial weights, the same order of pictures and phrases.
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from promptseg.files import atomic_path

RULES = ("inside", "outside")
VARIED = ("finetune.attends", "finetune.seed")
SCORES = ("miou", "miou_ci_low", "miou_ci_high", "miou_keyword", "miou_sentence", "miou_best_baseline")
COLUMNS = (*VARIED, "data", "model", "finetune.mask_resize", "finetune.steps", *SCORES)
Run = Mapping[str, str]


def pairs_of(experiments: Iterable[Run]) -> list[tuple[Run, Run]]:
    """Return (inside, outside) for each seed, ascending. Of `dvc exp show`, the rows of experiments that trained from
    nothing count.

    Raises ValueError when a seed lacks a rule or has it twice, or when runs differ in any other parameter.
    """
    runs = [row for row in experiments if row["typ"].startswith("branch") and not row["finetune.init"]]
    by_place: dict[tuple[str, int], list[Run]] = {}
    for row in runs:
        by_place.setdefault((row["finetune.attends"], int(row["finetune.seed"])), []).append(row)
    seeds = sorted({seed for _, seed in by_place})
    counts = {(rule, seed): len(by_place.get((rule, seed), [])) for rule in RULES for seed in seeds}
    if not seeds or set(counts.values()) != {1}:
        raise ValueError(f"got runs {counts or 'of neither rule'}, wanted one of each rule for every seed")
    for key in runs[0]:
        values = {row[key] for row in runs}
        of_training = key.startswith("finetune.") or key in ("data", "model", "res", "params.yaml:res")
        if of_training and key not in VARIED and len(values) > 1:
            raise ValueError(f"{key}: got {sorted(values)} among the runs, wanted the same in all of them")
    return [(by_place[RULES[0], seed][0], by_place[RULES[1], seed][0]) for seed in seeds]


def summary(pairs: Sequence[tuple[Run, Run]]) -> str:
    """A Markdown table, a line per seed, and the mean difference with its range."""
    lines = ["| seed | mIoU, inside | mIoU, outside | outside minus inside |", "|---|---|---|---|"]
    differences = []
    for inside, outside in pairs:
        one, other = float(inside["miou"]), float(outside["miou"])
        differences.append(other - one)
        lines.append(f"| {inside['finetune.seed']} | {one:.3f} | {other:.3f} | {other - one:+.3f} |")
    low, high = min(differences), max(differences)
    mean = statistics.mean(differences)
    return "\n".join([*lines, "", f"Mean difference over {len(pairs)} seeds: {mean:+.3f} ({low:+.3f} to {high:+.3f})."])


def main() -> None:
    """Read `dvc exp show --csv` from standard input; write the table that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    pairs = pairs_of(csv.DictReader(sys.stdin))
    with atomic_path(target) as temporary:
        pd.DataFrame([run for pair in pairs for run in pair]).to_csv(temporary, columns=COLUMNS, index=False)
    print(summary(pairs))


if __name__ == "__main__":
    main()
