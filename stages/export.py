"""export: the trained network at `res` as ONNX, checked against torch, and made integers where precision says so."""

from pathlib import Path

from promptseg.checkpoints.checkpoint import load_checkpoint
from promptseg.export.onnx_export import export_graphs, write_ops
from promptseg.export.quantize import calibration_inputs, quantize_graphs
from promptseg.files import sha256_of, write_json
from promptseg.hubs.host import GraphInputs
from promptseg.params import read_params
from stages import ROOT, run_stage


def export_stage(
    checkpoint: Path, images: Path, samples: Path, tokens: Path, graphs: Path, float: Path, export: Path, ops: Path
) -> None:
    """See the module."""
    params = read_params(ROOT)
    config = params.export
    network, provenance = load_checkpoint(checkpoint)
    inputs = GraphInputs(images, samples, tokens, params.hub.split, config.parity_samples)
    float.mkdir(parents=True, exist_ok=True)  # stays empty where nothing is quantized
    report = export_graphs(
        network,
        params.res,
        config,
        inputs,
        float if config.integers else graphs,
        model=provenance.model,
        checkpoint_sha256=sha256_of(checkpoint),
    ).to_json()
    if config.integers:
        train = calibration_inputs(images, samples, tokens, config.calibration.samples)
        report["quantized"] = quantize_graphs(float, config, train, graphs).to_json()
    write_json(export, report)
    write_ops(graphs, ops)


if __name__ == "__main__":
    run_stage(export_stage, __doc__, "checkpoint", "images", "samples", "tokens", "graphs", "float", "export", "ops")
