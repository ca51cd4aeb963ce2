"""The stage without steps: a published file becomes a checkpoint of ours, with its ledger, by either rule."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.checkpoints.published import restore
from promptseg.files import sha256_of
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder, nano
from tests.projects import copy_parts, edit_yaml, run_stage

RULES = [MaskAttention("inside", "bicubic"), MaskAttention("outside", "bilinear")]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.attends)
def test_no_steps_convert_a_published_file(tmp_path: Path, rule: MaskAttention) -> None:
    torch.manual_seed(1)
    network = XDecoder(nano(rule))
    published = tmp_path / "published.pt"
    torch.save({"model": restore(network.state_dict(), network.config, None), "iteration": 9}, published)
    project = copy_parts(tmp_path / "project")
    changes = {
        "init": str(published),
        "watch": str(published),
        "steps": 0,
        "attends": rule.attends,
        "mask_resize": rule.resize,
    }
    edit_yaml(project / "params.yaml", {f"finetune.{key}": value for key, value in changes.items()})
    done = run_stage(project, "finetune")
    assert done.returncode == 0, done.stderr
    converted, provenance = load_checkpoint(project / "models/finetuned.safetensors")
    assert converted.config == replace(nano(rule), canvas_rule="stretch")
    for key, value in network.state_dict().items():
        assert torch.equal(converted.state_dict()[key], value), key
    assert (provenance.init_sha256, provenance.step, provenance.val_miou) == (sha256_of(published), 0, None)
    ledger = json.loads((project / "models/finetuned.ledger.json").read_text(encoding="utf-8"))
    assert (ledger["kind"], ledger["sha256"]) == ("published", sha256_of(published))
    assert list(ledger["beside_the_model"]) == ["iteration"]
    assert len(ledger["renamed"]) + len(ledger["transformed"]) == len(network.state_dict())
    assert json.loads((project / "metrics/train.json").read_text(encoding="utf-8"))["val_miou"] is None


@pytest.mark.slow
def test_a_published_file_of_another_model_is_refused_before_any_work(tmp_path: Path) -> None:
    published = tmp_path / "published.pt"
    torch.save({"backbone.blocks.0.norm1.bias": torch.ones(768)}, published)
    project = copy_parts(tmp_path / "project")
    changes = {"finetune.init": str(published), "finetune.watch": str(tmp_path), "finetune.steps": 0}
    edit_yaml(project / "params.yaml", changes)
    done = run_stage(project, "finetune")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: finetune.init, for model 'nano': {published}: got a published checkpoint of 1 keys")
    assert "not understood: backbone.blocks.0.norm1.bias" in line
    assert not (project / "models").exists()
