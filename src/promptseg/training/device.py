"""Where and how a network trains: the device, its number format, compilation, and what it keeps in memory."""

import torch
from accelerate import Accelerator
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from promptseg.networks.xdecoder.backbone import FocalBlock
from promptseg.networks.xdecoder.mask_decoder import DecoderLayer
from promptseg.networks.xdecoder.model import XDecoder
from promptseg.networks.xdecoder.pixel_decoder import EncoderLayer
from promptseg.networks.xdecoder.text_encoder import TextBlock
from promptseg.networks.xdecoder.vit_backbone import VitBlock

RECOMPUTED = (FocalBlock, VitBlock, TextBlock, EncoderLayer, DecoderLayer)


def make_accelerator() -> Accelerator:
    """CUDA in bfloat16 where there is a GPU (one for each process that was launched), else the processor in float32."""
    on_gpu = torch.cuda.is_available()
    return Accelerator(cpu=not on_gpu, mixed_precision="bf16" if on_gpu else "no")


def prepare_network(network: XDecoder, compiled: bool, checkpoint_activations: bool) -> None:
    """Change how the network computes, not what, in place; names of weights stay.

    Blocks in RECOMPUTED hold no activations where `checkpoint_activations`; the parts with static shapes are compiled.
    """
    if checkpoint_activations:
        apply_activation_checkpointing(network, check_fn=lambda module: type(module) in RECOMPUTED)
    if compiled:
        for part in (network.backbone, network.pixel_decoder, network.text_encoder):
            part.compile()
