"""hub-infer: a mask for every sample of `hub.split`, held to the binary that is timed and to the graph in float32."""

from pathlib import Path

from promptseg.files import write_json
from promptseg.hubs.backends import open_hub
from promptseg.hubs.fidelity import infer
from promptseg.hubs.host import GraphInputs
from promptseg.params import read_params
from stages import CACHE, ROOT, run_stage


def hub_infer(
    graphs: Path,
    float: Path,
    compiled: Path,
    images: Path,
    samples: Path,
    tokens: Path,
    predictions: Path,
    fidelity: Path,
) -> None:
    """See the module."""
    config = read_params(ROOT).hub
    inputs = GraphInputs(images, samples, tokens, config.split, config.samples)
    record = infer(open_hub(config, CACHE), config, graphs, compiled, inputs, predictions, float)
    write_json(fidelity, record.to_json())


if __name__ == "__main__":
    names = ("graphs", "float", "compiled", "images", "samples", "tokens", "predictions", "fidelity")
    run_stage(hub_infer, __doc__, *names)
