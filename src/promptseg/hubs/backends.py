"""From the configured name to the hub: the one place that knows every backend; each is imported where asked for."""

from pathlib import Path

from promptseg.hubs.base import Hub
from promptseg.params import HubConfig


def open_hub(config: HubConfig, cache: Path) -> Hub:
    """Return the hub that `config.backend` names; what it must remember goes below `cache`.

    Raises ValueError when the local one does not know `config.device`; the cloud is asked for it before the first job.
    """
    if config.backend == "aihub":
        from promptseg.hubs.aihub.hub import AiHub

        return AiHub(config, cache)
    from promptseg.hubs.local.hub import LocalHub

    return LocalHub(config, cache)


def check_hub(config: HubConfig, cache: Path, precision: str = "fp16") -> None:
    """Refuse now what a hub would refuse after training: a device that it lacks, or that lacks the precision, and, of
    the cloud, token and version.

    For the local compiler this reads a table, in milliseconds, and loads neither torch nor ONNX Runtime; the cloud is
    asked. Raises ValueError (a device: with the nearest names), or what the cloud's client raises where it cannot be
    reached.
    """
    if config.backend == "aihub":
        from promptseg.hubs.aihub.preflight import check_service

        check_service(config, cache, precision)
    else:
        from promptseg.hubs.devices import find_device

        find_device(config.device).check_precision(precision)
