"""Published checkpoints: `.pt` files read as weights only and memory-mapped, and converted to ours and back.

The conversion is a table (published_keys.py) and a ledger: every published key is renamed, transformed or dropped for a
stated reason; a key that is not known by its name is refused, and so is a file that leaves one of ours without a value.
Values are never computed with: what comes back is bit-equal. Tensors stay views of what they were, so a memory-mapped
file is not copied.
"""

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptseg.checkpoints.checkpoint import DAMAGED
from promptseg.checkpoints.published_keys import (
    BESIDE_THE_MODEL,
    CHANGES,
    CONSTANTS,
    DROPPED,
    PREFIXES,
    Target,
    key_table,
)
from promptseg.networks import build_on_meta
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.model import XDecoderConfig

SUFFIXES = (".pt", ".pth")
WEIGHTS_KEY = "model"  # what some writers put the weights under
_ZIP_START = b"PK\x03\x04"


def load_published(path: Path, config: XDecoderConfig) -> tuple[Network, dict[str, Any]]:
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
    try:
        is_zip = zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its end is damaged so that it speaks of several disks
        is_zip = False
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
    except DAMAGED as error:
        what = type(error).__name__  # torch's own words advise to load the file unsafely
        raise ValueError(f"{path}: got a damaged file ({what}), wanted a checkpoint; copy or fetch it again") from error


@dataclass(frozen=True)
class Ledger:
    """What became of every key of a published file, by the names that it has there.

    prefix: what a wrapper had put before every name; renamed: our key; transformed: our key and how; dropped: why.
    """

    prefix: str
    renamed: dict[str, str]
    transformed: dict[str, dict[str, str]]
    dropped: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """For a file that a person can read."""
        return asdict(self)


@dataclass(frozen=True)
class Conversion:
    """Our weights, a ledger, and the values that we do not use, by published names (of a cut tensor: what was cut)."""

    weights: dict[str, Tensor]
    dropped: dict[str, Tensor]
    ledger: Ledger


def convert(published: Mapping[str, Tensor], config: XDecoderConfig) -> Conversion:
    """Published weights -> ours for `config`, dtypes as they are.

    Raises ValueError that lists what was not understood, what is missing and which shapes are not those of `config`.
    """
    prefix = _prefix(published)
    source = {key.removeprefix(prefix): value for key, value in published.items()}
    table = key_table(config)
    shapes = _our_shapes(config)
    _check(source, table, shapes)
    weights, dropped = {}, {key: source[key] for key in DROPPED if key in source}
    for key, target in table.items():
        weights[target.key], rest = _ours(source[key], target, shapes[target.key])
        if rest is not None:
            dropped[key] = rest
    return Conversion(weights, dropped, _ledger(prefix, source, table))


def restore(weights: Mapping[str, Tensor], config: XDecoderConfig, conversion: Conversion | None) -> dict[str, Tensor]:
    """Our weights -> published names and shapes, bit-equal; the inverse of `convert`, whose result gives the rest back.

    Without a conversion the class query, which no weights of ours hold, is zero, and there is nothing else.
    """
    dropped = {} if conversion is None else conversion.dropped
    prefix = "" if conversion is None else conversion.ledger.prefix
    table = key_table(config)
    published = {prefix + key: value for key, value in dropped.items() if key not in table}
    for key, target in table.items():
        value = weights[target.key]
        if target.change == "squeezed":
            value = value[:, :, None, None]
        elif target.change == "cut":
            value = torch.cat((value, dropped.get(key, value.new_zeros(1, value.shape[1]))))
        published[prefix + key] = value
    return published


def published_shapes(config: XDecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every published key of the grounding path of `config`, and its shape there."""
    shapes = _our_shapes(config)
    return {key: _published_shape(target, shapes[target.key]) for key, target in key_table(config).items()}


def _our_shapes(config: XDecoderConfig) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in build_on_meta(config).state_dict().items()}


def _prefix(keys: Iterable[str]) -> str:
    """What wrappers put before every key, such as "module.model."; the empty text where they did not."""
    prefix, names = "", list(keys)
    while names and (found := next((p for p in PREFIXES if all(n.startswith(prefix + p) for n in names)), None)):
        prefix += found
    return prefix


def _ours(value: Tensor, target: Target, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """The values that are ours, and what was cut off."""
    if target.change == "squeezed":
        return value[:, :, 0, 0], None
    return (value[: shape[0]], value[shape[0] :]) if target.change == "cut" else (value, None)


def _published_shape(target: Target, ours: tuple[int, ...]) -> tuple[int, ...]:
    if target.change == "squeezed":
        return (*ours, 1, 1)
    return (ours[0] + 1, *ours[1:]) if target.change == "cut" else ours


def _check(source: Mapping[str, Tensor], table: Mapping[str, Target], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError with everything that is wrong at once."""
    unknown = [key for key in source if key not in table and key not in DROPPED]
    missing = [key for key in table if key not in source]
    wanted = {key: _published_shape(target, shapes[target.key]) for key, target in table.items() if key in source}
    wrong = [
        f"{key} (got {list(source[key].shape)}, wanted {list(shape)})"
        for key, shape in wanted.items()
        if tuple(source[key].shape) != shape
    ]
    whole = [key for key in wanted if not source[key].is_floating_point()]
    differing = [key for key, value in CONSTANTS.items() if key in source and not _equals(source[key], value)]
    faults = [
        f"not understood: {_summary(unknown)}" if unknown else "",
        f"missing: {_summary(missing)}" if missing else "",
        f"of another shape: {', '.join(wrong)}" if wrong else "",
        f"not of a floating type: {_summary(whole)}" if whole else "",
        f"not the constants of this network: {_summary(differing)}" if differing else "",
    ]
    if any(faults):
        raise ValueError(
            f"got a published checkpoint of {len(source)} keys that does not fit the {len(table)} keys of this model; "
            f"{'; '.join(filter(None, faults))}; wanted exactly this model's keys, beside those that are known to be "
            "other tasks': choose the `model` that the file is of"
        )


def _equals(value: Tensor, constants: tuple[float, ...]) -> bool:
    return value.numel() == len(constants) and torch.allclose(value.flatten().float(), torch.tensor(constants))


def _summary(keys: Iterable[str]) -> str:
    """Every key, those that differ by numbers only as one: "blocks.*.norm.weight (12 keys)"."""
    counts = Counter(re.sub(r"\d+", "*", key) for key in keys)
    example = {re.sub(r"\d+", "*", key): key for key in keys}
    return ", ".join(example[name] if count == 1 else f"{name} ({count} keys)" for name, count in counts.items())


def _ledger(prefix: str, source: Iterable[str], table: Mapping[str, Target]) -> Ledger:
    renamed, transformed, dropped = {}, {}, {}
    for key in source:
        if key in DROPPED:
            dropped[prefix + key] = DROPPED[key]
        elif table[key].change == "renamed":
            renamed[prefix + key] = table[key].key
        else:
            transformed[prefix + key] = {"to": table[key].key, "how": CHANGES[table[key].change]}
    return Ledger(prefix, renamed, transformed, dropped)
