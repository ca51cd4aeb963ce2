"""The training loop: one page, top to bottom."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from promptseg.networks.xdecoder.model import XDecoder
from promptseg.params import FinetuneConfig
from promptseg.training.data import Batch, GroundingData
from promptseg.training.device import prepare_network
from promptseg.training.loading import Steps, batches
from promptseg.training.losses import LossTerms
from promptseg.training.optimizers import make_optimizers, set_learning_rates
from promptseg.training.processes import any_process, average
from promptseg.training.sampling import lr_factor
from promptseg.training.sharding import (
    clip_gradients,
    load_moments,
    load_weights,
    shard,
    whole_network,
    whole_state,
)
from promptseg.training.snapshots import Snapshots
from promptseg.training.terms import Objective
from promptseg.training.validation import validate

Row = dict[str, float | None]
TERMS = tuple(field.name for field in fields(LossTerms))
READ_EVERY = {"cuda": 16, "cpu": 1}  # steps after which losses are read: a GPU must be waited for


@dataclass(frozen=True)
class Splits:
    """What is trained on, what is validated with, and the train split at validation's size (None: not scored)."""

    train: GroundingData
    val: GroundingData
    seen: GroundingData | None


@dataclass(frozen=True)
class Outcome:
    """The best step by validation mIoU (its weights are in the network), and the curve, a row per step.

    `val_miou` is None where nothing was validated.
    """

    step: int
    val_miou: float | None
    curve: list[Row]


def finetune(
    network: XDecoder, splits: Splits, config: FinetuneConfig, snapshots: Snapshots, accelerator: Accelerator
) -> Outcome:
    """Train `network` in place and leave its best weights in it; resume where `snapshots` has a state.

    Raises FloatingPointError with the named terms when the loss is not finite.
    """
    torch.manual_seed(config.seed)
    network.to(accelerator.device).train()
    prepare_network(network, config.compile, config.checkpoint_activations)
    objective = _parallel(Objective(network, config.loss_weights), config.shard, accelerator)
    optimizers = make_optimizers(network, config)
    state = snapshots.restore() or _first_state(network, splits, config, accelerator.device)
    load_weights(network, state.pop("network"))
    for optimizer, saved in zip(optimizers, state.pop("optimizers"), strict=False):  # a first state holds none
        load_moments(optimizer, saved)

    steps = Steps(splits.train, config, accelerator.num_processes, accelerator.process_index)
    todo = range(state["step"], config.steps)
    bar = tqdm(todo, "finetune", config.steps, initial=todo.start, disable=not accelerator.is_main_process)
    unread: list[Tensor] = []
    for step, parts in zip(bar, batches(steps, todo.start, config.workers), strict=True):
        set_learning_rates(optimizers, lr_factor(config, step))
        network.zero_grad(set_to_none=True)
        unread.append(_forward_backward(objective, parts, config, accelerator))
        clip_gradients(network, config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()

        last = step + 1 == config.steps
        validating = last or (step + 1) % config.val_every == 0
        if not validating and (step + 1) % READ_EVERY[accelerator.device.type]:
            continue
        state["curve"] += _read(unread, step, config)
        unread = []
        if validating:
            last |= _score(network, splits, step + 1, state, config, accelerator.device)
        bar.set_postfix(loss=f"{state['curve'][-1]['loss']:.3f}", best_val_miou=f"{state['best_miou']:.3f}")
        if last or any_process(snapshots.due(), accelerator.device):  # all at once: to gather shards takes all
            optimized = [whole_state(optimizer) for optimizer in optimizers]
            state["step"] = config.steps if last else step + 1
            snapshots.save({**state, "network": whole_state(network), "optimizers": optimized})
        if last:  # of all steps, or of patience
            break

    load_weights(network, state["best"])
    return Outcome(state["best_step"], state["best_miou"], state["curve"])


def _parallel(objective: Objective, sharded: bool, accelerator: Accelerator) -> nn.Module:
    """Let the processes train as one: each has a shard of the network, or all of it (DDP); on a GPU, under autocast."""
    if sharded:
        shard(objective, accelerator.device)
    prepared: nn.Module = accelerator.prepare_model(objective, evaluation_mode=sharded)  # True: without DDP
    return prepared


def _forward_backward(
    objective: nn.Module, parts: list[Batch], config: FinetuneConfig, accelerator: Accelerator
) -> Tensor:
    """Add up the gradients of a step's parts -> the means of its terms, [terms], on the device."""
    total = []
    for part in parts:
        ahead = accelerator.no_sync(objective) if part is not parts[-1] else nullcontext()
        with ahead:
            terms: LossTerms = objective(part.to(accelerator.device))
            accelerator.backward(terms.weighted(config.loss_weights) / len(parts))
        total.append(torch.stack([getattr(terms, name) for name in TERMS]).detach())
    return torch.stack(total).mean(0)


def _read(unread: list[Tensor], step: int, config: FinetuneConfig) -> list[Row]:
    """Rows of the steps up to `step`, which is the last of `unread`; the first loss that is not finite ends the run."""
    weights = [getattr(config.loss_weights, name) for name in TERMS]
    rows: list[Row] = []
    for number, values in enumerate(average(torch.stack(unread)).tolist(), start=step + 1 - len(unread)):
        loss = math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
        terms = dict(zip(TERMS, values, strict=True))
        if not math.isfinite(loss):
            raise FloatingPointError(f"step {number}: the loss is {loss} ({terms}); lower learning_rate")
        rows.append({"step": number + 1, "loss": loss, **terms})
    return rows


def _score(
    network: XDecoder, splits: Splits, step: int, state: dict[str, Any], config: FinetuneConfig, device: torch.device
) -> bool:
    """Score the weights after `step`, keep them if none were better; True when patience is at its end."""
    row: Row = state["curve"][-1]
    network = whole_network(network)
    miou = row["val_miou"] = validate(network, splits.val, config.val_res, config.val_phrases, device)
    if splits.seen is not None:
        row["train_miou"] = validate(network, splits.seen, config.val_res, config.train_phrases, device)
    if miou > state["best_miou"]:
        state |= {"best_miou": miou, "best_step": step, "best": _copy(network)}
    late = [each for each in state["curve"] if each.get("val_miou") is not None and each["step"] > state["best_step"]]
    return config.patience is not None and len(late) >= config.patience


def _first_state(network: XDecoder, splits: Splits, config: FinetuneConfig, device: torch.device) -> dict[str, Any]:
    """State before the first step; what we start from is scored, so that training can never make it worse."""
    network = whole_network(network)
    weights = _copy(network)
    state: dict[str, Any] = {
        "step": 0, "network": weights, "optimizers": [], "curve": [{"step": 0, "loss": None}],
        "best": weights, "best_step": 0, "best_miou": -1.0,
    }  # fmt: skip
    _score(network, splits, 0, state, config, device)
    return state


def _copy(network: XDecoder) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
