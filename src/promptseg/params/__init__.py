"""Typed, strict reading of params.yaml and configs/data/*.yaml: the only YAML reader, with no default of its own.

Stages do not list this package among their dependencies: DVC tracks the values themselves, and what is read equals
them. Start reading at `Params`; imports nothing else of this project.
"""

import json
import re
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from promptseg.params.datasets import (
    DataConfig,
    FolderConfig,
    LpcvcConfig,
    PhotosConfig,
    ReferConfig,
    ShapesConfig,
    SinglePictures,
    Source,
)
from promptseg.params.sections import (
    STRICT,
    AiHubConfig,
    CalibrationConfig,
    ExportConfig,
    FinetuneConfig,
    HubConfig,
    LossWeights,
    LrScale,
    Model,
    Res,
    ScoreConfig,
    check_res,
    is_hub_name,
)

__all__ = [
    "AiHubConfig",
    "CalibrationConfig",
    "DataConfig",
    "ExportConfig",
    "FinetuneConfig",
    "FolderConfig",
    "HubConfig",
    "LossWeights",
    "LpcvcConfig",
    "LrScale",
    "Params",
    "PhotosConfig",
    "ReferConfig",
    "ScoreConfig",
    "ShapesConfig",
    "SinglePictures",
    "Source",
    "check_res",
    "find_project",
    "is_hub_name",
    "load_yaml",
    "read_code",
    "read_data_config",
    "read_params",
    "read_paths",
]

PARAMS_FILE = "params.yaml"
PIPELINE_FILE = "dvc.yaml"


_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_SIGNS = {"ge": ">= ", "gt": "> ", "le": "<= ", "lt": "< "}


@dataclass(frozen=True, config=STRICT)
class Params:
    """The whole of params.yaml."""

    data: str
    mirror: str | Annotated[tuple[str, ...], Field(min_length=1, description="a list of at least one")] | None
    watch: str
    model: Model
    res: Res
    finetune: FinetuneConfig
    export: ExportConfig
    hub: HubConfig
    score: ScoreConfig


def read_params(root: Path) -> Params:
    """Read and check params.yaml below `root`, all of it.

    Raises ValueError with a line for each mistake: the dotted key, what it got and what is wanted.
    """
    return params_of(load_yaml(root / PARAMS_FILE))


def params_of(content: object) -> Params:
    """Check what params.yaml holds. Raises ValueError as `read_params` does."""
    return cast(Params, _build(Params, content, ""))


def find_project(folder: Path) -> Path | None:
    """Return the folder, or the nearest one above it, that holds a project's two files; None where none does."""
    both = (PARAMS_FILE, PIPELINE_FILE)
    return next((each for each in (folder, *folder.parents) if all((each / name).is_file() for name in both)), None)


def read_paths(root: Path) -> dict[str, Path]:
    """Read the artefacts' paths from dvc.yaml, below `root`, by their names there: for commands that are no stage."""
    pipeline = load_yaml(root / PIPELINE_FILE)
    return {name: root / path for name, path in pipeline["vars"][0]["path"].items()}


def read_code(root: Path, stage: str) -> list[Path]:
    """Read from dvc.yaml which files and folders of code a stage depends on, below `root`; no artefacts."""
    pipeline = cast(dict[str, Any], load_yaml(root / PIPELINE_FILE))
    return [root / dep for dep in pipeline["stages"][stage]["deps"] if dep.startswith(("src/", "stages/"))]


def read_data_config(root: Path, name: str) -> DataConfig:
    """Read and check configs/data/<name>.yaml. Raises ValueError as `read_params` does, also for an unknown name."""
    folder = root / "configs" / "data"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"data: got {name!r}, wanted one of {', '.join(known)} (files of configs/data)")
    return data_config_of(load_yaml(folder / f"{name}.yaml"), f"configs/data/{name}.yaml")


def data_config_of(content: object, origin: str) -> DataConfig:
    """Check what a file of configs/data holds. Raises ValueError, with `origin`, as `read_params` does."""
    kinds: dict[object, type[DataConfig]] = {
        "shapes": ShapesConfig,
        "refer": ReferConfig,
        "lpcvc": LpcvcConfig,
        "folder": FolderConfig,
        "photos": PhotosConfig,
    }
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in kinds:
        raise ValueError(f"{origin}: kind: got {kind!r}, wanted one of {', '.join(map(str, kinds))}")
    return cast(DataConfig, _build(kinds[kind], content, f"{origin}: "))


class _Loader(yaml.SafeLoader):
    """Reads 1e-05 as a number, as DVC does, which writes it so (YAML 1.2); for YAML 1.1 and PyYAML it is text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def load_yaml(path: Path) -> Any:
    """Read a YAML file. Raises ValueError when it is missing or no YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; run from the project's root") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: got text that is not YAML: {error}") from error


def _build(wanted: type, content: object, prefix: str) -> object:
    """Check what a file holds and build the dataclass `wanted` of it; lists become tuples, whole numbers floats.

    Raises ValueError with a line for each mistake, each after `prefix`.
    """
    try:
        text = json.dumps(content, default=_refuse)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error
    try:
        return TypeAdapter(wanted).validate_json(text)
    except ValidationError as refused:
        lines = dict(_line(wanted, content, error) for error in refused.errors())
    # A union of text and a list refuses a list by its place, and once more by its item's: the item is what is wrong.
    lines = {key: line for key, line in lines.items() if not any(other.startswith(f"{key}[") for other in lines)}
    raise ValueError("\n".join(prefix + line for line in lines.values()))


def _refuse(value: object) -> None:
    raise ValueError(f"got {value!r}, wanted text (in quotes), a number, true, false, null, a list or a section")


def _line(wanted: Any, content: Any, error: ErrorDetails) -> tuple[str, str]:
    """Return the dotted key that an error is about, and the error in a line."""
    key = ""
    for part in error["loc"]:
        if isinstance(part, int) and isinstance(content, list):
            key, content, wanted = f"{key}[{part}]", content[part], _item_of(wanted)
        elif is_dataclass(wanted):  # every other part of a place is the name of one type of a union
            names = get_type_hints(wanted, include_extras=True)
            key = f"{key}.{part}" if key else str(part)
            if error["type"] == "unexpected_keyword_argument" and part == error["loc"][-1]:
                return key, f"{key}: unknown key; wanted only {', '.join(names)}"
            wanted = names[str(part)]
            if str(part) not in content:
                return key, f"{key}: missing; wanted {_describe(wanted)}"
            content = content[str(part)]
    said = str(error.get("ctx", {}).get("error", ""))  # of a ValueError that a check here raised
    return key, f"{key or 'file'}: got {content!r}, wanted {said or _describe(wanted)}"


def _item_of(wanted: Any) -> Any:
    """Return the type of a list's items."""
    options = [wanted, *get_args(wanted)]
    return next(get_args(option)[0] for option in _unwrapped(options) if get_origin(option) is tuple)


def _unwrapped(options: list[Any]) -> Iterator[Any]:
    return (get_args(option)[0] if get_origin(option) is Annotated else option for option in options)


def _describe(wanted: Any) -> str:
    """Say in words what a type takes."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if get_origin(wanted) is Annotated:
        plain, *more = get_args(wanted)
        fields = [field for field in more if isinstance(field, FieldInfo)]
        said = next((field.description for field in reversed(fields) if field.description), None)
        bounds = [_SIGNS[name] + str(value) for field in fields for name, value in _bounds_of(field)]
        return said or f"{_describe(plain)} {' and '.join(bounds)}".rstrip()
    if get_origin(wanted) in (Union, types.UnionType):
        return " or ".join(map(_describe, get_args(wanted)))
    if get_origin(wanted) is Literal:
        return "one of " + ", ".join(map(str, get_args(wanted)))
    if get_origin(wanted) is tuple:
        return f"a list, each item {_describe(get_args(wanted)[0])}"
    return names.get(wanted, "a section with keys")


def _bounds_of(field: FieldInfo) -> Iterator[tuple[str, Any]]:
    """Yield the bounds of a number by name."""
    return ((name, getattr(bound, name)) for bound in field.metadata for name in _SIGNS if hasattr(bound, name))
