"""A whole training run: data, start, loop, and a snapshot folder of its own."""

import csv
from dataclasses import asdict, dataclass
from pathlib import Path

from promptseg.files import atomic_path
from promptseg.params import FinetuneConfig
from promptseg.training.data import GroundingData
from promptseg.training.loop import Outcome, finetune
from promptseg.training.snapshots import fingerprint, open_snapshots
from promptseg.training.start import initial_network
from promptseg.xdecoder.model import XDecoder

CODE = Path(__file__).resolve().parent.parent  # a snapshot made by other code is not resumed
CURVE_COLUMNS = ("step", "loss", "mask_bce", "mask_dice", "contrast", "region", "val_miou")


@dataclass(frozen=True)
class Run:
    """What a run ends with: the network with its best weights, how it got there, and what it started from."""

    network: XDecoder
    outcome: Outcome
    init_sha256: str | None


def run_finetune(model: str, config: FinetuneConfig, images: Path, samples: Path, tokens: Path, snapshots: Path) -> Run:
    """Train on the train split, validate on val; a killed run goes on from its last snapshot below `snapshots`."""
    network, init_sha256 = initial_network(model, config)
    budget = int(config.cache_gib * 2**30)
    train = GroundingData(images, samples, tokens, "train", config.res, budget)
    val = GroundingData(images, samples, tokens, "val", [config.val_res], budget)
    identity = {"model": model, "finetune": asdict(config), "init_sha256": init_sha256}
    name = fingerprint(identity, [samples, tokens, images, *sorted(CODE.rglob("*.py"))])
    with open_snapshots(snapshots, name, config.snapshot_every_s) as state:
        outcome = finetune(network, train, val, config, state)
        state.finish()
    return Run(network, outcome, init_sha256)


def write_curve(path: Path, outcome: Outcome) -> None:
    """Write the curve as CSV, one row a step; empty where a step has no such figure."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, CURVE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in outcome.curve:
            writer.writerow({key: round(value, 5) for key, value in row.items() if value is not None})
