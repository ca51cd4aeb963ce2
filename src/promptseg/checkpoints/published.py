"""Published checkpoints: `.pt` files read as weights only and memory-mapped, converted, with a ledger as JSON."""

import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptseg.checkpoints.convert import convert
from promptseg.checkpoints.published_keys import BESIDE_THE_MODEL
from promptseg.networks.xdecoder.model import XDecoder, XDecoderConfig, build_on_meta

SUFFIXES = (".pt", ".pth")
WEIGHTS_KEY = "model"  # what some writers put the weights under
_ZIP_START = b"PK\x03\x04"
# What torch.load raises over damaged bytes: depending on where they are, it takes the file for one of its formats.
_DAMAGED = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)


def load_published(path: Path, config: XDecoderConfig) -> tuple[XDecoder, dict[str, Any]]:
    """Build the network of `config` with the weights of a published file: float32, evaluation mode; and its ledger.

    Its canvas rule is the published one, "stretch", whatever `config` has: the weights were made with that. Weights
    that are float32 in the file stay mapped to it, without a copy. Raises ValueError when the file is missing, damaged
    or holds anything but weights, or when its keys and shapes are not those of `config`.
    """
    weights, beside = read_published(path)
    try:
        conversion = convert(weights, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    network = build_on_meta(replace(config, canvas_rule="stretch"))
    network.load_state_dict({key: value.float() for key, value in conversion.weights.items()}, assign=True)
    types = sorted({str(value.dtype).removeprefix("torch.") for value in conversion.weights.values()})
    return network.eval(), {"dtypes": types, "beside_the_model": beside, **conversion.ledger.to_json()}


def read_published(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights by their published names, and why each entry beside them is left out.

    Raises ValueError as `load_published` does.
    """
    content = _read(path)
    beside: dict[str, str] = {}
    if isinstance(content, dict) and isinstance(content.get(WEIGHTS_KEY), dict):
        others = [str(key) for key in content if key != WEIGHTS_KEY]
        if unknown := [key for key in others if key not in BESIDE_THE_MODEL]:
            raise ValueError(
                f"{path}: got {', '.join(unknown)} beside {WEIGHTS_KEY!r}, which is not understood; wanted only "
                f"{', '.join(BESIDE_THE_MODEL)}; store the weights alone: torch.save(network.state_dict(), ...)"
            )
        beside = {key: BESIDE_THE_MODEL[key] for key in others}
        content = content[WEIGHTS_KEY]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: got {type(content).__name__} without weights, wanted a dictionary of tensors")
    if wrong := [str(key) for key, value in content.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path}: got {', '.join(wrong)}, which are no tensors; wanted a dictionary of tensors only")
    return content, beside


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted a published checkpoint ({' or '.join(SUFFIXES)})")
    is_zip = zipfile.is_zipfile(path)
    with path.open("rb") as stream:
        if not is_zip and stream.read(len(_ZIP_START)) == _ZIP_START:
            raise ValueError(f"{path}: got a file without its end; copy or fetch it again")
    try:
        # the format before torch 1.6 is no zip archive, and cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path}: got {f'an object of {named[1]}' if named else 'something other than weights'} or a damaged file, "
            "wanted tensors only: anything else would be run as code; store the weights alone, "
            "torch.save(network.state_dict(), ...), where the file comes from"
        ) from error
    except _DAMAGED as error:
        what = type(error).__name__  # torch's own words advise to load the file unsafely
        raise ValueError(f"{path}: got a damaged file ({what}), wanted a checkpoint; copy or fetch it again") from error
