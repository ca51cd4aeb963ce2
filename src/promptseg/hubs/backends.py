"""From the configured name to the hub: the one place that knows every backend."""

from pathlib import Path

from promptseg.hubs.aihub.hub import BACKEND as AIHUB
from promptseg.hubs.aihub.hub import AiHub
from promptseg.hubs.base import Hub
from promptseg.hubs.local.hub import BACKEND as LOCAL
from promptseg.hubs.local.hub import LocalHub
from promptseg.params import HubConfig


def open_hub(config: HubConfig, cache: Path) -> Hub:
    """Return the hub that `config.backend` names; what it must remember goes below `cache`.

    Raises ValueError when the local one does not know `config.device`; the cloud is asked for it before the first job.
    """
    if config.backend == AIHUB:
        return AiHub(config, cache)
    assert config.backend == LOCAL, "HubConfig admits no other backend"
    return LocalHub(config)
