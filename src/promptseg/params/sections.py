"""The sections of params.yaml, one frozen dataclass each: types, and ranges checked as they are built."""

from dataclasses import dataclass, fields
from typing import Literal

from promptseg.params.strict import check

RES_MIN, RES_MAX = 64, 1024  # two cells at stride 32; the canvas


def check_res(key: str, res: int) -> None:
    """Raise ValueError where the backbone or the canvas cannot have a side of `res` pixels."""
    check(key, res, RES_MIN <= res <= RES_MAX, f"a side in pixels from {RES_MIN} to {RES_MAX}, the canvas")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms of the same names, for matching and for training alike."""

    mask_bce: float
    mask_dice: float
    contrast: float
    region: float

    def __post_init__(self) -> None:
        for field in fields(self):
            check(field.name, getattr(self, field.name), getattr(self, field.name) >= 0, "a weight >= 0")


@dataclass(frozen=True)
class LrScale:
    """How much of the learning rates the parts learn at that come pretrained; the rest learns at all of it."""

    backbone: float
    text_encoder: float

    def __post_init__(self) -> None:
        for field in fields(self):
            check(field.name, getattr(self, field.name), 0 <= getattr(self, field.name) <= 1, "a share from 0 to 1")


@dataclass(frozen=True)
class FinetuneConfig:
    """How the network is trained; `res` holds the sizes of which one is drawn per step."""

    init: str | None
    attends: Literal["inside", "outside"]
    mask_resize: Literal["bilinear", "bicubic"]
    seed: int
    steps: int
    res: tuple[int, ...]
    batch_size: int
    phrases_per_picture: int
    accumulate: int
    learning_rate: float
    muon_learning_rate: float | None
    lr_scale: LrScale
    lr_milestones: tuple[float, ...]
    weight_decay: float
    warmup_steps: int
    clip_norm: float
    loss_weights: LossWeights
    val_res: int
    val_every: int
    val_phrases: int
    train_phrases: int
    patience: int | None
    flip: bool
    zoom: tuple[float, ...]
    snapshot_every_s: float
    cache_gib: float
    processes: int
    shard: bool
    workers: int
    compile: bool
    checkpoint_activations: bool

    def __post_init__(self) -> None:
        check("res", self.res, len(self.res) > 0, "a list of at least one size")
        for res in (*self.res, self.val_res):
            check_res("res" if res in self.res else "val_res", res)
        for key in ("batch_size", "phrases_per_picture", "accumulate", "val_every", "val_phrases", "processes"):
            check(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        not_negative = ("seed", "steps", "warmup_steps", "weight_decay", "snapshot_every_s", "cache_gib", "workers")
        for key in (*not_negative, "train_phrases"):
            check(key, getattr(self, key), getattr(self, key) >= 0, "0 or more")
        for key in ("learning_rate", "clip_norm"):
            check(key, getattr(self, key), getattr(self, key) > 0, "a number above 0")
        check("patience", self.patience, self.patience is None or self.patience >= 1, "null (never) or at least 1")
        rising = list(self.lr_milestones) == sorted(set(self.lr_milestones)) and all(
            0 < at < 1 for at in self.lr_milestones
        )
        check("lr_milestones", self.lr_milestones, rising, "rising shares of the steps, each above 0 and below 1")
        ordered = len(self.zoom) == 2 and 0.1 <= self.zoom[0] <= self.zoom[1] <= 4
        check("zoom", self.zoom, ordered, "the smallest and the largest, both from 0.1 to 4; [1, 1]: none")
        muon = self.muon_learning_rate
        check("muon_learning_rate", muon, muon is None or muon > 0, "null (AdamW alone) or a number above 0")
        check("seed", self.seed, self.seed < 2**63, "less than 2**63")
        check("init", self.init, self.init is not None or self.steps > 0, "a checkpoint, or steps > 0 to train one")


@dataclass(frozen=True)
class ExportConfig:
    """`parity_samples`: how many samples that were not traced the graph is compared with torch on."""

    opset: int
    parity_samples: int

    def __post_init__(self) -> None:
        check("opset", self.opset, 17 <= self.opset <= 23, "an ONNX opset from 17 to 23")
        check("parity_samples", self.parity_samples, self.parity_samples >= 1, "at least 1")


@dataclass(frozen=True)
class AiHubConfig:
    """How Qualcomm's cloud is used; read by the backend of that name only."""

    qairt_version: str
    max_profiler_iterations: int
    share_with: tuple[str, ...]
    chunk_mb: int
    jobs_in_flight: int
    wait_hours: float

    def __post_init__(self) -> None:
        is_one_word = bool(self.qairt_version.strip()) and len(self.qairt_version.split()) == 1
        check("qairt_version", self.qairt_version, is_one_word, "a version as AI Hub lists it, such as '2.45'")
        for email in self.share_with:
            check("share_with", email, "@" in email.strip("@"), "a list of e-mail addresses")
        for key in ("max_profiler_iterations", "chunk_mb", "jobs_in_flight"):
            check(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        check("wait_hours", self.wait_hours, self.wait_hours > 0, "a number above 0")


@dataclass(frozen=True)
class HubConfig:
    """Where the graph is compiled, profiled and run, and on how much of which split (`samples` null: all of it)."""

    backend: Literal["local", "aihub"]
    device: str
    split: Literal["train", "val", "test"]
    samples: int | None
    emulator_samples: int
    cpu_latency_runs: int
    aihub: AiHubConfig

    def __post_init__(self) -> None:
        check("samples", self.samples, self.samples is None or self.samples >= 1, "null (all) or at least 1")
        check("emulator_samples", self.emulator_samples, self.emulator_samples >= 0, "0 or more")
        check("cpu_latency_runs", self.cpu_latency_runs, self.cpu_latency_runs >= 1, "at least 1")


@dataclass(frozen=True)
class ScoreConfig:
    """`seed` of the bootstrap; `gallery` is how many best, median and worst samples the pictures show, of each."""

    seed: int
    gallery: int

    def __post_init__(self) -> None:
        check("seed", self.seed, self.seed >= 0, "0 or more")
        check("gallery", self.gallery, 1 <= self.gallery <= 12, "from 1 to 12")
