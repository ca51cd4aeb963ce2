"""export: the trained network at `res` as ONNX with the challenge's border, checked against torch."""

from pathlib import Path

from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.export.onnx_export import export_graphs, write_ops
from promptseg.files import sha256_of, write_json
from promptseg.hubs.host import GraphInputs
from promptseg.params import read_params
from stages import ROOT, run_stage


def export_stage(
    checkpoint: Path, images: Path, samples: Path, tokens: Path, graphs: Path, export: Path, ops: Path
) -> None:
    """See the module."""
    params = read_params(ROOT)
    network, provenance = load_checkpoint(checkpoint)
    inputs = GraphInputs(images, samples, tokens, params.hub.split, params.export.parity_samples)
    report = export_graphs(
        network,
        params.res,
        params.export,
        inputs,
        graphs,
        model=provenance.model,
        checkpoint_sha256=sha256_of(checkpoint),
    )
    write_json(export, report.to_json())
    write_ops(graphs, ops)


if __name__ == "__main__":
    run_stage(export_stage, __doc__, "checkpoint", "images", "samples", "tokens", "graphs", "export", "ops")
