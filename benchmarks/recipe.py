"""A published checkpoint with made-up weights: the true names and shapes of one, and values that anyone can make again.

    python -m benchmarks.recipe --model focal_t focal_t_made_up.pt

The values say nothing about quality; they are for timing the whole chain, and for testing the conversion, without a
download. `draw` is the recipe of the parity fixtures in tests/data.
"""

import argparse
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from promptseg.checkpoints.published import published_shapes
from promptseg.files import atomic_path
from promptseg.networks import BUILDERS
from promptseg.networks.xdecoder.mask_decoder import MaskAttention


def draw(key: str, shape: Sequence[int], seed: int) -> Tensor:
    """Float32 [*shape], decided by key and seed: kernels of variance 1 / inputs, norms near 1, biases near 0."""
    generator = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    z = np.asarray(generator.standard_normal(size=tuple(shape)), np.float32)
    if len(shape) >= 2:
        return torch.from_numpy(z / np.sqrt(np.prod(shape[1:])).astype(np.float32))
    if not shape:
        return torch.ones(())
    return torch.from_numpy(np.float32(0.05) * z if key.endswith("bias") else 1 + np.float32(0.1) * z)


def made_up(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Weights for keys and their shapes."""
    return {key: draw(key, shape, seed) for key, shape in shapes.items()}


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BUILDERS, default="focal_t")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    config = BUILDERS[arguments.model](MaskAttention("inside", "bicubic"))  # the rule changes no weight's shape
    with atomic_path(arguments.target) as temporary:
        torch.save(made_up(published_shapes(config), arguments.seed), temporary)


if __name__ == "__main__":
    main()
