"""From the configured name to the hub: the one place that knows every backend."""

from promptseg.deploy.hub import Hub
from promptseg.deploy.qnn_local import BACKEND as LOCAL
from promptseg.deploy.qnn_local import LocalHub
from promptseg.params import HubConfig


def open_hub(config: HubConfig) -> Hub:
    """Return the hub that `config.backend` names. Raises ValueError when it does not know `config.device`."""
    assert config.backend == LOCAL, "HubConfig admits no other backend"
    return LocalHub(config)
