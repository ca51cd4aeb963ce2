"""A whole training run: data, the weights to start from, the loop, and a snapshot folder of its own."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from promptseg.checkpoints.start import starting_point
from promptseg.files import write_json
from promptseg.networks.network import Network
from promptseg.params import FinetuneConfig
from promptseg.training.curve import DIGITS, LiveCurve
from promptseg.training.data import GroundingData
from promptseg.training.loop import Outcome, Splits, finetune
from promptseg.training.processes import make_accelerator
from promptseg.training.snapshots import fingerprint, open_snapshots


@dataclass(frozen=True)
class Run:
    """What a run ends with: the network with its best weights, how it got there, and what it started from.

    `writes` is True in one of the processes that trained together; it alone stores the results.
    """

    network: Network
    outcome: Outcome
    init_sha256: str | None
    writes: bool
    ledger: dict[str, Any]


def run_finetune(
    model: str,
    config: FinetuneConfig,
    images: Path,
    samples: Path,
    tokens: Path,
    cache: Path,
    code: Sequence[Path],
    curve: Path,
) -> Run:
    """Train on the train split, validate on val; a killed run goes on from its last snapshot below `cache`.

    `code` are the files and folders of code that decide the result: a snapshot that other code made is not resumed.
    The curve is written to the folder `curve` while it grows. Without steps nothing is trained, and nothing validated
    either: that would take a large network longer than all the rest of the chain, which scores what it deploys anyway.

    Raises ValueError for whatever params.yaml asks for that cannot be had, a GPU's memory included.
    """
    accelerator = make_accelerator(config.bfloat16)
    writes = accelerator.is_main_process
    start = starting_point(model, config, cache / "init")
    if config.steps == 0:
        outcome = Outcome(0, None, [{"step": 0}])
        LiveCurve(curve if writes else None, outcome.curve).close()
        return Run(start.network, outcome, start.init_sha256, writes, start.ledger)
    budget = int(config.cache_gib * 2**30)
    open_split = partial(GroundingData, images, samples, tokens, canvas_rule=start.network.canvas_rule)
    splits = Splits(
        train=open_split("train", config.res, budget),
        val=open_split("val", [config.val_res], budget),
        train_scored=open_split("train", [config.val_res], 0) if config.train_phrases else None,
    )
    identity = {"model": model, "finetune": asdict(config), "init_sha256": start.init_sha256}
    name = fingerprint(identity, [samples, tokens, images, *code])
    with open_snapshots(cache / "finetune", name, config.snapshot_every_s, writes=writes) as snapshots:
        accelerator.wait_for_everyone()  # until the one that writes has the folder to itself
        try:
            outcome = finetune(start.network, splits, config, snapshots, accelerator, curve)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"finetune: the GPU's memory is full ({str(error).splitlines()[0]}); raise finetune.accumulate, set "
                "finetune.checkpoint_activations, or lower finetune.batch_size or finetune.res"
            ) from error
        snapshots.finish()
    return Run(start.network, outcome, start.init_sha256, writes, start.ledger)


def write_summary(path: Path, outcome: Outcome) -> None:
    """Write the best step's scores as JSON; `overfit_miou` is what the trained pictures score above the others."""
    best = next(row for row in outcome.curve if row["step"] == outcome.step)
    val_miou, train_miou = outcome.val_miou, best.get("train_miou")
    summary = {
        "best_step": outcome.step,
        "steps": outcome.curve[-1]["step"],
        "val_miou": None if val_miou is None else round(val_miou, DIGITS),
        "train_miou": None if train_miou is None else round(train_miou, DIGITS),
        "overfit_miou": None if train_miou is None or val_miou is None else round(train_miou - val_miou, DIGITS),
    }
    write_json(path, summary)
