"""Stages as processes: on bad input one clear line and nothing left behind."""

import dataclasses
import hashlib
import resource
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptseg.datasets.records import Rle, Sample, write_records
from promptseg.files import write_bytes, write_json
from promptseg.hubs.base import Binary, CompiledGraphs
from promptseg.scoring import GRAPH
from tests.projects import copy_parts, edit_yaml, files_of, run_stage

STAGES = ["fetch", "tokenize", "finetune", "export", "hub-compile", "hub-profile", "hub-infer", "score"]
FEW_SCENES = {"train_scenes": 3, "val_scenes": 1, "test_scenes": 1}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_parts(tmp_path / "project")


def set_params(project: Path, **changes: Any) -> None:
    edit_yaml(project / "params.yaml", {key.replace("__", "."): value for key, value in changes.items()})


def refusal(project: Path, name: str) -> str:
    """Run a stage that must refuse, in one line, and leave the project as it was; return the line."""
    before = files_of(project)
    done = run_stage(project, name)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert files_of(project) == before
    (line,) = done.stderr.splitlines()
    return line


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_mistake_in_params_stops_every_stage_before_any_work(project: Path, name: str) -> None:
    set_params(project, res="abc")
    assert (
        refusal(project, name) == "error: res: got 'abc', wanted a whole number of pixels from 64 to 1024, the canvas"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_explains_itself(project: Path, name: str) -> None:
    done = run_stage(project, name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"{name}: " in " ".join(done.stdout.split())
    assert files_of(project) == files_of(copy_parts(project.parent / "untouched"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": "pictures"},
            "data: got 'pictures', wanted one of lpcvc, photos, refcoco, refcoco_plus, refcocog, shapes, shapes_large "
            "(files of configs/data)",
        ),
        ({"finetune__steps": "many"}, "finetune.steps: got 'many', wanted a whole number"),
        ({"hub__speed": 3}, "hub.speed: unknown key; wanted only "),
        ({"score": None}, "score: got None, wanted a section with keys"),
        ({"res": 2000}, "res: got 2000, wanted a whole number of pixels from 64 to 1024, the canvas"),
        ({"data": "refcocog", "mirror": "nowhere"}, "mirror: got 'nowhere', which is no folder ("),
    ],
)
def test_fetch_names_the_key_that_is_wrong(project: Path, changes: dict[str, Any], message: str) -> None:
    set_params(project, **changes)
    assert refusal(project, "fetch").startswith(f"error: {message}")


def test_a_missing_section_is_named(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text[: text.index("score:")])
    assert refusal(project, "fetch") == "error: score: missing; wanted a section with keys"


@pytest.mark.parametrize("content", [None, "res: [", "- 1\n"])
def test_params_that_are_no_params_are_refused(project: Path, content: str | None) -> None:
    if content is None:
        (project / "params.yaml").unlink()
    else:
        (project / "params.yaml").write_text(content)
    before = files_of(project)
    done = run_stage(project, "fetch")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert files_of(project) == before


def test_a_wrong_data_configuration_is_named(project: Path) -> None:
    edit_yaml(project / "configs/data/shapes.yaml", {"objects_max": 50})
    wanted = "error: configs/data/shapes.yaml: objects_max: got 50, wanted from objects_min to 8"
    assert refusal(project, "fetch") == wanted


@pytest.mark.parametrize("listed", [False, True])
def test_a_corrupt_archive_in_the_mirror_leaves_nothing(project: Path, tmp_path: Path, listed: bool) -> None:
    """Refused by its checksum; and, where the mirror vouches for the damaged bytes, as no archive."""
    mirror = tmp_path / "mirror"
    sums = []
    for name in ("coco/zips/train2014.zip", "refer/refcocog.zip"):
        (mirror / name).parent.mkdir(parents=True)
        (mirror / name).write_bytes(b"PK\x03\x04" + name.encode())
        sums.append(f"{hashlib.sha256((mirror / name).read_bytes()).hexdigest()}  {name}\n")
    if listed:
        (mirror / "SHA256SUMS").write_text("".join(sums))
    set_params(project, data="refcocog", mirror=str(mirror), watch=str(mirror))
    line = refusal(project, "fetch")
    assert line.startswith(f"error: {mirror}")
    assert ("is not a whole zip archive" if listed else "it is damaged or another version") in line


def limit_file_size() -> None:
    """Of the child: no file beyond 20 kB, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_disk_that_fills_leaves_nothing(project: Path) -> None:
    edit_yaml(project / "configs/data/shapes.yaml", FEW_SCENES)
    before = files_of(project)
    line = last_line(run_stage(project, "fetch", before=limit_file_size))
    assert line.startswith("error: ")
    assert line.endswith("make room and run again: 'data/images.part/train.zip'")
    assert files_of(project) - before <= {"data"}


def test_a_fetch_that_went_well_leaves_its_artefacts_only(project: Path) -> None:
    """The counterpart: without the limit the same scenes are made."""
    edit_yaml(project / "configs/data/shapes.yaml", FEW_SCENES)
    before = files_of(project)
    done = run_stage(project, "fetch")
    assert done.returncode == 0, done.stderr
    made = {name.partition("/")[2].partition("/")[0] for name in files_of(project) - before if "/" in name}
    assert made == {"images", "samples.jsonl", "objects.jsonl"}


def write_samples(project: Path) -> None:
    (project / "data").mkdir()
    mask = Rle.from_mask(np.ones((4, 4), bool))
    write_records(project / "data/samples.jsonl", [Sample("a", "val", "a.zip/a", 4, 4, "a cat", "keyword", mask)])


def test_tokenize_says_what_it_misses_and_what_is_damaged(project: Path) -> None:
    assert "data/samples.jsonl" in refusal(project, "tokenize")
    (project / "data").mkdir()
    (project / "data/samples.jsonl").write_text('{"mask": \n')
    assert refusal(project, "tokenize").startswith("error: data/samples.jsonl:1: got no JSON (")


def test_tokenize_runs_where_a_module_of_its_name_is_needed(project: Path) -> None:
    """`tokenize` is a module of the standard library too, and numpy and the tokenizer load it."""
    write_samples(project)
    done = run_stage(project, "tokenize")
    assert done.returncode == 0, done.stderr
    assert np.load(project / "data/tokens.npy").shape == (1, 2, 77)


@pytest.mark.slow
def test_training_from_weights_that_are_not_there_is_refused(project: Path) -> None:
    write_samples(project)
    set_params(project, finetune__init="weights/none.safetensors")
    assert refusal(project, "finetune").startswith("error: weights/none.safetensors: no such file; ")


@pytest.mark.slow
def test_a_device_nobody_knows_is_refused(project: Path) -> None:
    set_params(project, hub__device="Abacus")
    assert "'Abacus'" in refusal(project, "hub-compile")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hub-compile", "hub-profile", "hub-infer"])
def test_a_hub_without_a_graph_says_so(project: Path, name: str) -> None:
    write_samples(project)
    np.save(project / "data/tokens.npy", np.zeros((1, 2, 77), np.int32))
    assert "models/graphs: got no such file, wanted the exported graph" in refusal(project, name)


@pytest.mark.slow
def test_scores_of_a_graph_that_says_nothing_of_itself_are_refused(project: Path) -> None:
    write_samples(project)
    for name in ("predictions", "objects"):
        (project / f"data/{name}.jsonl").write_text("")
    assert "got no manifest.json, wanted a compiled graph" in refusal(project, "score")


@pytest.mark.slow
def test_figures_of_other_settings_are_not_filed_under_these(project: Path) -> None:
    """What a sweep's run cache could hand out: all of it made at 152 px, and params.yaml says 320."""
    write_samples(project)
    for name in ("predictions", "objects"):
        (project / f"data/{name}.jsonl").write_text("")
    record = {**dict.fromkeys(GRAPH, "x"), "model": "nano", "device": "Snapdragon X Elite CRD", "res": 152}
    manifest = {field.name: record.get(field.name) for field in dataclasses.fields(CompiledGraphs)}
    manifest["binaries"] = [dataclasses.asdict(Binary("model", "x"))]
    write_json(project / "models/compiled/manifest.json", manifest)
    write_json(project / "models/finetuned.json", {"provenance": {"model": "nano"}})
    write_bytes(project / "metrics/live/plots/metrics/loss.tsv", b"step\tloss\n")
    empty = {"predictions_sha256": hashlib.sha256(b"").hexdigest()}
    for name in ("latency", "export", "fidelity"):
        write_json(project / f"metrics/{name}.json", record | empty)
    assert refusal(project, "score") == (
        "error: export: got res 152, wanted 320; compiled: got res 152, wanted 320; latency: got res 152, wanted 320; "
        "fidelity: got res 152, wanted 320: made with other settings than it is filed under; run `dvc repro`"
    )


def test_an_option_that_is_missing_is_named(project: Path) -> None:
    graph = project / "dvc.yaml"
    graph.write_text(graph.read_text().replace(" --tokens ${path.tokens}", "", 1))
    done = run_stage(project, "tokenize")
    assert done.returncode == 2
    assert "the following arguments are required: --tokens" in done.stderr
