"""Checkpoints: weights as safetensors, and beside them JSON that a person can read and that rebuilds the network."""

import hashlib
import pickle
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from promptseg.files import atomic_path, read_json, write_json
from promptseg.networks import FAMILIES, build_on_meta, family_of
from promptseg.networks.network import Network

FORMAT = 1
# What torch.load raises over damaged bytes: depending on where they are, it takes the file for one of its formats.
DAMAGED = (
    *(pickle.UnpicklingError, struct.error, RuntimeError, OSError, EOFError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError),
)


@dataclass(frozen=True)
class Provenance:
    """Where weights come from: the model's name, the sha256 of the weights they started from (None: from scratch).

    `params` are the stage's, as run; `step` and `val_miou` say which moment of the run was kept (None: not measured).
    """

    model: str
    init_sha256: str | None
    params: dict[str, Any]
    step: int
    val_miou: float | None


def save_checkpoint(path: Path, network: Network, provenance: Provenance, dtype: torch.dtype) -> None:
    """Write a network to `path` (.safetensors) and the JSON beside it, weights as `dtype` (float32 or float16)."""
    weights = {key: value.detach().to("cpu", dtype).contiguous() for key, value in network.state_dict().items()}
    description = {
        "format": FORMAT,
        "family": family_of(network.config),
        "architecture": asdict(network.config),
        "parameters": sum(value.numel() for value in weights.values()),
        "dtype": str(dtype).removeprefix("torch."),
        "provenance": asdict(provenance),
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(weights))  # safetensors' own writer hides that a disk is full
    write_json(path.with_suffix(".json"), description)


def load_checkpoint(path: Path) -> tuple[Network, Provenance]:
    """Rebuild a network, float32, in evaluation mode; float32 weights stay mapped to the file, without a copy.

    Raises ValueError when one of the files is missing or damaged.
    """
    for wanted in (path, path.with_suffix(".json")):
        if not wanted.is_file():
            raise ValueError(f"{wanted}: no such file; a checkpoint is a .safetensors file with its .json beside it")
    description = read_json(path.with_suffix(".json"))
    if description.get("format") != FORMAT:
        raise ValueError(f"{path}: got checkpoint format {description.get('format')!r}, wanted {FORMAT}")
    try:
        family = FAMILIES[description.get("family", "xdecoder")]  # once the only one, and not named
        network = build_on_meta(family.config_from_json(description["architecture"]))
        provenance = Provenance(**description["provenance"])
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path.with_suffix('.json')}: got a description that no network can be built from ({error!r}), "
            "wanted what came with the weights; make or fetch the checkpoint again"
        ) from error
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: got a damaged safetensors file ({error}); make or fetch it again") from error
    try:
        network.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the architecture beside them: {error}") from error
    return network.eval(), provenance


def values_sha256(weights: Mapping[str, Tensor]) -> str:
    """sha256 of names and values, whatever file they came in: 64 hex digits."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
