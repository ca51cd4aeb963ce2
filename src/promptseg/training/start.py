"""Where training starts: from nothing, or from a checkpoint that must fit what params.yaml asks for."""

from collections.abc import Callable
from pathlib import Path

import torch

from promptseg.checkpoint import load_checkpoint
from promptseg.files import sha256_of
from promptseg.params import FinetuneConfig
from promptseg.xdecoder.mask_decoder import MaskAttention
from promptseg.xdecoder.model import XDecoder, XDecoderConfig, nano

BUILDERS: dict[str, Callable[[MaskAttention], XDecoderConfig]] = {"nano": nano}


def initial_network(model: str, config: FinetuneConfig) -> tuple[XDecoder, str | None]:
    """Return the network to train and the sha256 of the weights it starts from (None: drawn from `config.seed`).

    Raises ValueError when the checkpoint is missing, or its architecture or mask attention is not the one asked for, or
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
        return XDecoder(wanted), None
    path = Path(config.init)
    network, _ = load_checkpoint(path)
    if network.config != wanted:
        differing = [name for name in vars(wanted) if getattr(wanted, name) != getattr(network.config, name)]
        got = {name: getattr(network.config, name) for name in differing}
        raise ValueError(
            f"finetune.init: {path} differs from model {model!r} in {', '.join(differing)}: got {got}, wanted "
            f"{ {name: getattr(wanted, name) for name in differing} }; change model, finetune.attends or mask_resize"
        )
    return network, sha256_of(path)
