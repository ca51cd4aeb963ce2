"""A data set of a few scenes, and a training so short that a test can run it several times."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.datasets.records import Split, read_samples
from promptseg.datasets.tokenizer import ClipTokenizer
from promptseg.params import FinetuneConfig, LossWeights, LrScale, ShapesConfig
from promptseg.sources.shapes import build_shapes
from promptseg.training.data import GroundingData
from promptseg.training.loop import Splits

_SCENES = ShapesConfig("shapes", 11, 6, 2, 1, objects_min=2, objects_max=3, targets_per_scene=2)
_CONFIG = FinetuneConfig(
    init=None,
    watch="weights",
    attends="inside",
    mask_resize="bilinear",
    seed=3,
    steps=5,
    res=(64, 81),
    batch_size=2,
    phrases_per_picture=3,
    accumulate=1,
    learning_rate=1e-3,
    muon_learning_rate=None,
    lr_scale=LrScale(1.0, 1.0),
    frozen=(),
    lr_milestones=(),
    weight_decay=0.05,
    warmup_steps=2,
    clip_norm=1.0,
    loss_weights=LossWeights(mask_bce=5.0, mask_dice=5.0, contrast=2.0, region=2.0),
    val_res=64,
    val_every=2,
    val_phrases=6,
    train_phrases=0,
    patience=None,
    flip=False,
    zoom=(1.0, 1.0),
    crop=None,
    colour=0.0,
    absent_share=0.0,
    average=0.0,
    bfloat16=False,
    processes=1,
    workers=0,
    compile=False,
    checkpoint_activations=False,
    snapshot_every_s=1e9,
    cache_gib=0.1,
)


def short_training(**changes: Any) -> FinetuneConfig:
    """Five steps on two pictures each, and a snapshot after the last one only."""
    return replace(_CONFIG, **{"watch": str(Path(changes.get("init") or "weights/a").parent), **changes})


@cache
def few_scenes() -> dict[str, Path]:
    """Make six scenes to train on and two to validate with; the files last as long as the process."""
    folder = Path(_folder().name)
    paths = {"images": folder / "images", "samples": folder / "samples.jsonl", "tokens": folder / "tokens.npy"}
    build_shapes(_SCENES, paths["images"], paths["samples"], folder / "objects.jsonl")
    np.save(paths["tokens"], ClipTokenizer().encode_all([sample.phrase for sample in read_samples(paths["samples"])]))
    return paths


def splits(config: FinetuneConfig) -> Splits:
    """Open the scenes as a training does; what was prepared once stays prepared."""
    scored = _open("train", (config.val_res,)) if config.train_phrases else None
    return Splits(_open("train", config.res), _open("val", (config.val_res,)), scored)


@cache
def _open(split: Split, sizes: tuple[int, ...]) -> GroundingData:
    return GroundingData(**few_scenes(), split=split, sizes=sizes, cache_bytes=10**8, canvas_rule="crop")


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="few-scenes-")
