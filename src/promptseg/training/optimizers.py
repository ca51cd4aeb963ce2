"""Which optimizer moves which weights: AdamW alone, or Muon for the matrices and AdamW for the rest.

Sources: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); Jordan et al., "Muon: An optimizer for
hidden layers in neural networks" (2024).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from promptseg.networks.network import Network
from promptseg.params import FinetuneConfig, LrScale

BASE_LR = "base_lr"  # of a group: what the schedule scales


def make_optimizers(network: Network, config: FinetuneConfig) -> list[Optimizer]:
    """AdamW over everything, or over all that Muon (`muon_learning_rate`, null: without it) does not take."""
    rate, muon_rate, decay = config.learning_rate, config.muon_learning_rate, config.weight_decay
    by_muon: list[dict[str, Any]] = []
    by_adamw: list[dict[str, Any]] = []
    for (scale, decays), parameters in parameter_groups(network, config.lr_scale).items():
        matrices = [each for each in parameters if decays and each.ndim == 2 and muon_rate is not None]
        rest = [each for each in parameters if not (decays and each.ndim == 2 and muon_rate is not None)]
        if matrices and muon_rate is not None:
            by_muon.append({"params": matrices, "weight_decay": decay, BASE_LR: muon_rate * scale})
        if rest:
            by_adamw.append({"params": rest, "weight_decay": decay if decays else 0.0, BASE_LR: rate * scale})
    muon: list[Optimizer] = [torch.optim.Muon(by_muon, lr=muon_rate)] if muon_rate is not None else []
    return [*muon, torch.optim.AdamW(by_adamw, lr=rate, fused=True)]


def set_learning_rates(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Let every group learn at `factor` (0..1) times its own base rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group[BASE_LR] * factor


def parameter_groups(network: Network, scales: LrScale) -> dict[tuple[float, bool], list[nn.Parameter]]:
    """Group parameters by the scale of their learning rate, and by whether they decay.

    Parameters that are not to learn are in none. Matrices and kernels decay; biases, norms, scales, embeddings and
    query tables are left alone.
    """
    tables = {"text_encoder.positional_embedding", "text_encoder.token_embedding.weight"}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        is_table = name in tables or name.startswith("mask_decoder.query_") or name.endswith("level_embedding")
        scale = {"backbone": scales.backbone, "text_encoder": scales.text_encoder}.get(name.partition(".")[0], 1.0)
        groups[scale, parameter.ndim >= 2 and not is_table].append(parameter)
    return groups
