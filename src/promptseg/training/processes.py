"""Where and how a network trains: device, number format, compilation, memory, and several processes as one.

Under data parallelism gradients are averaged over processes. A loss is therefore written as each process's own part of
the global sum, divided by the global count and multiplied by the number of processes: the average is then the gradient
that one process would have had.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.utils.checkpoint import checkpoint

from promptseg.networks.network import Network

LAUNCHER = "PROMPTSEG_LAUNCHER"  # an environment variable: which machines train is no setting of the experiment


def make_accelerator(bfloat16: bool) -> Accelerator:
    """CUDA in bfloat16 where there is a GPU (one for each process that was launched), else the processor.

    That computes in float32, or in `bfloat16`.
    """
    on_gpu = torch.cuda.is_available()
    return Accelerator(cpu=not on_gpu, mixed_precision="bf16" if on_gpu or bfloat16 else "no")


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


def from_first(make: Callable[[], Any]) -> Any:
    """Return on all processes what `make` gives on the first, where alone it is called: one disk may know a state."""
    if process_count() == 1:
        return make()
    box = [make() if process_index() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def relaunched(processes: int, module: str, arguments: Sequence[str]) -> bool:
    """Run `python -m module arguments` again in several processes, and return True when they are done.

    These are `processes` on this machine, or what the environment's LAUNCHER starts, over several machines too: the
    beginning of a command line of torchrun or `accelerate launch`. False, and nothing is run, where one process is
    enough or where this is one of several. Raises ValueError when there are fewer GPUs, when there is no such program,
    or when a process fails (each has said why).
    """
    launcher = os.environ.get(LAUNCHER)
    if "WORLD_SIZE" in os.environ or (processes == 1 and not launcher):
        return False
    if launcher:
        launch, name = shlex.split(launcher), f"{LAUNCHER}: {launcher!r}"
    else:
        name = f"finetune.processes: {processes}"
        if torch.cuda.is_available() and processes > torch.cuda.device_count():
            raise ValueError(
                f"finetune.processes: got {processes}, wanted at most {torch.cuda.device_count()}, the number of GPUs "
                "here: each process takes one"
            )
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    try:
        done = subprocess.run([*launch, "--module", module, *arguments], check=False)
    except OSError as error:
        raise ValueError(
            f"{name}: got a program that cannot be run ({error}), wanted torchrun or one like it"
        ) from error
    if done.returncode:
        raise ValueError(f"{name}: a process failed, or was not met by the others (status {done.returncode})")
    return True
