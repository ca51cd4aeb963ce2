"""finetune: train the network (or, with `finetune.steps: 0`, only convert and store what it starts from)."""

import sys
from dataclasses import asdict
from pathlib import Path

import torch

from promptseg.checkpoints.checkpoint import Provenance, save_checkpoint
from promptseg.files import write_json
from promptseg.params import read_code, read_params
from promptseg.training.processes import relaunched
from promptseg.training.run import run_finetune, write_summary
from stages import CACHE, ROOT, run_stage


def finetune(
    images: Path, samples: Path, tokens: Path, checkpoint: Path, ledger: Path, curve: Path, training: Path
) -> None:
    """See the module."""
    params = read_params(ROOT)
    if relaunched(params.finetune.processes, "stages.finetune", sys.argv[1:]):
        return
    code = read_code(ROOT, "finetune")
    run = run_finetune(params.model, params.finetune, images, samples, tokens, CACHE, code, curve)
    if not run.writes:
        return
    provenance = Provenance(
        params.model, run.init_sha256, asdict(params.finetune), run.outcome.step, run.outcome.val_miou
    )
    save_checkpoint(checkpoint, run.network, provenance, torch.float32)
    write_json(ledger, run.ledger)
    write_summary(training, run.outcome)


if __name__ == "__main__":
    run_stage(finetune, __doc__, "images", "samples", "tokens", "checkpoint", "ledger", "curve", "training")
