"""Weights that others published for one of timm's backbones: from timm's hub, a file, or an installed package.

timm's own loader reads them, strictly; the decoders and the text encoder above stay as they were drawn.
"""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from promptseg.checkpoints.checkpoint import DAMAGED, values_sha256
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.networks.xdecoder.timm_backbone import TimmBackbone, TimmConfig

HUB = "timm/"  # an init of timm's hub is named as there: timm/tf_efficientnet_lite0.in1k
PACKAGE = "package:"
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def package_file(init: str) -> Path:
    """Return the one file of weights that an installed package, named `package:<name>`, brings; none of it is run.

    Raises ValueError when the package is not installed, or brings no such file or several.
    """
    name = init.removeprefix(PACKAGE)
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError as error:
        raise ValueError(
            f"finetune.init: got {init}, a package that is not installed; run `pip install {name}`, or name a file"
        ) from error
    found = [file for file in files if file.suffix in SUFFIXES]
    if len(found) != 1:
        raise ValueError(f"finetune.init: got {init} with {len(found)} files of {', '.join(SUFFIXES)}, wanted one")
    return Path(str(found[0].locate()))


def load_backbone(network: XDecoder, source: Path | str) -> dict[str, Any]:
    """Give the backbone of `network`, which is timm's, the weights of a file, or of a name on timm's hub; the ledger.

    Raises ValueError for a damaged file, for weights of another architecture, and where the hub cannot be reached.
    """
    config, backbone = network.config.backbone, network.backbone
    assert isinstance(config, TimmConfig)
    assert isinstance(backbone, TimmBackbone)
    import timm  # a second or more: only where there is such a backbone

    whole = _from_file(config.name, source) if isinstance(source, Path) else _from_hub(config.name, source)
    state = whole.state_dict()
    loaded = timm.create_model(
        config.name, pretrained=True, features_only=True, pretrained_cfg_overlay={"state_dict": state}
    )
    weights = {key: value for key, value in loaded.state_dict().items() if not key.endswith("num_batches_tracked")}
    backbone.encoder.load_state_dict(weights, strict=True)
    return {"backbone": config.name, "values_sha256": values_sha256(weights), "drawn": "all but the backbone"}


def _from_hub(name: str, init: str) -> nn.Module:
    import timm

    wanted = init.removeprefix(HUB)
    if wanted.partition(".")[0] != name.partition(".")[0]:
        raise ValueError(f"finetune.init: got {init}, wanted weights of the model's backbone, {HUB}{name}")
    try:
        return timm.create_model(wanted, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:  # of the hub's client: no network, no such weights
        raise ValueError(
            f"finetune.init: got {init}, which timm's hub did not give ({str(error).splitlines()[0]}). Without "
            "network access, fetch the file elsewhere (huggingface.co/timm), copy it to weights/ and name it: "
            "finetune.init=weights/<file>"
        ) from error


def _from_file(name: str, path: Path) -> nn.Module:
    import timm
    from timm.models import load_state_dict

    if not path.is_file():
        raise ValueError(f"finetune.init: {path}: no such file; wanted weights of the backbone {name!r}")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except DAMAGED as error:
        raise ValueError(
            f"finetune.init: {path}: got a file that holds no weights ({error}); fetch it again"
        ) from error
    try:
        fitting = _renamed(state, timm.create_model(name).state_dict())
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": fitting})
    except DAMAGED as error:
        raise ValueError(
            f"finetune.init: {path}: got weights that are not those of the backbone {name!r} as timm has it: "
            f"{' '.join(str(error).split())[:500]}; wanted the file that was published for it"
        ) from error


def _renamed(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by timm's names, where a file has the same tensors in the same order under other modules' names."""
    pairs = list(zip(state.items(), wanted.items(), strict=False))
    alike = len(state) == len(wanted) and all(
        theirs.rpartition(".")[2] == ours.rpartition(".")[2] and value.shape == like.shape
        for (theirs, value), (ours, like) in pairs
    )
    if not alike or state.keys() == wanted.keys():
        return dict(state)
    return {ours: value for (_, value), (ours, _) in pairs}
