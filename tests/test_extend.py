"""docs/extend.md, followed to the letter: its network from scratch is trained, exported, and asked."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import random_phrases, random_pictures
from trainings import few_scenes, short_training

from promptseg import load
from promptseg.checkpoints.checkpoint import Provenance, load_checkpoint, save_checkpoint
from promptseg.export.deployed_graph import DEPLOYED
from promptseg.export.onnx_export import MOST_DIFFERING_PIXELS, export_graphs
from promptseg.hubs.base import HubInput
from promptseg.hubs.contract import read_graphs
from promptseg.networks import BUILDERS, FAMILIES, build
from promptseg.training.losses import OBJECTIVES
from promptseg.training.run import run_finetune
from tests.graphs import export_config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extend.md"
RES = 64


@pytest.fixture
def blocks() -> Iterator[dict[str, Any]]:
    """What the page's Python defines; its rows leave the tables again after the test."""
    tables: list[dict[Any, Any]] = [FAMILIES, BUILDERS, OBJECTIVES, DEPLOYED]
    before = [dict(table) for table in tables]
    names: dict[str, Any] = {"__name__": "film"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    yield names
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def test_the_pages_network_goes_through_the_chain(blocks, tmp_path):
    scenes = [few_scenes()[name] for name in ("images", "samples", "tokens")]
    training = replace(short_training(), steps=6, learning_rate=1e-2)
    curve = tmp_path / "plots" / "metrics"
    run = run_finetune("film", training, *scenes, tmp_path / "cache", [], curve)
    assert run.outcome.curve[-1]["mask_dice"] < run.outcome.curve[1]["mask_dice"]

    checkpoint = tmp_path / "film.safetensors"
    save_checkpoint(checkpoint, run.network, Provenance("film", None, {"val_res": RES}, 6, None), torch.float32)
    network, _ = load_checkpoint(checkpoint)
    assert type(network) is blocks["Film"]
    assert network.config == build(BUILDERS["film"](None)).config

    graph = tmp_path / "graphs"
    tokens = random_phrases(1).repeat(2, 1).view(2, 1, -1).numpy()
    sample = HubInput("sample", random_pictures(1, 1024).numpy(), tokens)
    report = export_graphs(
        network,
        RES,
        export_config(),
        [sample],
        graph,
        model="film",
        checkpoint_sha256="ab" * 32,
    )
    assert report.differing_pixels_worst <= MOST_DIFFERING_PIXELS
    assert read_graphs(graph).record.model == "film"

    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    (ours,), (exported,) = (load(path).segment(picture, "the red circle") for path in (checkpoint, graph))
    assert (ours.mask != exported.mask).mean() <= 0.01
