"""Strict reading: YAML text to frozen dataclasses, each mistake one error that names its key."""

import re
import sys
import types
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


def check(key: str, got: object, holds: bool, wanted: str) -> None:
    """Raise ValueError with the key's name, what it got and what is wanted, unless `holds`."""
    if not holds:
        raise ValueError(f"{key}: got {got!r}, wanted {wanted}")


class _Loader(yaml.SafeLoader):
    """Reads 1e-05 as a number, as DVC does, which writes it so (YAML 1.2); for YAML 1.1 and PyYAML it is text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def load_yaml(path: Path) -> object:
    """Read a YAML file. Raises ValueError when it is missing or no YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; run from the project's root") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: got text that is not YAML: {error}") from error


def build(wanted: type, value: object, key: str) -> object:
    """Build the dataclass `wanted` from a mapping, strictly; `key` is the dotted name of the mapping."""
    prefix = f"{key}." if key else ""
    if not isinstance(value, dict):
        raise ValueError(f"{key or 'file'}: got {value!r}, wanted a section with keys")
    hints = get_type_hints(wanted)
    unknown = [name for name in value if name not in hints]
    if unknown:
        raise ValueError(f"{prefix}{unknown[0]}: unknown key; wanted only {', '.join(hints)}")
    missing = [name for name in hints if name not in value]
    if missing:
        raise ValueError(f"{prefix}{missing[0]}: missing; wanted {_describe(hints[missing[0]])}")
    built = {name: _convert(hint, value[name], prefix + name) for name, hint in hints.items()}
    try:
        return wanted(**built)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def _convert(hint: Any, value: object, key: str) -> object:
    if is_dataclass(hint):
        return build(cast(type, hint), value, key)
    if get_origin(hint) in (Union, types.UnionType) and isinstance(value, list):
        hint = next((option for option in get_args(hint) if get_origin(option) is tuple), hint)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_convert(get_args(hint)[0], item, f"{key}[{index}]") for index, item in enumerate(value))
    if not _fits(hint, value):
        raise ValueError(f"{key}: got {value!r}, wanted {_describe(hint)}")
    return value


def _fits(hint: Any, value: object) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(option, value) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and abs(cast(float, value)) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else False


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list, each item {_describe(get_args(hint)[0])}"
    return names.get(hint, "a section with keys")
