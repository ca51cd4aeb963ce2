"""hub-profile: what one inference costs; estimated figures are named so."""

from pathlib import Path

from promptseg.files import write_json
from promptseg.hubs.backends import open_hub
from promptseg.params import read_params
from stages import CACHE, ROOT, run_stage


def hub_profile(graph: Path, compiled: Path, latency: Path) -> None:
    """See the module."""
    profile = open_hub(read_params(ROOT).hub, CACHE).profile(graph, compiled)
    write_json(latency, profile.to_json())


if __name__ == "__main__":
    run_stage(hub_profile, __doc__, "graph", "compiled", "latency")
