"""Where training starts: from nothing, or from a checkpoint, ours or a published one, that must fit params.yaml."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.checkpoints.published import SUFFIXES, load_published
from promptseg.download import download
from promptseg.files import sha256_of
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder, XDecoderConfig, focal_t, nano, vit_b
from promptseg.params import FinetuneConfig

BUILDERS: dict[str, Callable[[MaskAttention], XDecoderConfig]] = {"nano": nano, "focal_t": focal_t, "vit_b": vit_b}


@dataclass(frozen=True)
class Start:
    """The network to train, the sha256 of the weights it starts from (None: drawn), and how they were read.

    `ledger` says what became of every key of a published file; of other starts it says what they are.
    """

    network: XDecoder
    init_sha256: str | None
    ledger: dict[str, Any]


def starting_point(model: str, config: FinetuneConfig, downloads: Path) -> Start:
    """Build the network that `finetune` names; weights from an address are kept below `downloads`.

    Raises ValueError when the weights are missing, or their architecture or mask attention is not the one asked for, or
    when a picture has more phrases than the network has queries.
    """
    wanted = BUILDERS[model](MaskAttention(config.attends, config.mask_resize))
    queries = wanted.mask_decoder.object_queries
    if config.phrases_per_picture > queries:
        raise ValueError(
            f"finetune.phrases_per_picture: got {config.phrases_per_picture}, wanted at most {queries}, the object "
            f"queries of model {model!r}: each phrase's object is matched to a query of its own"
        )
    if config.init is None:
        torch.manual_seed(config.seed)
        return Start(XDecoder(wanted), None, {"init": None, "kind": "drawn", "seed": config.seed})
    path = weights_file(config.init, downloads)
    kind, load = _reader(path)
    network, keys = load(path, model, wanted)
    sha256 = sha256_of(path)
    return Start(network, sha256, {"init": config.init, "kind": kind, "sha256": sha256, **keys})


def weights_file(init: str, downloads: Path) -> Path:
    """Return the path of the weights; an address is downloaded below `downloads`, with the JSON of a .safetensors.

    A file that was downloaded before is used again where its bytes still have the sha256 that was recorded then. Raises
    ValueError when the address gives no file, OSError when the disk is full.
    """
    if not init.startswith(("http://", "https://")):
        return Path(init)
    parts = urlsplit(init)
    name = PurePosixPath(unquote(parts.path)).name
    if not name:
        raise ValueError(f"finetune.init: got {init}, wanted the address of a file")
    target = downloads / hashlib.sha256(init.encode()).hexdigest()[:16] / name
    if name.endswith(".safetensors"):
        beside = parts._replace(path=parts.path.removesuffix(".safetensors") + ".json").geturl()
        download(beside, target.with_suffix(".json"), sha256=None, expected_bytes=None)
    download(init, target, sha256=None, expected_bytes=None)
    return target


_Load = Callable[[Path, str, XDecoderConfig], tuple[XDecoder, dict[str, Any]]]


def _reader(path: Path) -> tuple[str, _Load]:
    if path.suffix == ".safetensors":
        return "ours", _load_ours
    if path.suffix in SUFFIXES:
        return "published", _load_published
    wanted = f".safetensors, a checkpoint of ours, or {' or '.join(SUFFIXES)}, a published one"
    raise ValueError(f"finetune.init: got {path.name!r}, wanted a file that ends with {wanted}")


def _load_ours(path: Path, model: str, wanted: XDecoderConfig) -> tuple[XDecoder, dict[str, Any]]:
    network, _ = load_checkpoint(path)
    wanted = replace(wanted, canvas_rule=network.config.canvas_rule)  # which the weights decide
    if network.config != wanted:
        raise ValueError(
            f"finetune.init: {path} differs from model {model!r} in {'; '.join(_differences(network.config, wanted))}; "
            "change model, finetune.attends or finetune.mask_resize"
        )
    return network, {}


def _load_published(path: Path, model: str, wanted: XDecoderConfig) -> tuple[XDecoder, dict[str, Any]]:
    try:
        return load_published(path, wanted)
    except ValueError as error:
        raise ValueError(f"finetune.init, for model {model!r}: {error}") from error


def _differences(got: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Each field in which two configurations differ, by its dotted name, with both values."""
    if type(got) is not type(wanted) or not is_dataclass(got):
        if got != wanted:
            yield f"{name}: got {got!r}, wanted {wanted!r}"
        return
    for field in fields(got):
        dotted = f"{name}.{field.name}" if name else field.name
        yield from _differences(getattr(got, field.name), getattr(wanted, field.name), dotted)
