"""One of the two processes of tests/test_sharding.py: trains sharded networks and leaves what it saw and what it holds.

Started as `sharded_process.py FOLDER SCENES NAME...`: the paths of few_scenes() as JSON, and names of CONFIGS, or:
"killed" trains "resumed" until process 1 ends itself as it begins the step with index 3; "muon-steps" are `muon_steps`.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from networks import micro_network
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from trainings import short_training

from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.params import FinetuneConfig
from promptseg.training import loop
from promptseg.training.data import GroundingData
from promptseg.training.device import make_accelerator
from promptseg.training.sharded_muon import ShardedMuon
from promptseg.training.sharding import whole_network
from promptseg.training.snapshots import Snapshots

RULE = MaskAttention("inside", "bilinear")
ADAMW = short_training(batch_size=4, res=(64,), steps=4, learning_rate=1e-4, train_phrases=6)
MUON = replace(ADAMW, muon_learning_rate=1e-3)
CONFIGS = {
    "adamw": ADAMW,
    "muon": MUON,
    "resumed": MUON,
    "recomputed": replace(MUON, accumulate=2, checkpoint_activations=True),
    "unbeaten": replace(ADAMW, steps=2),  # the first weights are said to score best
}
MATRICES = ((16, 32), (32, 16), (7, 5), (1, 3))  # of the last, one process has nothing


def main() -> None:
    """See the module."""
    folder, scenes, *names = sys.argv[1:]
    torch.cuda.is_available = lambda: False
    for name in names:
        if name == "muon-steps":
            _step_sharded(Path(folder))
            continue
        if name == "unbeaten":
            loop.validate = partial(_next, iter((0.4, 0.3, 0.2, 0.1)))
        if name == "killed":
            loop.lr_factor = _killed(loop.lr_factor)
        _train(Path(folder), json.loads(scenes), "resumed" if name == "killed" else name)


def _train(folder: Path, scenes: dict[str, str], name: str) -> None:
    config = replace(CONFIGS[name], shard=True)
    accelerator = make_accelerator()
    assert accelerator.num_processes == 2
    main = accelerator.is_main_process
    # Each has a clock of its own: only one of them ever finds a snapshot due.
    snapshots = Snapshots(folder / name, 1e9 if main else 0, writes=main)
    norms: list[float] = []
    optimizers: list[Optimizer] = []
    loop.clip_gradients = _then(_clip, lambda network: norms.append(_gradient_norm(network)))
    loop.make_optimizers = lambda *given: optimizers.extend(_make_optimizers(*given)) or optimizers
    network = micro_network(RULE)
    outcome = loop.finetune(network, _splits(scenes, config), config, snapshots, accelerator)
    seen = {"curve": outcome.curve, "norms": norms, "weights": _held(network.state_dict())}
    seen["moments"] = _held([optimizer.state_dict() for optimizer in optimizers])
    whole = whole_network(network).state_dict()
    if main:
        torch.save(whole, folder / f"{name}.pt")
    (folder / f"{name}-{accelerator.process_index}.json").write_text(json.dumps(seen))


_clip, _make_optimizers = loop.clip_gradients, loop.make_optimizers


def _then(first: Callable[..., None], second: Callable[[Any], None]) -> Callable[..., None]:
    def both(network: Any, *others: Any) -> None:
        first(network, *others)
        second(network)

    return both


def muon_steps(kind: type[Optimizer], placed: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """MATRICES after two steps of an optimizer, which sees each as `placed` makes it."""
    generator = torch.Generator().manual_seed(6)
    weights = [torch.nn.Parameter(placed(torch.randn(shape, generator=generator))) for shape in MATRICES]
    optimizer = kind(weights, lr=0.1, weight_decay=0.2)
    for _ in range(2):
        for weight in weights:
            weight.grad = placed(torch.randn(weight.shape, generator=generator))
        optimizer.step()
    return [weight.detach() for weight in weights]


def _step_sharded(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    steps = muon_steps(ShardedMuon, lambda whole: distribute_tensor(whole, mesh, [Shard(0)]))
    whole = [weight.full_tensor() for weight in steps]
    if mesh.get_rank() == 0:
        torch.save(whole, folder / "muon-steps.pt")


def _next(scores: Iterator[float], *_: object) -> float:
    return next(scores)


def _killed(lr_factor: Callable[..., float]) -> Callable[..., float]:
    def killed(config: FinetuneConfig, step: int) -> float:
        if step == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return lr_factor(config, step)

    return killed


def _splits(scenes: dict[str, str], config: FinetuneConfig) -> loop.Splits:
    paths = {name: Path(path) for name, path in scenes.items()}
    sizes = {"train": config.res, "val": (config.val_res,)}
    train, val = (
        GroundingData(**paths, split=split, sizes=sizes[split], cache_bytes=10**8, canvas_rule="crop")
        for split in sizes
    )
    return loop.Splits(
        train, val, GroundingData(**paths, split="train", sizes=sizes["val"], cache_bytes=10**8, canvas_rule="crop")
    )


def _gradient_norm(network: torch.nn.Module) -> float:
    gradients = [parameter.grad for parameter in network.parameters()]
    whole = [each.full_tensor() if isinstance(each, DTensor) else each for each in gradients]
    return torch.cat([each.flatten() for each in whole]).norm().item()


def _held(state: Any) -> int:
    """How many numbers of a state this process holds."""
    held = [each.to_local() if isinstance(each, DTensor) else each for each in tree_leaves(state)]
    return sum(each.numel() for each in held if isinstance(each, Tensor))


if __name__ == "__main__":
    main()
