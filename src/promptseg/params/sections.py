"""The sections of params.yaml, one frozen dataclass each: types with their ranges, and what one key asks of another."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

RES_MIN, RES_MAX = 64, 1024  # two cells at stride 32; the canvas
ELSEWHERE = ("http://", "https://", "package:", "timm/")  # weights that are no file of this folder
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")  # of files of weights
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# A range is said in words by promptseg.params; `description` stands in for it where there is more to say.
RES_WANTED = f"a whole number of pixels from {RES_MIN} to {RES_MAX}, the canvas"
Res = Annotated[int, Field(ge=RES_MIN, le=RES_MAX, description=RES_WANTED)]
MODEL_WANTED = "nano, mobile, photo, focal_t, vit_b, clipseg, or timm/ and a backbone's name, such as timm/resnet18"
MODEL_NAMES = r"^(nano|mobile|photo|focal_t|vit_b|clipseg|timm/[\w.]+)$"
Model = Annotated[str, Field(pattern=MODEL_NAMES, description=MODEL_WANTED)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="a whole number from 0 to below 2**63")]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Zoom = Annotated[float, Field(ge=0.1, le=4)]
Milestones = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1)], ...],
    Field(description="rising shares of the steps, each above 0 and below 1"),
]
ZOOM_WANTED = "the smallest and the largest, both from 0.1 to 4; [1, 1]: none"
ZoomRange = Annotated[tuple[Zoom, ...], Field(min_length=2, max_length=2, description=ZOOM_WANTED)]
Email = Annotated[str, Field(pattern=r"^[^@]+@[^@]+$", description="an e-mail address")]
Version = Annotated[str, Field(pattern=r"^\S+$", description="text: a version as AI Hub lists it, such as '2.45'")]

Precision = Literal["fp16", "w8a16", "w8a8", "mixed"]


def check_res(key: str, res: int) -> None:
    """Raise ValueError where the backbone or the canvas cannot have a side of `res` pixels."""
    if not RES_MIN <= res <= RES_MAX:
        raise ValueError(f"{key}: got {res!r}, wanted {RES_WANTED}")


def is_hub_name(init: str) -> bool:
    """Tell whether weights are named as on Hugging Face's hub, owner/name, and are no file or folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", init)) and not (Path(init).exists() or init.endswith(SUFFIXES))


@dataclass(frozen=True, config=STRICT)
class LossWeights:
    """Weights of the loss terms of the same names, for matching and for training alike."""

    mask_bce: NotNegative
    mask_dice: NotNegative
    contrast: NotNegative
    region: NotNegative


@dataclass(frozen=True, config=STRICT)
class LrScale:
    """How much of the learning rates the parts learn at that come pretrained; the rest learns at all of it."""

    backbone: Share
    text_encoder: Share


@dataclass(frozen=True, config=STRICT)
class FinetuneConfig:
    """How the network is trained; `res` holds the sizes of which one is drawn per step.

    `watch` is the folder or the file that holds `init`, where that is no address: a dependency of the stage. With a
    `.safetensors`, that has its configuration beside it, a folder.
    """

    init: str | None
    watch: str
    attends: Literal["inside", "outside"]
    mask_resize: Literal["bilinear", "bicubic"]
    seed: Seed
    steps: Whole
    res: Annotated[tuple[Res, ...], Field(min_length=1, description="a list of at least one size")]
    batch_size: Count
    phrases_per_picture: Count
    accumulate: Count
    learning_rate: Positive
    muon_learning_rate: Positive | None
    lr_scale: LrScale
    frozen: tuple[str, ...]
    lr_milestones: Milestones
    weight_decay: NotNegative
    warmup_steps: Whole
    clip_norm: Positive
    loss_weights: LossWeights
    val_res: Res
    val_every: Count
    val_phrases: Count
    train_phrases: Whole
    patience: Count | None
    flip: bool
    zoom: ZoomRange
    crop: ZoomRange | None
    colour: Annotated[float, Field(ge=0, lt=1)]
    absent_share: Annotated[float, Field(ge=0, lt=1)]
    average: Annotated[float, Field(ge=0, lt=1)]
    bfloat16: bool
    snapshot_every_s: NotNegative
    cache_gib: NotNegative
    processes: Count
    workers: Whole
    compile: bool
    checkpoint_activations: bool

    @field_validator("watch")
    @classmethod
    def _holds_init(cls, watch: str, info: ValidationInfo) -> str:
        init = info.data.get("init")
        if init is None or init.startswith(ELSEWHERE) or is_hub_name(init):
            return watch
        path = Path(init)
        files, holds = [path], init
        if path.suffix == ".safetensors":  # its configuration lies beside it
            files, holds = [path, path.with_suffix(".json")], str(path.parent)
        if not all(file.resolve().is_relative_to(Path(watch).resolve()) for file in files):
            raise ValueError(
                f"what holds finetune.init, {init!r}: DVC notices changes only in what it watches; set finetune.watch "
                f"to {holds}, or, if a stage of this pipeline writes it (then DVC deletes it before training), copy it "
                "and the .json beside it to weights/ first"
            )
        return watch

    @field_validator("steps")
    @classmethod
    def _something_to_deploy(cls, steps: int, info: ValidationInfo) -> int:
        if steps == 0 and info.data.get("init", "") is None:
            raise ValueError("a number of steps >= 1, or a checkpoint as init")
        return steps

    @field_validator("lr_milestones")
    @classmethod
    def _rising(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError
        return milestones

    @field_validator("zoom")
    @classmethod
    def _ordered(cls, zoom: tuple[float, ...]) -> tuple[float, ...]:
        if zoom[0] > zoom[1]:
            raise ValueError
        return zoom


@dataclass(frozen=True, config=STRICT)
class CalibrationConfig:
    """What ranges of integers are made from: `samples` of the train split, and how, see export/quantize.py."""

    samples: Count
    method: Literal["minmax", "percentile", "entropy", "mse"]


@dataclass(frozen=True, config=STRICT)
class ExportConfig:
    """`contract` is whose inputs and outputs the graphs have (hubs/contract.py).

    `parity_samples`: how many samples that were not traced the graphs are compared with torch on. `keep`: what `mixed`
    keeps in 16 bits or float; null is what was measured for the model.
    """

    contract: Literal["challenge", "app"]
    opset: Annotated[int, Field(ge=17, le=23, description="an ONNX opset from 17 to 23")]
    parity_samples: Count
    precision: Precision
    calibration: CalibrationConfig
    keep: tuple[str, ...] | None

    @property
    def integers(self) -> bool:
        """Whether the graphs are quantized."""
        return self.precision != "fp16"

    @field_validator("precision")
    @classmethod
    def _is_quantized_whole(cls, precision: str, info: ValidationInfo) -> str:
        if precision != "fp16" and info.data.get("contract") == "app":
            raise ValueError("fp16 with export.contract app: only the challenge's one graph is quantized")
        return precision


@dataclass(frozen=True, config=STRICT)
class AiHubConfig:
    """How Qualcomm's cloud is used; read by the backend of that name only."""

    qairt_version: Version
    max_profiler_iterations: Count
    share_with: tuple[Email, ...]
    chunk_mb: Count
    jobs_in_flight: Count
    wait_hours: Positive


@dataclass(frozen=True, config=STRICT)
class HubConfig:
    """Where the graph is compiled, profiled and run, and on how much of which split (`samples` null: all of it)."""

    backend: Literal["local", "aihub"]
    device: str
    split: Literal["train", "val", "test"]
    samples: Count | None
    emulator_samples: Whole
    min_fidelity_mean: Share
    min_fidelity_worst: Share
    cpu_latency_runs: Count
    aihub: AiHubConfig


@dataclass(frozen=True, config=STRICT)
class ScoreConfig:
    """`seed` of the bootstrap; `gallery` is how many best, median and worst samples the pictures show, of each."""

    seed: Whole
    gallery: Annotated[int, Field(ge=1, le=12)]
