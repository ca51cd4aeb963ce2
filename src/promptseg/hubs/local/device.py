"""The chips that the local compiler can be asked for, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NpuDevice:
    """One device's Hexagon tensor processor, in the numbers of Qualcomm's compiler.

    `simulator_soc_model` is a chip with the same core and memory for which the compiler's performance simulator writes
    figures (for `soc_model` itself it writes none).
    """

    name: str
    htp_arch: int
    soc_model: int
    simulator_soc_model: int
    vtcm_mb: int


DEVICES = (NpuDevice("Snapdragon X Elite CRD", htp_arch=73, soc_model=60, simulator_soc_model=52, vtcm_mb=8),)


def npu_device(name: str) -> NpuDevice:
    """Find a device by its name, as AI Hub spells it. Raises ValueError listing the known ones."""
    for device in DEVICES:
        if device.name == name:
            return device
    known = ", ".join(repr(device.name) for device in DEVICES)
    raise ValueError(f"hub.device: got {name!r}, wanted one that the local compiler is set up for: {known}")
