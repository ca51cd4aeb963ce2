"""hub-profile: what one inference costs, on the device and on this machine; estimated figures are named so."""

from pathlib import Path

from promptseg.files import write_json, write_rows
from promptseg.hubs.backends import open_hub
from promptseg.hubs.base import CompiledGraphs, write_layers
from promptseg.hubs.devices import ESTIMATE_COLUMNS
from promptseg.hubs.host import measure_on_host
from promptseg.params import read_params
from stages import CACHE, ROOT, run_stage


def hub_profile(graphs: Path, compiled: Path, latency: Path, layers: Path, devices: Path) -> None:
    """See the module."""
    config = read_params(ROOT).hub
    profile = open_hub(config, CACHE).profile(graphs, compiled)
    host = measure_on_host(graphs, config.cpu_latency_runs)
    write_json(latency, profile.to_json(CompiledGraphs.read(compiled), host))
    write_layers(layers, profile.layers)
    write_rows(devices, profile.estimates, ESTIMATE_COLUMNS)


if __name__ == "__main__":
    run_stage(hub_profile, __doc__, "graphs", "compiled", "latency", "layers", "devices")
