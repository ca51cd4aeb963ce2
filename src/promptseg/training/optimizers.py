"""Who moves which weights: AdamW, or Muon for the matrices and AdamW for the rest.

Sources: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); Jordan et al., "Muon: An optimizer for
hidden layers in neural networks" (2024).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from promptseg.params import FinetuneConfig
from promptseg.xdecoder.model import XDecoder

BASE_RATE = "base_rate"  # of a group: what the schedule scales


def make_optimizers(network: XDecoder, config: FinetuneConfig) -> list[Optimizer]:
    """AdamW over everything, or over all that Muon (`muon_learning_rate`, null: without it) does not take."""
    groups = parameter_groups(network, config.weight_decay)
    optimizers: list[Optimizer] = []
    if config.muon_learning_rate is not None:
        matrices = [parameter for parameter in groups[0]["params"] if parameter.ndim == 2]
        groups[0]["params"] = [parameter for parameter in groups[0]["params"] if parameter.ndim != 2]
        optimizers.append(
            torch.optim.Muon(
                [{"params": matrices, BASE_RATE: config.muon_learning_rate}],
                lr=config.muon_learning_rate,
                weight_decay=config.weight_decay,
            )
        )
    for group in groups:
        group[BASE_RATE] = config.learning_rate
    optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, fused=True))
    return optimizers


def set_rates(optimizers: Sequence[Optimizer], share: float) -> None:
    """Let every group learn at `share` (0..1) of its own base rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group[BASE_RATE] * share


def parameter_groups(network: XDecoder, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and kernels; leave biases, norms, scales, embeddings and query tables alone."""
    kept_whole = {"text_encoder.positional_embedding", "text_encoder.token_embedding.weight"}
    decayed: list[nn.Parameter] = []
    whole: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        is_table = name in kept_whole or name.startswith("mask_decoder.query_") or name.endswith("level_embedding")
        (whole if parameter.ndim < 2 or is_table else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": whole, "weight_decay": 0.0}]
