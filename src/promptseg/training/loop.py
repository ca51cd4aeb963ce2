"""The training loop: one page, top to bottom."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from promptseg.params import FinetuneConfig
from promptseg.training.data import GroundingData
from promptseg.training.optimizers import make_optimizers, set_rates
from promptseg.training.schedule import draw, rate_share
from promptseg.training.snapshots import Snapshots
from promptseg.training.terms import batch_terms
from promptseg.training.validation import validate
from promptseg.xdecoder.model import XDecoder


@dataclass(frozen=True)
class Outcome:
    """The best step by validation mIoU (its weights are in the network), and the curve, a row per step."""

    step: int
    val_miou: float
    curve: list[dict[str, float | None]]


def finetune(
    network: XDecoder, train: GroundingData, val: GroundingData, config: FinetuneConfig, snapshots: Snapshots
) -> Outcome:
    """Train `network` in place and leave its best weights in it; resume where `snapshots` has a state.

    Runs on CUDA in bfloat16 where there is a GPU, else on the processor in float32. Raises FloatingPointError with the
    named terms when the loss is not finite.
    """
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).train()
    optimizers = make_optimizers(network, config)
    state = snapshots.restore() or _first_state(network, val, config, device)
    network.load_state_dict(state["network"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=False):  # a first state holds none
        optimizer.load_state_dict(saved)

    bar = tqdm(range(state["step"], config.steps), desc="finetune", initial=state["step"], total=config.steps)
    for step in bar:
        drawn = draw(config, step, train.samples_of)
        batch = train.batch(drawn.pictures, drawn.samples, drawn.res).to(device)
        set_rates(optimizers, rate_share(config, step))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            terms = batch_terms(network, batch, config.loss_weights)
        loss = terms.weighted(config.loss_weights)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {step}: the loss is {loss.item()} ({terms.values()}); lower learning_rate")
        network.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()

        row: dict[str, float | None] = {"step": step + 1, "loss": loss.item(), **terms.values()}
        if (step + 1) % config.val_every == 0 or step + 1 == config.steps:
            row["val_miou"] = validate(network, val, config.val_res, config.val_phrases, device)
            if row["val_miou"] > state["best_miou"]:
                state |= {"best_miou": row["val_miou"], "best_step": step + 1, "best": _copy(network)}
        state["curve"].append(row)
        bar.set_postfix(loss=f"{loss.item():.3f}", best_val_miou=f"{state['best_miou']:.3f}")
        if snapshots.due() or step + 1 == config.steps:
            moments = [optimizer.state_dict() for optimizer in optimizers]
            state |= {"step": step + 1, "network": network.state_dict(), "optimizers": moments}
            snapshots.save(state)

    network.load_state_dict(state["best"])
    return Outcome(state["best_step"], state["best_miou"], state["curve"])


def _first_state(network: XDecoder, val: GroundingData, config: FinetuneConfig, device: torch.device) -> dict[str, Any]:
    """State before the first step; what we start from is scored, so that training can never make it worse."""
    miou = validate(network, val, config.val_res, config.val_phrases, device)
    curve: list[dict[str, float | None]] = [{"step": 0, "loss": None, "val_miou": miou}]
    weights = _copy(network)
    return {
        "step": 0, "network": weights, "optimizers": [], "curve": curve,
        "best": weights, "best_step": 0, "best_miou": miou,
    }  # fmt: skip


def _copy(network: XDecoder) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
