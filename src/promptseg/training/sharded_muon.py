"""Muon for matrices that are sharded over processes."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz


class ShardedMuon(torch.optim.Muon):
    """torch's Muon, with the same steps and state: momenta stay sharded, each update is put together once.

    It must be whole for its singular values to become equal. torch's own step gets there too, but one matrix product
    after the other, with 11 to 16 exchanges between the processes for each matrix.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Move every matrix that has a gradient; all processes at once."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)

    def _move(self, weight: DTensor, gradient: DTensor, group: dict[str, Any]) -> None:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        whole = cast(DTensor, gradient.lerp(momentum, group["momentum"])).full_tensor()
        update = _zeropower_via_newtonschulz(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])
        part = distribute_tensor(update, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(part, alpha=-_adjust_lr(group["lr"], group["adjust_lr_fn"], weight.shape))
