"""Where training starts: from nothing, or from a checkpoint, ours or a published one, that must fit params.yaml."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from promptseg.checkpoints.backbone_weights import HUB, PACKAGE, load_backbone, package_file
from promptseg.checkpoints.backbone_weights import SUFFIXES as BACKBONE_SUFFIXES
from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.checkpoints.clipseg_weights import load_clipseg
from promptseg.checkpoints.published import SUFFIXES, load_published
from promptseg.download import download
from promptseg.files import sha256_of
from promptseg.networks import architecture, build, family_of
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.mask_decoder import MaskAttention
from promptseg.networks.xdecoder.model import XDecoder, XDecoderConfig
from promptseg.networks.xdecoder.timm_backbone import TimmConfig
from promptseg.params import FinetuneConfig, is_hub_name

OURS = ".safetensors"


@dataclass(frozen=True)
class Start:
    """The network to train, the sha256 of the weights it starts from (None: drawn), and how they were read.

    `ledger` says what became of every key of a published file; of other starts it says what they are.
    """

    network: Network
    init_sha256: str | None
    ledger: dict[str, Any]


def starting_point(model: str, config: FinetuneConfig, downloads: Path) -> Start:
    """Build the network that `finetune` names; weights from an address are kept below `downloads`.

    Raises ValueError when the weights are missing, or their architecture or mask attention is not the one asked for, or
    when a picture has more phrases than the network has queries.
    """
    try:
        wanted = architecture(model, MaskAttention(config.attends, config.mask_resize))
    except ValueError as error:
        raise ValueError(f"model: {error}") from error
    torch.manual_seed(config.seed)  # of what weights leave drawn, or all of it
    if config.init is None:
        return _checked(Start(build(wanted), None, {"init": None, "kind": "drawn", "seed": config.seed}), model, config)
    of_timm = isinstance(wanted, XDecoderConfig) and isinstance(wanted.backbone, TimmConfig)
    source = weights_file(config.init, downloads, alone=of_timm)
    network, keys = _load(source, model, wanted)
    sha256 = sha256_of(source) if isinstance(source, Path) and source.is_file() else keys["values_sha256"]
    return _checked(Start(network, sha256, {"init": config.init, "sha256": sha256, **keys}), model, config)


def _checked(start: Start, model: str, config: FinetuneConfig) -> Start:
    most = start.network.most_phrases
    if most is not None and config.phrases_per_picture > most:
        raise ValueError(
            f"finetune.phrases_per_picture: got {config.phrases_per_picture}, wanted at most {most}, the object "
            f"queries of model {model!r}: each phrase's object is matched to a query of its own"
        )
    for key, res in [("val_res", config.val_res), *(("res", res) for res in config.res)] if config.steps else ():
        start.network.check_res(f"finetune.{key}", res)
    return start


def weights_file(init: str, downloads: Path, alone: bool = False) -> Path | str:
    """Return the path of the weights; an address is downloaded below `downloads`, with the JSON of a .safetensors.

    A name on a hub, timm's or Hugging Face's, is returned as it is: their own loaders keep what they download. `alone`:
    a .safetensors without its JSON will do, too, as it is published for backbones.

    A file that was downloaded before is used again where its bytes still have the sha256 that was recorded then. Raises
    ValueError when the address gives no file, OSError when the disk is full.
    """
    if init.startswith(HUB) or is_hub_name(init):
        return init
    if init.startswith(PACKAGE):
        return package_file(init)
    if not init.startswith(("http://", "https://")):
        return Path(init)
    parts = urlsplit(init)
    name = PurePosixPath(unquote(parts.path)).name
    if not name:
        raise ValueError(f"finetune.init: got {init}, wanted the address of a file")
    target = downloads / hashlib.sha256(init.encode()).hexdigest()[:16] / name
    if name.endswith(OURS):
        beside = parts._replace(path=parts.path.removesuffix(OURS) + ".json").geturl()
        try:
            download(beside, target.with_suffix(".json"), sha256=None, expected_bytes=None)
        except ValueError:
            if not alone:
                raise
    download(init, target, sha256=None, expected_bytes=None)
    return target


def _load(source: Path | str, model: str, wanted: Any) -> tuple[Network, dict[str, Any]]:
    """Build the network with the weights that `source` holds; the ledger says of which kind they are."""
    if isinstance(source, Path) and source.suffix == OURS and source.with_suffix(".json").is_file():
        return _load_ours(source, model, wanted), {"kind": "ours"}
    return PUBLISHED[family_of(wanted)](source, model, wanted)


def _load_ours(path: Path, model: str, wanted: Any) -> Network:
    network, _ = load_checkpoint(path)
    got = network.config
    if type(got) is not type(wanted):
        raise ValueError(
            f"finetune.init: got {path}, a network of the family {family_of(got)}, wanted one of {family_of(wanted)}, "
            f"which model {model!r} is; change model"
        )
    if not isinstance(wanted, XDecoderConfig):
        return network  # of any size
    wanted = replace(wanted, canvas_rule=got.canvas_rule)  # which the weights decide
    if got != wanted:
        raise ValueError(
            f"finetune.init: {path} differs from model {model!r} in {'; '.join(_differences(got, wanted))}; "
            "change model, finetune.attends or finetune.mask_resize"
        )
    return network


def _load_xdecoder(source: Path | str, model: str, wanted: XDecoderConfig) -> tuple[Network, dict[str, Any]]:
    """Read a published X-Decoder, or, where the backbone is timm's, weights of that."""
    suffix = source.suffix if isinstance(source, Path) else HUB
    if isinstance(wanted.backbone, TimmConfig):
        known = f"{', '.join(BACKBONE_SUFFIXES)}, or a name on timm's hub: weights of its backbone"
        if suffix in (HUB, *BACKBONE_SUFFIXES):
            network = XDecoder(wanted).eval()
            return network, {"kind": "backbone", **load_backbone(network, source)}
    else:
        known = f"{' or '.join(SUFFIXES)}, a published one"
        if isinstance(source, Path) and suffix in SUFFIXES:
            try:
                published, ledger = load_published(source, wanted)
            except ValueError as error:
                raise ValueError(f"finetune.init, for model {model!r}: {error}") from error
            return published, {"kind": "published", **ledger}
        if isinstance(source, Path) and suffix == OURS:
            load_checkpoint(source)  # says what is missing
    raise ValueError(
        f"finetune.init: got {(source.name if isinstance(source, Path) else source)!r} for model {model!r}, wanted a "
        f"file that ends with {OURS}, a checkpoint of ours, or {known}"
    )


def _load_clipseg(source: Path | str, model: str, _wanted: Any) -> tuple[Network, dict[str, Any]]:
    """Read a published CLIPSeg of any size: the file says which."""
    try:
        network, ledger = load_clipseg(str(source))
    except ValueError as error:
        raise ValueError(f"finetune.init, for model {model!r}: {error}") from error
    return network, {"kind": "published", **ledger}


# Of each family: read weights that others published, a file or a hub's name, for a configuration; with the ledger.
PUBLISHED: dict[str, Callable[[Path | str, str, Any], tuple[Network, dict[str, Any]]]] = {
    "xdecoder": _load_xdecoder,
    "clipseg": _load_clipseg,
}


def _differences(got: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Each field in which two configurations differ, by its dotted name, with both values."""
    if type(got) is not type(wanted) or not is_dataclass(got):
        if got != wanted:
            yield f"{name}: got {got!r}, wanted {wanted!r}"
        return
    for field in fields(got):
        dotted = f"{name}.{field.name}" if name else field.name
        yield from _differences(getattr(got, field.name), getattr(wanted, field.name), dotted)
