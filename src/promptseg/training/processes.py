"""Several processes that train as one: exact means over all of them, and how they are started.

Under data parallelism gradients are averaged over processes. A loss is therefore written as each process's own part of
the global sum, divided by the global count and multiplied by the number of processes: the average is then the gradient
that one process would have had.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


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


def any_process(found: bool, device: torch.device) -> bool:
    """Whether it is `found` in any process, the same answer in all of them."""
    return bool(total(torch.tensor(float(found), device=device)))


def relaunched(processes: int, module: str, arguments: Sequence[str]) -> bool:
    """Run `python -m module arguments` again in so many processes; False: that is where we are, or one is enough.

    `accelerate launch` starts them alike, over several machines too.

    Raises ValueError when one of them fails; each has said why.
    """
    if processes == 1 or "WORLD_SIZE" in os.environ:
        return False
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run([*launch, "--module", module, *arguments], check=False)
    if done.returncode:
        raise ValueError(f"finetune.processes: one of {processes} processes ended with status {done.returncode}")
    return True
