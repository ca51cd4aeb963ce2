"""hub-infer: a mask for every sample of `hub.split`, and how faithful the compiled graph is to the exported one."""

from pathlib import Path

from promptseg.datasets.records import write_predictions
from promptseg.files import write_json
from promptseg.hubs.backends import open_hub
from promptseg.hubs.base import read_compiled
from promptseg.hubs.fidelity import infer, measure_fidelity
from promptseg.hubs.host import GraphInputs
from promptseg.params import read_params
from stages import CACHE, ROOT, run_stage


def hub_infer(
    graph: Path, compiled: Path, images: Path, samples: Path, tokens: Path, predictions: Path, fidelity: Path
) -> None:
    """See the module."""
    config = read_params(ROOT).hub
    hub = open_hub(config, CACHE)
    read_compiled(graph, compiled, config.backend)
    inputs = GraphInputs(images, samples, tokens, config.split, config.samples)
    write_predictions(predictions, infer(hub, graph, compiled, inputs))
    few = GraphInputs(images, samples, tokens, config.split, config.emulator_samples)
    compared = measure_fidelity(hub, graph, compiled, few)
    write_json(fidelity, compared.to_json() if compared else {"samples": 0, "mask_agreement": None})


if __name__ == "__main__":
    run_stage(hub_infer, __doc__, "graph", "compiled", "images", "samples", "tokens", "predictions", "fidelity")
