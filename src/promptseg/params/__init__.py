"""Typed, strict reading of params.yaml and configs/data/*.yaml: the only YAML reader, with no default of its own.

Stages do not list this package among their dependencies: DVC tracks the values themselves, and nothing here converts
one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from promptseg.params.datasets import (
    DataConfig,
    FolderConfig,
    LpcvcConfig,
    ReferConfig,
    ShapesConfig,
    SinglePictures,
    Source,
)
from promptseg.params.sections import (
    AiHubConfig,
    ExportConfig,
    FinetuneConfig,
    HubConfig,
    LossWeights,
    LrScale,
    ScoreConfig,
    check_res,
)
from promptseg.params.strict import build, check, load_yaml

__all__ = [
    "AiHubConfig",
    "DataConfig",
    "ExportConfig",
    "FinetuneConfig",
    "FolderConfig",
    "HubConfig",
    "LossWeights",
    "LpcvcConfig",
    "LrScale",
    "Params",
    "ReferConfig",
    "ScoreConfig",
    "ShapesConfig",
    "SinglePictures",
    "Source",
    "check_res",
    "read_data_config",
    "read_params",
    "read_paths",
]

PARAMS_FILE = "params.yaml"
GRAPH_FILE = "dvc.yaml"


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml."""

    data: str
    mirror: str | tuple[str, ...] | None
    watch: str
    model: Literal["nano", "focal_t", "vit_b"]
    res: int
    finetune: FinetuneConfig
    export: ExportConfig
    hub: HubConfig
    score: ScoreConfig

    def __post_init__(self) -> None:
        check_res("res", self.res)
        check("mirror", self.mirror, self.mirror != (), "null, a place, or a list of at least one")


def read_params(root: Path) -> Params:
    """Read and check params.yaml below `root`, all of it. Raises ValueError naming the key, what it got and wanted."""
    return params_of(load_yaml(root / PARAMS_FILE))


def params_of(content: object) -> Params:
    """Check what params.yaml holds. Raises ValueError as `read_params` does."""
    return cast(Params, build(Params, content, ""))


def read_paths(root: Path) -> dict[str, Path]:
    """Read the artefacts' paths from dvc.yaml, below `root`, by their names there: for commands that are no stage."""
    graph = cast(dict[str, Any], load_yaml(root / GRAPH_FILE))
    return {name: root / path for name, path in graph["vars"][0]["path"].items()}


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
    }
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in kinds:
        raise ValueError(f"{origin}: kind: got {kind!r}, wanted one of {', '.join(map(str, kinds))}")
    try:
        return cast(DataConfig, build(kinds[kind], content, ""))
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
