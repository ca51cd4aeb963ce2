"""What the two ways from mask logits to the canvas are worth, where 4 does not divide the network's side.

    python -m benchmarks.canvas_rules --res 590 --phrases 120

Scores the same weights on the same phrases of data/samples.jsonl by both rules of `XDecoderConfig.canvas_rule`: mIoU by
each, the difference with its 95 % interval over pictures, and the IoU between the two masks.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from tqdm import tqdm

from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import CANVAS, mask_to_canvas, picture_to_canvas, read_picture
from promptseg.datasets.records import read_samples
from promptseg.datasets.tokenizer import read_tokens
from promptseg.metrics import bootstrap_interval, overlap
from promptseg.networks.xdecoder.model import CanvasRule, resize_canvas
from promptseg.params import read_paths

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Score, and print a line for each res."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "nano-shapes.safetensors")
    parser.add_argument("--res", type=int, nargs="+", default=[590])
    parser.add_argument("--phrases", type=int, default=120, help="of val, from its beginning")
    options = parser.parse_args()
    network, _ = load_checkpoint(options.weights)
    configs = {rule: replace(network.config, canvas_rule=rule) for rule in get_args(CanvasRule)}
    paths = read_paths(ROOT)
    samples = read_samples(paths["samples"])
    tokens = torch.from_numpy(read_tokens(paths["tokens"], len(samples)))
    rows = [row for row, sample in enumerate(samples) if sample.split == "val"][: options.phrases]
    archives = PictureArchives(paths["images"])
    for res in options.res:
        ious: dict[CanvasRule, list[float]] = {rule: [] for rule in configs}
        between = []
        for row in tqdm(rows, f"{res} px"):
            sample = samples[row]
            canvas = picture_to_canvas(read_picture(archives.read(sample.image), sample.image))
            picture = resize_canvas(torch.from_numpy(canvas).float()[None], res)
            truth = mask_to_canvas(sample.mask.to_mask())
            masks = []
            for rule, config in configs.items():
                network.config = config
                with torch.inference_mode():
                    masks.append((network.predict(picture, tokens[row, :1], CANVAS).mask_logits[0] > 0).numpy())
                ious[rule].append(overlap(masks[-1], truth).iou)
            between.append(overlap(*masks).iou)
        difference = np.subtract(ious["stretch"], ious["crop"])
        low, high = bootstrap_interval(list(difference), [samples[row].image for row in rows], seed=0)
        means = ", ".join(f"{rule} {np.mean(values):.3f}" for rule, values in ious.items())
        print(
            f"{res} px, {len(rows)} phrases: mIoU {means}; stretch minus crop {difference.mean():+.3f} "
            f"({low:+.3f} to {high:+.3f}); IoU between them {np.mean(between):.3f}"
        )


if __name__ == "__main__":
    main()
