"""Who moves which weights: AdamW, or Muon for the matrices and AdamW for the rest.

Sources: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); Jordan et al., "Muon: An optimizer for
hidden layers in neural networks" (2024).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from promptseg.networks.xdecoder.model import XDecoder
from promptseg.params import FinetuneConfig, LrScale
from promptseg.training.sharded_muon import ShardedMuon

BASE_LR = "base_lr"  # of a group: what the schedule scales


def make_optimizers(network: XDecoder, config: FinetuneConfig) -> list[Optimizer]:
    """AdamW over everything, or over all that Muon (`muon_learning_rate`, null: without it) does not take."""
    rate, muon_rate, decay = config.learning_rate, config.muon_learning_rate, config.weight_decay
    by_muon: list[dict[str, Any]] = []
    by_adamw: list[dict[str, Any]] = []
    for (share, decays), parameters in parameter_groups(network, config.lr_scale).items():
        matrices = [each for each in parameters if decays and each.ndim == 2 and muon_rate is not None]
        rest = [each for each in parameters if not (decays and each.ndim == 2 and muon_rate is not None)]
        if matrices and muon_rate is not None:
            by_muon.append({"params": matrices, "weight_decay": decay, BASE_LR: muon_rate * share})
        # Scalars cannot be sharded, and AdamW takes no mixture of sharded and whole weights in one group.
        scalars, others = ([each for each in rest if (each.ndim == 0) is scalar] for scalar in (True, False))
        for group in filter(None, (others, scalars)):
            by_adamw.append({"params": group, "weight_decay": decay if decays else 0.0, BASE_LR: rate * share})
    kind = ShardedMuon if config.shard else torch.optim.Muon
    muon: list[Optimizer] = [kind(by_muon, lr=muon_rate)] if muon_rate is not None else []
    return [*muon, torch.optim.AdamW(by_adamw, lr=rate, fused=True)]


def set_learning_rates(optimizers: Sequence[Optimizer], share: float) -> None:
    """Let every group learn at `share` (0..1) of its own base rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group[BASE_LR] * share


def parameter_groups(network: XDecoder, shares: LrScale) -> dict[tuple[float, bool], list[nn.Parameter]]:
    """By share of the learning rate, and by whether they decay.

    Matrices and kernels do; biases, norms, scales, embeddings and query tables are left alone.
    """
    tables = {"text_encoder.positional_embedding", "text_encoder.token_embedding.weight"}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        is_table = name in tables or name.startswith("mask_decoder.query_") or name.endswith("level_embedding")
        share = {"backbone": shares.backbone, "text_encoder": shares.text_encoder}.get(name.partition(".")[0], 1.0)
        groups[share, parameter.ndim >= 2 and not is_table].append(parameter)
    return groups
