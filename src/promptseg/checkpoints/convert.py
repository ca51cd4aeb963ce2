"""Published checkpoints become ours and go back: by a table, strictly, with a ledger of every key.

Every published key is renamed, transformed or dropped for a stated reason; a key that is not known by its name is
refused, and so is a file that leaves one of ours build_on_meta. Values are never computed with: what comes back is
bit-equal. Tensors stay views of what they were, so a memory-mapped file is not copied.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from promptseg.checkpoints.published_keys import CHANGES, CONSTANTS, DROPPED, PREFIXES, Target, key_table
from promptseg.networks.xdecoder.model import XDecoderConfig, build_on_meta


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
    alone = {re.sub(r"\d+", "*", key): key for key in keys}
    return ", ".join(alone[name] if count == 1 else f"{name} ({count} keys)" for name, count in counts.items())


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
