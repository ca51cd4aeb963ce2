"""Recipes: what to change in params.yaml, and in the data set's own file, to run what someone ran before.

A recipe is a YAML file with the changed keys of params.yaml, dotted or nested, and nothing else, except for a section
named after the file of configs/data that `data` names, with the changed keys of that file.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from promptseg.params import PARAMS_FILE, Params, data_config_of, load_yaml, params_of, read_data_config

DATA_FOLDER = "configs/data/"


def read_recipe(root: Path, path: Path) -> dict[str, object]:
    """Return a recipe's settings by the names that `dvc exp run -S` knows them by, checked against the project's files.

    Those of a file of configs/data are "configs/data/<data>.yaml:<key>". Raises ValueError, with the recipe's name,
    where it has a key that there is not, a value that the key cannot have, or one key twice.
    """
    content = load_yaml(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: got {content!r:.80}, wanted keys of {PARAMS_FILE} with the values to set")
    try:
        return _checked(root, content)
    except ValueError as error:
        raise ValueError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def _checked(root: Path, content: dict[Any, Any]) -> dict[str, object]:
    of_data = {name: section for name, section in content.items() if str(name).startswith(DATA_FOLDER)}
    settings = _unique(_leaves(content.keys() - of_data.keys(), content, Params, ""))
    params = params_of(_changed(load_yaml(root / PARAMS_FILE), settings))
    read_data_config(root, params.data)
    used = f"{DATA_FOLDER}{params.data}.yaml"
    for name, section in of_data.items():
        if name != used:
            raise ValueError(f"{name}: got a data set's file that is not used, wanted {used}, which `data` names")
        if not isinstance(section, dict):
            raise ValueError(f"{name}: got {section!r}, wanted a section with keys")
        base = load_yaml(root / name)
        changes = _unique(_leaves(section, section, type(data_config_of(base, name)), ""))
        data_config_of(_changed(base, changes), name)
        settings |= {f"{name}:{key}": value for key, value in changes.items()}
    return settings


def _leaves(names: Any, content: Mapping[Any, Any], wanted: Any, prefix: str) -> Iterator[tuple[str, object]]:
    """Yield dotted keys with their values; a mapping is gone into where the dataclass `wanted` has a section there."""
    for name in (name for name in content if name in names):
        key, value = f"{prefix}{name}", content[name]
        section = _section(wanted, str(name))
        if isinstance(value, dict) and section is not None:
            yield from _leaves(value, value, section, f"{key}.")
        else:
            yield key, value


def _section(wanted: Any, dotted: str) -> Any:
    """Return the dataclass that a dotted key names from `wanted` on, or None where it names a value or nothing."""
    for name in dotted.split("."):
        wanted = get_type_hints(wanted).get(name) if is_dataclass(wanted) else None
    return wanted if is_dataclass(wanted) else None


def _unique(pairs: Iterator[tuple[str, object]]) -> dict[str, object]:
    settings: dict[str, object] = {}
    for key, value in pairs:
        if key in settings:
            raise ValueError(f"{key}: got it twice, dotted and nested, wanted it once")
        settings[key] = value
    return settings


def _changed(content: object, settings: Mapping[str, object]) -> object:
    """Return a copy of a file's content with the settings put in, also where no key is: what checks it says so."""
    changed = copy.deepcopy(content)
    for key, value in settings.items():
        *sections, last = key.split(".")
        place: Any = changed
        for name in sections:
            place = place.get(name) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ValueError(f"{key}: unknown key; {'.'.join(sections)} is no section")
        place[last] = value
    return changed
