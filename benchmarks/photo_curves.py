"""Learning curves of `photo`: over time, over how often a name was seen, and over shares of the photographs.

    python -m benchmarks.photo_curves                              # the picture, from the tables
    python -m benchmarks.photo_curves --rows data/scores.csv       # names by how often they were seen, first
    python -m benchmarks.photo_curves --share 0.25 --steps 200     # trained on a share first, added to the table

Over time: docs/photo_curve.csv, the log of the shipped weights. The others need `data: photos` fetched and tokenized in
this folder. --rows: what the pipeline scored of val with the shipped weights. --share: the settings of photo_first's
recipe (and its package) save the steps and smaller crops, from the same backbone; the pictures of a share are those of
every larger share, too, and composites, which mix pictures, are left out. Tables go to docs/data, the picture to
docs/photo_curves.svg.
"""

import argparse
import csv
import hashlib
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib.figure import Figure

from benchmarks.graph import TABLES
from promptseg.datasets.records import Sample, read_pictures, read_samples, write_records
from promptseg.datasets.tokenizer import read_tokens, write_tokens
from promptseg.params import FinetuneConfig, load_yaml, params_of, read_paths
from promptseg.params.recipes import read_recipe
from promptseg.quality import answers, pictures_with, read_scored, summary
from promptseg.report.charts import OURS, SVG, THEIRS, to_svg
from promptseg.training.run import run_finetune

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "configs" / "recipes" / "photo_first.yaml"
TIME, SEEN, SHARES = TABLES.parent / "photo_curve.csv", TABLES / "photo_seen.csv", TABLES / "photo_shares.csv"
PICTURE = TABLES.parent / "photo_curves.svg"
SEEN_EDGES = (0, 10, 30, 100)  # pictures of train that show a name
CROPS, SCORED_AT = (160, 192), 256  # px
GROUPS = ("names", "person", "objects")
COLUMNS = ("share", "pictures", "steps", "train_dice", *GROUPS, *(f"train_{name}" for name in GROUPS), "cpu_minutes")


def main() -> None:
    """Measure what is asked for, and draw; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, help="data/scores.csv of the pipeline")
    parser.add_argument("--share", type=float, help="of train's pictures, 0 to 1")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.rows is not None:
        by_sight(arguments.rows).to_csv(SEEN, index=False, lineterminator="\n")
    if arguments.share is not None:
        row = measure(arguments.share, arguments.steps)
        print(row)
        new = not SHARES.exists()
        with SHARES.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
    PICTURE.write_text(draw(), encoding="utf-8")


def by_sight(path: Path) -> pd.DataFrame:
    """Return a row for each of SEEN_EDGES: mIoU of the names seen so often, and of the largest object."""
    samples = read_samples(read_paths(ROOT)["samples"])
    rows = read_scored(path, samples, "val")
    names = rows[rows["phrase_kind"] == "keyword"]
    seen = names["phrase"].map(pictures_with(samples)).fillna(0)
    found = []
    for low, high in pairwise((*SEEN_EDGES, math.inf)):
        group = names[(seen >= low) & (seen < high)]
        means = {key: round(group[key].mean(), 4) for key in ("iou", "largest_object")}
        found.append({"pictures": f"{low} or more" if high == math.inf else f"{low} to {high - 1}",
                      "names": group["phrase"].nunique(), "phrases": len(group), **means})  # fmt: skip
    return pd.DataFrame(found)


def measure(share: float, steps: int) -> dict[str, Any]:
    """Train, and score val and as many pictures of the share itself -> a row of the table."""
    paths = read_paths(ROOT)
    samples, pictures = read_samples(paths["samples"]), read_pictures(paths["objects"])
    tokens = read_tokens(paths["tokens"], len(samples))
    train = share_of({each.image for each in samples if each.split == "train" and "composite" not in each.image}, share)
    kept = [at for at, each in enumerate(samples) if each.image in train or each.split == "val"]
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="promptseg-") as scratch:
        folder = Path(scratch)
        write_records(folder / "samples.jsonl", [samples[at] for at in kept])
        write_tokens(folder / "tokens.npy", tokens[kept])
        run = run_finetune(
            "photo", settings(steps), paths["images"], folder / "samples.jsonl", folder / "tokens.npy",
            folder / "cache", [], folder / "plots" / "metrics",
        )  # fmt: skip
        minutes = (time.process_time() - started) / 60
    dice = [value for row in run.outcome.curve if (value := row.get("mask_dice")) is not None][-50:]
    row: dict[str, Any] = {"share": share, "pictures": len(train), "steps": steps, "cpu_minutes": round(minutes, 1)}
    row["train_dice"] = round(sum(dice) / len(dice), 3)
    network = run.network.eval()
    for prefix, chosen in (("", meant(samples, "val", None)), ("train_", meant(samples, "train", train))):
        asked = [samples[at] for at in chosen]
        split = asked[0].split
        with torch.inference_mode():
            rows = answers(network, paths["images"], asked, pictures, tokens[chosen], split, SCORED_AT, 102)
        figures = summary(rows, {})
        row |= {f"{prefix}{name}": figures[name]["miou"] for name in GROUPS}
    return row


def share_of(images: set[str], share: float) -> set[str]:
    """Return a share of pictures, drawn by the hash of their names."""
    drawn = sorted(images, key=lambda image: hashlib.sha256(image.encode()).hexdigest())
    return set(drawn[: round(share * len(drawn))])


def meant(samples: Sequence[Sample], split: str, images: set[str] | None) -> list[int]:
    """Return the places of phrases that mean something, in a split's pictures or in some of them; one wording each."""
    return [
        at
        for at, each in enumerate(samples)
        if each.split == split and each.means_something and each.sample_id.endswith("-0")
        and (images is None or each.image in images)
    ]  # fmt: skip


def settings(steps: int) -> FinetuneConfig:
    """photo_first's, for fewer steps of smaller crops, validated once, at the end."""
    recipe = {
        key.removeprefix("finetune."): value
        for key, value in read_recipe(ROOT, RECIPE).items()
        if key.startswith("finetune.")
    }
    content = load_yaml(ROOT / "params.yaml")
    section = content["finetune"]
    for key, value in recipe.items():
        part, _, name = key.rpartition(".")
        (section[part] if part else section)[name] = value
    config = params_of(content).finetune
    return replace(
        config, steps=steps, res=CROPS, val_res=SCORED_AT, val_every=steps, val_phrases=60, warmup_steps=20,
        average=0.98, bfloat16=False,
    )  # fmt: skip


def draw() -> str:
    """Return an SVG: val mIoU and the dice loss over all steps of the three runs, and names by how often seen."""
    curve = pd.read_csv(TIME)
    runs = curve.groupby("run", sort=False)["step"].max()
    curve["total"] = curve["step"] + curve["run"].map(runs.cumsum() - runs)
    with mpl.rc_context(SVG):
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        scores, losses, seen = figure.subplots(1, 3)
        for _, run in curve.groupby("run", sort=False):
            validated = run.dropna(subset=["val_miou"])
            scores.plot(validated["total"], validated["val_miou"], color=OURS, marker="o", ms=4)
            losses.plot(run["total"], run["mask_dice"].rolling(20, min_periods=5).mean(), color=OURS)
        scores.set(xlabel="steps of 8 crops, three runs", ylabel="val mIoU, 200 phrases", title="over time")
        losses.set(xlabel="steps of 8 crops, three runs", ylabel="dice loss, mean of 200 steps", title="over time")
        if SEEN.exists():
            table = pd.read_csv(SEEN)
            seen.plot(table["pictures"], table["iou"], color=OURS, marker="o", ms=4, label="photo, fp16")
            seen.plot(
                table["pictures"], table["largest_object"], color=THEIRS, marker="o", ms=4, label="largest object"
            )
            seen.set(xlabel="pictures of train with the name", ylabel="mIoU of names", title="over what was seen")
            seen.legend(fontsize=8.5)
        for axes in (scores, losses, seen):
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return to_svg(figure)


if __name__ == "__main__":
    main()
