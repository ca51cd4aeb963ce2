"""From the configured name to the hub: the one place that knows every backend."""

from promptseg.deploy.hub import Hub, HubConfig
from promptseg.deploy.qnn_local import BACKEND as LOCAL
from promptseg.deploy.qnn_local import LocalHub


def open_hub(config: HubConfig) -> Hub:
    """Return the hub that `config.backend` names. Raises ValueError when it does not know `config.device`."""
    assert config.backend == LOCAL, "HubConfig admits only the backends listed in hub.BACKENDS"
    return LocalHub(config)
