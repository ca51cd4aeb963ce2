"""What the figures were measured on."""

import os

import torch

from promptseg.hubs.host import cpu_name


def machine(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()} ({os.cpu_count()} cores)"
