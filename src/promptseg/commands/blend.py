"""blend: average the weights of checkpoints that were trained one on top of another, which often see more than each.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models" (2022). Where the network has a
bias of its masks, it is set anew on val of the pipeline's data.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from promptseg.commands import say
from promptseg.commands.project import project_root
from promptseg.params import read_params, read_paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("out", type=Path, help="the .safetensors to write")
    parser.add_argument("checkpoints", type=Path, nargs="+", help="two .safetensors or more, of one architecture")
    parser.add_argument("--data", type=Path, help="folder with images, samples.jsonl and tokens.npy")


def run(options: argparse.Namespace) -> int:
    """Average, calibrate, write, and tell."""
    import torch  # seconds: not before the command line is understood

    from promptseg.checkpoints.checkpoint import load_checkpoint, save_checkpoint
    from promptseg.training.data import GroundingData
    from promptseg.training.validation import calibrate_masks, validate

    if options.out.suffix != ".safetensors":
        raise ValueError(f"out: got {options.out}, wanted a name that ends with .safetensors")
    if len(options.checkpoints) < 2:
        raise ValueError(f"checkpoints: got {len(options.checkpoints)}, wanted two or more")
    (network, provenance), *others = (load_checkpoint(path) for path in options.checkpoints)
    for path, (other, _) in zip(options.checkpoints[1:], others, strict=True):
        if other.config != network.config:
            raise ValueError(f"{path}: got another architecture than {options.checkpoints[0]}, wanted the same")
    states = [each.state_dict() for each in (network, *(other for other, _ in others))]
    network.load_state_dict({key: sum(state[key] for state in states) / len(states) for key in states[0]})
    root = project_root()
    config, paths = read_params(root).finetune, read_paths(root)
    images, samples, tokens = (
        (paths["images"], paths["samples"], paths["tokens"])
        if options.data is None
        else (options.data / name for name in ("images", "samples.jsonl", "tokens.npy"))
    )
    val = GroundingData(images, samples, tokens, "val", [config.val_res], 0, network.canvas_rule)
    device = torch.device("cpu")
    calibrate_masks(network, val, config.val_res, config.val_phrases, device)
    miou = round(validate(network, val, config.val_res, config.val_phrases, device), 5)
    blended = replace(
        provenance, val_miou=miou, params=provenance.params | {"blended": [str(p) for p in options.checkpoints]}
    )
    save_checkpoint(options.out, network, blended, torch.float16)
    say(f"{options.out}: mean of {len(states)} checkpoints, val mIoU {miou} ({config.val_phrases} phrases at most)")
    return 0
