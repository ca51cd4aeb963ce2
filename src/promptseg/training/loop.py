"""The training loop: one page, top to bottom."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from promptseg.networks import build
from promptseg.networks.network import Network
from promptseg.params import FinetuneConfig
from promptseg.training.curve import TERMS, LiveCurve, Row
from promptseg.training.data import Batch, GroundingData, Steps, batches
from promptseg.training.losses import LossTerms, Objective
from promptseg.training.optimizers import make_optimizers, set_learning_rates
from promptseg.training.processes import average, from_first, prepare_network
from promptseg.training.sampling import lr_factor
from promptseg.training.snapshots import Snapshots
from promptseg.training.validation import calibrate_masks, validate

READ_EVERY = {"cuda": 16, "cpu": 1}  # steps after which losses are read: a GPU must be waited for


@dataclass(frozen=True)
class Splits:
    """What is trained on, what is validated with, and the train split at validation's size (None: not scored)."""

    train: GroundingData
    val: GroundingData
    train_scored: GroundingData | None


@dataclass(frozen=True)
class Outcome:
    """The best step by validation mIoU (its weights are in the network), and the curve, a row per step.

    `val_miou` is None where nothing was validated.
    """

    step: int
    val_miou: float | None
    curve: list[Row]


def finetune(
    network: Network,
    splits: Splits,
    config: FinetuneConfig,
    snapshots: Snapshots,
    accelerator: Accelerator,
    tables: Path | None,
) -> Outcome:
    """Train `network` in place and leave its best weights in it; resume where `snapshots` has a state.

    The curve is written to the folder `tables` (None: nowhere) step by step. Raises FloatingPointError with the named
    terms when the loss is not finite.
    """
    torch.manual_seed(config.seed)
    network.to(accelerator.device).train()
    if config.bfloat16:
        network.to(memory_format=torch.channels_last)  # a processor's bfloat16 convolutions are made for it
    freeze(network, config.frozen)
    prepare_network(network, config.compile, config.checkpoint_activations)
    objective = accelerator.prepare_model(Objective(network, config.loss_weights))  # DDP; on a GPU, under autocast
    optimizers = make_optimizers(network, config)
    state = from_first(snapshots.restore) or _first_state(network, splits, config, accelerator.device)
    network.load_state_dict(state.pop("network"))
    for optimizer, saved in zip(optimizers, state.pop("optimizers"), strict=False):  # a first state holds none
        optimizer.load_state_dict(saved)

    averaged = _averaged(network, state.pop("average", None)) if config.average else network

    steps = Steps(splits.train, config, accelerator.num_processes, accelerator.process_index)
    todo = range(state["step"], config.steps)
    curve = LiveCurve(tables if accelerator.is_main_process else None, state["curve"])
    bar = tqdm(todo, "finetune", config.steps, initial=todo.start, disable=not accelerator.is_main_process)
    unread: list[Tensor] = []
    for step, parts in zip(bar, batches(steps, todo.start, config.workers), strict=True):
        set_learning_rates(optimizers, lr_factor(config, step))
        network.zero_grad(set_to_none=True)
        unread.append(_forward_backward(objective, parts, config, accelerator))
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        if averaged is not network:
            _average(averaged, network, min(config.average, (1 + step) / (10 + step)))

        last = step + 1 == config.steps
        validating = last or (step + 1) % config.val_every == 0
        if not validating and (step + 1) % READ_EVERY[accelerator.device.type]:
            continue
        state["curve"] += _read(unread, step, config)
        unread = []
        if validating:
            last |= _score(averaged, splits, step + 1, state, config, accelerator.device)
        curve.update(state["curve"])
        bar.set_postfix(loss=f"{state['curve'][-1]['loss']:.3f}", best_val_miou=f"{state['best_miou']:.3f}")
        if last or snapshots.due():
            state["step"] = config.steps if last else step + 1
            optimized = [optimizer.state_dict() for optimizer in optimizers]
            average = {"average": averaged.state_dict()} if averaged is not network else {}
            snapshots.save({**state, **average, "network": network.state_dict(), "optimizers": optimized})
        if last:  # of all steps, or of patience
            break

    curve.close()
    network.load_state_dict(state["best"])
    calibrate_masks(network, splits.val, config.val_res, config.val_phrases, accelerator.device)
    return Outcome(state["best_step"], state["best_miou"], state["curve"])


def _forward_backward(
    objective: nn.Module, parts: list[Batch], config: FinetuneConfig, accelerator: Accelerator
) -> Tensor:
    """Add up the gradients of a step's parts -> the means of its terms, float [terms], on the device."""
    values = []
    for part in parts:
        with accelerator.no_sync(objective) if part is not parts[-1] else nullcontext():
            terms: LossTerms = objective(part.to(accelerator.device))
            accelerator.backward(terms.weighted(config.loss_weights) / len(parts))
        values.append(torch.stack([getattr(terms, name) for name in TERMS]).detach())
    return torch.stack(values).mean(0)


def freeze(network: Network, frozen: Sequence[str]) -> None:
    """Keep the weights as they are whose names, or the modules' that hold them, are in `frozen`.

    Raises ValueError for a name that the network does not have.
    """
    names = [name for name, _ in network.named_parameters()]
    for part in frozen:
        chosen = [name for name in names if name == part or name.startswith(f"{part}.")]
        if not chosen:
            tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise ValueError(f"finetune.frozen: got {part!r}, which no weight's name begins with; wanted one of {tops}")
        for name in chosen:
            network.get_parameter(name).requires_grad_(False)


def _averaged(network: Network, state: dict[str, Tensor] | None) -> Network:
    """A copy of the network that holds the average of its weights so far: `state`, or at first the weights."""
    averaged = build(network.config).to(next(network.parameters()).device).requires_grad_(False)
    averaged.load_state_dict(network.state_dict() if state is None else state)
    return averaged


@torch.no_grad()
def _average(averaged: Network, network: Network, keep: float) -> None:
    """Move the average towards the weights, of which it then holds 1 - `keep` (Polyak and Juditsky, 1992)."""
    for mean, value in zip(averaged.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - keep)


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
    network: Network, splits: Splits, step: int, state: dict[str, Any], config: FinetuneConfig, device: torch.device
) -> bool:
    """Score the weights after `step`, keep them if none were better; True when patience is at its end."""
    row: Row = state["curve"][-1]
    miou = row["val_miou"] = validate(network, splits.val, config.val_res, config.val_phrases, device)
    if splits.train_scored is not None:
        row["train_miou"] = validate(network, splits.train_scored, config.val_res, config.train_phrases, device)
    if miou > state["best_miou"]:
        state |= {"best_miou": miou, "best_step": step, "best": _copy(network)}
    late = [each for each in state["curve"] if each.get("val_miou") is not None and each["step"] > state["best_step"]]
    return config.patience is not None and len(late) >= config.patience


def _first_state(network: Network, splits: Splits, config: FinetuneConfig, device: torch.device) -> dict[str, Any]:
    """State before the first step; what we start from is scored, so that training can never make it worse."""
    weights = _copy(network)
    state: dict[str, Any] = {
        "step": 0, "network": weights, "optimizers": [], "curve": [{"step": 0, "loss": None}],
        "best": weights, "best_step": 0, "best_miou": -1.0,
    }  # fmt: skip
    _score(network, splits, 0, state, config, device)
    return state


def _copy(network: Network) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
