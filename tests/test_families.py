"""predict and the demo's page with each family of networks, from a checkpoint and from the exported graph."""

import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import PAPER_RULE, drawn, micro, random_phrases, random_pictures
from PIL import Image

from promptseg.__main__ import main
from promptseg.checkpoints.checkpoint import Provenance, save_checkpoint
from promptseg.demo.server import PICTURE_TYPE, DemoServer
from promptseg.export.onnx_export import export_graphs
from promptseg.hubs.base import HubInput
from promptseg.inference.model import load
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.timm_backbone import timm_config
from tests.graphs import export_config
from tests.test_clipseg import drawn as drawn_clipseg
from tests.test_clipseg import tiny

RES = 64


def on_timm() -> Network:
    """The micro decoders on a small backbone of timm's, as `mobile` stands on a larger one."""
    return drawn(replace(micro(PAPER_RULE), backbone=timm_config("test_efficientnet")), 0)


@pytest.mark.parametrize(("model", "build"), [("mobile", on_timm), ("clipseg", lambda: drawn_clipseg(tiny()))])
def test_each_answers_predict_and_the_demo(model: str, build: Callable[[], Network], tmp_path: Path) -> None:
    network = build()
    checkpoint, graphs = tmp_path / f"{model}.safetensors", tmp_path / "graphs"
    save_checkpoint(checkpoint, network, Provenance(model, None, {"val_res": RES}, 0, None), torch.float32)
    tokens = random_phrases(1).repeat(2, 1).view(2, 1, -1).numpy()
    sample = HubInput("sample", random_pictures(1, 1024).numpy(), tokens)
    export_graphs(network, RES, export_config(), [sample], graphs, model=model, checkpoint_sha256="ab" * 32)

    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    picture = tmp_path / "picture.png"
    Image.fromarray(pixels).save(picture)
    out = tmp_path / "out"
    for number, asked in enumerate((checkpoint, graphs)):
        folder = out / str(number)
        assert main(["predict", str(picture), "the cup", "--model", str(asked), "--out", str(folder), "--mask"]) == 0
    masks = [np.asarray(Image.open(each / "picture.png-1-the-cup.mask.png")) for each in (out / "0", out / "1")]
    assert masks[0].shape == (48, 64)
    assert (masks[0] != masks[1]).mean() <= 0.01

    with DemoServer(load(checkpoint), 0) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        connection = http.client.HTTPConnection(*served.server_address[:2], timeout=60)
        connection.request("POST", "/ask?phrase=the%20cup", picture.read_bytes(), {"Content-Type": PICTURE_TYPE})
        told = json.loads(connection.getresponse().read())
        served.shutdown()
    assert told["area_pixels"] == np.count_nonzero(masks[0])
