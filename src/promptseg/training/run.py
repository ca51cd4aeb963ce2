"""A whole training run: data, start, loop, and a snapshot folder of its own."""

import csv
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from promptseg.checkpoints.start import starting_point
from promptseg.files import atomic_path, write_json
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.params import FinetuneConfig
from promptseg.training.data import GroundingData
from promptseg.training.device import make_accelerator
from promptseg.training.loop import TERMS, Outcome, Splits, finetune
from promptseg.training.sharding import check_shard, whole_network
from promptseg.training.snapshots import fingerprint, open_snapshots

CODE = Path(__file__).resolve().parent.parent  # a snapshot made by other code is not resumed
CURVE_COLUMNS = ("step", "loss", *TERMS, "val_miou", "train_miou")


@dataclass(frozen=True)
class Run:
    """What a run ends with: the network with its best weights, how it got there, and what it started from.

    `writes` is True in one of the processes that trained together; it alone stores the results.
    """

    network: XDecoder
    outcome: Outcome
    init_sha256: str | None
    writes: bool
    ledger: dict[str, Any]


def run_finetune(model: str, config: FinetuneConfig, images: Path, samples: Path, tokens: Path, cache: Path) -> Run:
    """Train on the train split, validate on val; a killed run goes on from its last snapshot below `cache`.

    Without steps nothing is trained, and nothing validated either: that would take a large network longer than all the
    rest of the chain, which scores what it deploys anyway.
    """
    accelerator = make_accelerator()
    check_shard(config.shard, accelerator.num_processes)
    writes = accelerator.is_main_process
    start = starting_point(model, config, cache / "init")
    if config.steps == 0:
        return Run(start.network, Outcome(0, None, [{"step": 0}]), start.init_sha256, writes, start.ledger)
    budget = int(config.cache_gib * 2**30)
    open_split = partial(GroundingData, images, samples, tokens, canvas_rule=start.network.config.canvas_rule)
    splits = Splits(
        train=open_split("train", config.res, budget),
        val=open_split("val", [config.val_res], budget),
        seen=open_split("train", [config.val_res], 0) if config.train_phrases else None,
    )
    identity = {"model": model, "finetune": asdict(config), "init_sha256": start.init_sha256}
    name = fingerprint(identity, [samples, tokens, images, *sorted(CODE.rglob("*.py"))])
    with open_snapshots(cache / "finetune", name, config.snapshot_every_s, writes=writes) as state:
        accelerator.wait_for_everyone()  # until the one that writes has the folder to itself
        outcome = finetune(start.network, splits, config, state, accelerator)
        state.finish()
    return Run(whole_network(start.network), outcome, start.init_sha256, writes, start.ledger)


def write_curve(path: Path, outcome: Outcome) -> None:
    """Write the curve as CSV, one row a step; empty where a step has no such figure."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, CURVE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in outcome.curve:
            writer.writerow({key: round(value, 5) for key, value in row.items() if value is not None})


def write_summary(path: Path, outcome: Outcome) -> None:
    """Write the best step's scores as JSON; `overfit_miou` is what the trained pictures score above the others."""
    best = next(row for row in outcome.curve if row["step"] == outcome.step)
    val_miou, train_miou = outcome.val_miou, best.get("train_miou")
    summary = {
        "best_step": outcome.step,
        "steps": outcome.curve[-1]["step"],
        "val_miou": None if val_miou is None else round(val_miou, 5),
        "train_miou": None if train_miou is None else round(train_miou, 5),
        "overfit_miou": None if train_miou is None or val_miou is None else round(train_miou - val_miou, 5),
    }
    write_json(path, summary)
