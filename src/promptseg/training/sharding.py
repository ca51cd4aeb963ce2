"""One network over all processes: each holds a shard of every weight, of its gradient and of its moments (FSDP).

A block's weights are put together just before it computes, forward and backward, and let go of behind it. What leaves
the loop, for validation, a snapshot or a checkpoint, is put together first: files are those of a run without shards.
Source: Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (2023); by torch's fully_shard,
which cuts tensors along their first dimension.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from promptseg.networks.xdecoder.model import XDecoder, build_on_meta
from promptseg.training.device import RECOMPUTED
from promptseg.training.processes import average, process_count, process_index, total
from promptseg.training.terms import Objective


def check_shard(wanted: bool, processes: int) -> None:
    """Raise ValueError where `finetune.shard` is `wanted`, and one process would hold it all."""
    if wanted and processes == 1:
        raise ValueError(
            "finetune.shard: got true with one process, wanted several to shard the network over; set "
            "finetune.processes to the number of GPUs, or finetune.shard to false"
        )


def shard(objective: Objective, device: torch.device) -> None:
    """Keep this process's shard of every weight, in place; names stay. Gradients arrive averaged, as DDP's do."""
    network = objective.network
    mesh = init_device_mesh(device.type, (process_count(),))
    wrapped: list[nn.Module] = [module for module in network.modules() if isinstance(module, CheckpointWrapper)]
    blocks = wrapped or [module for module in network.modules() if type(module) in RECOMPUTED]
    for block in (network.text_encoder.token_embedding, *blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh, ignored_params={network.log_temperature})  # which has no dimension to cut
    network.log_temperature.register_hook(average)


def clip_gradients(network: nn.Module, longest: float) -> None:
    """Scale all gradients, in place, such that their norm over the whole network is at most `longest`."""
    gradients = [each.grad for each in network.parameters() if each.grad is not None]
    shards = [each.to_local() for each in gradients if isinstance(each, DTensor)]
    if not shards:
        nn.utils.clip_grad_norm_(network.parameters(), longest)
        return
    whole = [each for each in gradients if not isinstance(each, DTensor)]
    norm_of = nn.utils.get_total_norm
    norm = (total(norm_of(shards).square()) + norm_of(whole).square()).sqrt()
    torch._foreach_mul_([*shards, *whole], (longest / (norm + 1e-6)).clamp(max=1.0))


def whole_network(network: XDecoder) -> XDecoder:
    """The network itself, or of a sharded one, a whole copy on the device, for which all processes must ask at once."""
    weights = network.state_dict()
    if not any(isinstance(each, DTensor) for each in weights.values()):
        return network
    copy = build_on_meta(network.config)
    copy.load_state_dict({key: _whole(value) for key, value in weights.items()}, assign=True)
    return copy.to(network.log_temperature.device)


def whole_state(of: nn.Module | Optimizer) -> dict[str, Any]:
    """Its state_dict, whole; where it is sharded, all processes must ask for it at once.

    Tensors that are put together lie on the processor, of the first process only: the others have None in their places.
    """

    def gather(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = _whole(value)
        return whole.cpu() if process_index() == 0 else None

    state: dict[str, Any] = tree_map(gather, of.state_dict())
    return state


def load_weights(network: XDecoder, weights: dict[str, Tensor]) -> None:
    """Load a whole state_dict into a network, sharded or not."""
    own = network.state_dict()
    network.load_state_dict({key: _shard(value, own[key]) for key, value in weights.items()})


def load_moments(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load a whole state_dict into an optimizer of weights, sharded or not."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    shards = {
        index: {name: _shard(value, weights[index]) for name, value in moments.items()}
        for index, moments in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": shards})


def _whole(value: Tensor) -> Tensor:
    whole: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return whole


def _shard(value: Tensor, like: Tensor) -> Tensor:
    """Cut `value` as `like` is cut -> the shard of this process, on its device; what is not cut stays as it is."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
