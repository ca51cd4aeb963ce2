"""Where and how a network trains: device, number format, compilation, memory, and several processes as one.

Under data parallelism gradients are averaged over processes. A loss is therefore written as each process's own part of
the global sum, divided by the global count and multiplied by the number of processes: the average is then the gradient
that one process would have had.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.utils.checkpoint import checkpoint

from promptseg.networks.network import Network


def make_accelerator() -> Accelerator:
    """CUDA in bfloat16 where there is a GPU (one for each process that was launched), else the processor in float32."""
    on_gpu = torch.cuda.is_available()
    return Accelerator(cpu=not on_gpu, mixed_precision="bf16" if on_gpu else "no")


def prepare_network(network: Network, compiled: bool, checkpoint_activations: bool) -> None:
    """Change how the network computes, not what, in place; names of weights stay.

    Blocks hold no activations where `checkpoint_activations`; the parts with static shapes are compiled.
    """
    if checkpoint_activations:
        for block in network.blocks():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if compiled:
        for part in network.static_parts():
            part.compile()


def process_count() -> int:
    """How many processes train together; 1 where none was launched."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def gathered(x: Tensor) -> Tensor:
    """Concatenate every process's [N, ...] to [processes * N, ...]; gradients find their way back."""
    return x if process_count() == 1 else torch.cat(all_gather(x.contiguous()))


def mean_over_all(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the values of all processes: this one's part of it, times their number (see the module)."""
    return (values * weights).sum() * process_count() / total(weights.sum())


def total(values: Tensor) -> Tensor:
    """Sum of a tensor over processes, without gradient."""
    if process_count() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def average(values: Tensor) -> Tensor:
    """Mean over processes: a global mean again, of `mean_over_all`'s parts."""
    return total(values) / process_count()


def relaunched(processes: int, module: str, arguments: Sequence[str]) -> bool:
    """Run `python -m module arguments` again in so many processes, and return True when they are done.

    False, and nothing is run, where one process is enough or where this is one of several: `accelerate launch` starts
    them alike, over several machines too. Raises ValueError when there are fewer GPUs, or when a process fails (each
    has said why).
    """
    if processes == 1 or "WORLD_SIZE" in os.environ:
        return False
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ValueError(
            f"finetune.processes: got {processes}, wanted at most {torch.cuda.device_count()}, the number of GPUs "
            "here: each process takes one"
        )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run([*launch, "--module", module, *arguments], check=False)
    if done.returncode:
        raise ValueError(f"finetune.processes: one of {processes} processes ended with status {done.returncode}")
    return True
