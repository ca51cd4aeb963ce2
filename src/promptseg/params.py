"""Typed, strict reading of params.yaml and configs/data/*.yaml: the only YAML reader, with no default of its own.

Stages do not list this file among their dependencies: DVC tracks the values themselves, and nothing here converts one.
"""

import re
import sys
import types
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

PARAMS_FILE = "params.yaml"
_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
RES_MIN, RES_MAX = 64, 1024  # two cells at stride 32; the canvas


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms of the same names, for matching and for training alike."""

    mask_bce: float
    mask_dice: float
    contrast: float
    region: float

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name), getattr(self, field.name) >= 0, "a weight >= 0")


@dataclass(frozen=True)
class FinetuneConfig:
    """How the network is trained; `res` holds the sizes of which one is drawn per step."""

    init: str | None
    attends: Literal["inside", "outside"]
    mask_resize: Literal["bilinear", "bicubic"]
    seed: int
    steps: int
    res: tuple[int, ...]
    pictures_per_step: int
    phrases_per_picture: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    clip_norm: float
    loss_weights: LossWeights
    val_res: int
    val_every: int
    val_phrases: int
    snapshot_every_s: float
    cache_gib: float

    def __post_init__(self) -> None:
        _check("res", self.res, len(self.res) > 0, "a list of at least one size")
        for res in (*self.res, self.val_res):
            check_res("res" if res in self.res else "val_res", res)
        for key in ("pictures_per_step", "phrases_per_picture", "val_every", "val_phrases"):
            _check(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        for key in ("seed", "steps", "warmup_steps", "weight_decay", "snapshot_every_s", "cache_gib"):
            _check(key, getattr(self, key), getattr(self, key) >= 0, "0 or more")
        for key in ("learning_rate", "clip_norm"):
            _check(key, getattr(self, key), getattr(self, key) > 0, "a number above 0")
        _check("seed", self.seed, self.seed < 2**63, "less than 2**63")
        _check("init", self.init, self.init is not None or self.steps > 0, "a checkpoint, or steps > 0 to train one")


@dataclass(frozen=True)
class ExportConfig:
    """`parity_samples`: how many samples that were not traced the graph is compared with torch on."""

    opset: int
    parity_samples: int

    def __post_init__(self) -> None:
        _check("opset", self.opset, 17 <= self.opset <= 23, "an ONNX opset from 17 to 23")
        _check("parity_samples", self.parity_samples, self.parity_samples >= 1, "at least 1")


@dataclass(frozen=True)
class HubConfig:
    """Where the graph is compiled, profiled and run, and on how much of which split (`samples` null: all of it)."""

    backend: Literal["local"]
    device: str
    split: Literal["train", "val", "test"]
    samples: int | None
    emulator_samples: int
    cpu_latency_runs: int

    def __post_init__(self) -> None:
        _check("samples", self.samples, self.samples is None or self.samples >= 1, "null (all) or at least 1")
        _check("emulator_samples", self.emulator_samples, self.emulator_samples >= 0, "0 or more")
        _check("cpu_latency_runs", self.cpu_latency_runs, self.cpu_latency_runs >= 1, "at least 1")


@dataclass(frozen=True)
class ScoreConfig:
    """`seed` of the bootstrap; `gallery` is how many best, median and worst samples the pictures show, of each."""

    seed: int
    gallery: int

    def __post_init__(self) -> None:
        _check("seed", self.seed, self.seed >= 0, "0 or more")
        _check("gallery", self.gallery, 1 <= self.gallery <= 12, "from 1 to 12")


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml."""

    data: str
    mirror: str | None
    model: Literal["nano"]
    res: int
    finetune: FinetuneConfig
    export: ExportConfig
    hub: HubConfig
    score: ScoreConfig

    def __post_init__(self) -> None:
        check_res("res", self.res)


@dataclass(frozen=True)
class Source:
    """One archive: its `path` below a mirror, its public `url`, and the `bytes` and `sha256` of what lies there."""

    path: str
    url: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        inside = bool(parts) and not self.path.startswith("/") and ".." not in parts
        _check("path", self.path, inside, "a path below the mirror, such as 'coco/zips/train2014.zip'")
        _check("url", self.url, self.url.startswith(("http://", "https://")), "an address that begins with http(s)://")
        digits = len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")
        _check("sha256", self.sha256, digits, "64 lower-case hexadecimal digits")


@dataclass(frozen=True)
class ShapesConfig:
    """How many scenes, and what is in them. `targets_per_scene` is capped by a scene's number of objects."""

    kind: Literal["shapes"]
    seed: int
    train_scenes: int
    val_scenes: int
    test_scenes: int
    objects_min: int
    objects_max: int
    targets_per_scene: int

    def __post_init__(self) -> None:
        _check("seed", self.seed, self.seed >= 0, "0 or more")
        for key in ("train_scenes", "val_scenes", "test_scenes", "targets_per_scene"):
            _check(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        _check("objects_min", self.objects_min, self.objects_min >= 2, "at least 2: a target and a distractor")
        in_range = self.objects_min <= self.objects_max <= 8
        _check("objects_max", self.objects_max, in_range, "from objects_min to 8")

    def scenes(self, split: str) -> int:
        """Number of scenes of a split: train, val or test."""
        return {"train": self.train_scenes, "val": self.val_scenes, "test": self.test_scenes}[split]


@dataclass(frozen=True)
class RefcocogConfig:
    """RefCOCOg's archives, the author of its splits, and how many refs of each split are used (null: all)."""

    kind: Literal["refcocog"]
    images: Source
    refs: Source
    split_by: Literal["umd"]
    train_refs: int | None
    val_refs: int | None
    test_refs: int | None

    def __post_init__(self) -> None:
        for key in ("train_refs", "val_refs", "test_refs"):
            value = getattr(self, key)
            _check(key, value, value is None or value >= 1, "null (all) or at least 1")


DataConfig = ShapesConfig | RefcocogConfig


def read_params(root: Path) -> Params:
    """Read and check params.yaml below `root`, all of it. Raises ValueError naming the key, what it got and wanted."""
    return cast(Params, _build(Params, _load(root / PARAMS_FILE), ""))


def read_data_config(root: Path, name: str) -> DataConfig:
    """Read and check configs/data/<name>.yaml. Raises ValueError as `read_params` does, also for an unknown name."""
    folder = root / "configs" / "data"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"data: got {name!r}, wanted one of {', '.join(known)} (files of configs/data)")
    content = _load(folder / f"{name}.yaml")
    kinds: dict[object, type[ShapesConfig] | type[RefcocogConfig]] = {
        "shapes": ShapesConfig,
        "refcocog": RefcocogConfig,
    }
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in kinds:
        raise ValueError(f"configs/data/{name}.yaml: kind: got {kind!r}, wanted one of {', '.join(map(str, kinds))}")
    try:
        return cast(DataConfig, _build(kinds[kind], content, ""))
    except ValueError as error:
        raise ValueError(f"configs/data/{name}.yaml: {error}") from error


def check_res(key: str, res: int) -> None:
    """Raise ValueError where the backbone or the canvas cannot have a side of `res` pixels."""
    _check(key, res, RES_MIN <= res <= RES_MAX, f"a side in pixels from {RES_MIN} to {RES_MAX}, the canvas")


def _check(key: str, got: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{key}: got {got!r}, wanted {wanted}")


class _Loader(yaml.SafeLoader):
    """Reads 1e-05 as a number, as DVC does, which writes it so (YAML 1.2); for YAML 1.1 and PyYAML it is text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _load(path: Path) -> object:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; run from the project's root") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: got text that is not YAML: {error}") from error


def _build(wanted: type, value: object, key: str) -> object:
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
        return _build(cast(type, hint), value, key)
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
