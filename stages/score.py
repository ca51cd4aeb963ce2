"""score: mIoU with its baselines and intervals, the pictures behind it, and a report that opens offline."""

from dataclasses import asdict
from pathlib import Path

from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.records import read_pictures, read_predictions, read_samples
from promptseg.files import read_json, sha256_of, write_bytes, write_json, write_table
from promptseg.hubs.base import CompiledGraphs
from promptseg.params import read_params
from promptseg.report.gallery import Shown
from promptseg.report.page import build_report, provenance, render_report
from promptseg.scoring import check_records, score, tradeoff_table, with_fidelity
from stages import ROOT, run_stage

INPUTS = (
    *("predictions", "images", "samples", "objects", "compiled"),
    *("latency", "layers", "devices", "export", "ops", "fidelity", "curve", "description"),
)
OUTPUTS = ("score", "rows", "tradeoff", "gallery", "report")


def score_stage(**paths: Path) -> None:
    """See the module; `paths` are INPUTS and OUTPUTS."""
    params = read_params(ROOT)
    samples, predictions = read_samples(paths["samples"]), read_predictions(paths["predictions"])
    compiled = asdict(CompiledGraphs.read(paths["compiled"]))
    records = {name: read_json(paths[name]) for name in ("latency", "export", "fidelity")}
    hashes = {name: sha256_of(paths[name]) for name in ("samples", "predictions")}
    hashes["curve"] = sha256_of(paths["curve"] / "loss.tsv")
    filed_under = {"model": params.model, "res": params.res, "device": params.hub.device}
    filed_under |= {name: compiled[name] for name in ("precision", "graph_sha256")}
    records |= {"checkpoint": read_json(paths["description"])["provenance"], "compiled": compiled}
    check_records(filed_under | {"predictions_sha256": hashes["predictions"]}, records)
    scores = score(samples, read_pictures(paths["objects"]), predictions, params.score.seed)
    records["provenance"] = provenance({"data": params.data, **filed_under}, records, hashes)
    shown = Shown(samples, predictions, PictureArchives(paths["images"]).read)
    tables = {name: paths[name] for name in ("curve", "ops", "layers", "devices")}
    page, sheet = build_report(scores, shown, records, tables, params.score.gallery, params.score.seed)
    write_json(paths["score"], with_fidelity(scores.summary, records["fidelity"]))
    write_table(paths["rows"], scores.rows)
    write_table(paths["tradeoff"], tradeoff_table(params.res, scores.summary, records["latency"], records["fidelity"]))
    write_bytes(paths["gallery"], sheet)
    write_bytes(paths["report"], render_report(page).encode("utf-8"))


if __name__ == "__main__":
    run_stage(score_stage, __doc__, *INPUTS, *OUTPUTS)
