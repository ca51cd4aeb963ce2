"""fetch and finetune with what lies outside the project: watched by DVC or refused, and interrupted on the way."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptseg.datasets.records import read_samples
from tests.fault_server import Fault, Files, serving
from tests.imports import ROOT
from tests.projects import (
    FEW_SCENES,
    copy_parts,
    copy_tracked,
    edit_yaml,
    git,
    run_dvc,
    run_stage,
    stage_command,
)
from tests.referring import jpeg
from tests.test_lpcvc import as_zip, tables

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone with few scenes."""
    copied = copy_tracked(tmp_path_factory.mktemp("watched") / "project")
    git(copied, "init", "-q")
    git(copied, "add", "--all")
    git(copied, "commit", "--message", "clone")
    edit_yaml(copied / "configs/data/shapes.yaml", FEW_SCENES)
    edit_yaml(copied / "configs/data/lpcvc.yaml", {"val_share": 0.3, "test_share": 0.3})
    return copied


def test_an_archive_that_is_replaced_below_a_mirror_is_fetched(project: Path, tmp_path: Path) -> None:
    mirror, content = tmp_path / "mirror", tables()
    as_zip(content, mirror)
    edit_yaml(project / "params.yaml", {"data": "lpcvc", "mirror": str(mirror)})
    refused = run_dvc(project, "repro", "fetch")
    assert refused.returncode != 0
    assert f"error: watch: got 'configs/watch_nothing', wanted {mirror}, which `mirror` names" in refused.stderr
    assert "Traceback" not in refused.stderr
    edit_yaml(project / "params.yaml", {"watch": str(mirror)})
    assert run_dvc(project, "repro", "fetch").returncode == 0
    assert "up to date" in run_dvc(project, "status", "fetch").stdout
    before = (project / "data/images/train-000.zip").read_bytes()
    content["files"] = {name: jpeg(100 + n) for n, name in enumerate(content["files"])}
    as_zip(content, mirror)
    assert str(mirror) in run_dvc(project, "status", "fetch").stdout
    assert run_dvc(project, "repro", "fetch").returncode == 0
    assert (project / "data/images/train-000.zip").read_bytes() != before


def test_initial_weights_that_training_would_delete_are_refused_and_others_watched(
    project: Path, tmp_path: Path
) -> None:
    """Where all stages before finetune are up to date, too: tokenize runs again, and refuses."""
    edit_yaml(project / "params.yaml", {"data": "shapes", "mirror": None, "watch": "configs/watch_nothing"})
    assert run_dvc(project, "repro", "tokenize").returncode == 0
    assert read_samples(project / "data/samples.jsonl")
    own = project / "models/finetuned.safetensors"
    own.write_bytes(b"trained for days")
    edit_yaml(project / "params.yaml", {"finetune.init": "models/finetuned.safetensors", "finetune.steps": 0})
    refused = run_dvc(project, "repro", "finetune")
    assert refused.returncode != 0
    assert "copy it and the .json beside it to weights/ first" in refused.stderr
    assert "Running stage 'finetune'" not in refused.stdout
    edit_yaml(project / "params.yaml", {"finetune.watch": "models"})
    refused = run_dvc(project, "repro", "finetune")
    assert refused.returncode != 0
    assert "both a dependency and an output" in refused.stderr
    assert own.read_bytes() == b"trained for days"

    outside = tmp_path / "outside"
    outside.mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(ROOT / f"weights/nano-shapes{suffix}", outside / f"a{suffix}")
    weights = outside / "a.safetensors"
    edit_yaml(project / "params.yaml", {"finetune.init": str(weights), "finetune.watch": str(outside)})
    done = run_dvc(project, "repro", "finetune")
    assert done.returncode == 0, done.stderr
    assert "up to date" in run_dvc(project, "status", "finetune").stdout
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert str(outside) in run_dvc(project, "status", "finetune").stdout


@pytest.fixture
def fetching(tmp_path: Path) -> Iterator[tuple[Path, Files]]:
    """A project whose fetch downloads the challenge's layout, and the server that it comes from."""
    as_zip(tables(), tmp_path)
    with serving(Files({"/lpcvc.zip": (tmp_path / "lpcvc.zip").read_bytes()})) as files:
        copied = copy_parts(tmp_path / "project")
        edit_yaml(copied / "params.yaml", {"data": "lpcvc", "mirror": files.address})
        edit_yaml(copied / "configs/data/lpcvc.yaml", {"val_share": 0.3, "test_share": 0.3})
        yield copied, files


def partial_files(project: Path) -> list[Path]:
    return list((project / ".cache" / "downloads").glob("*.partial"))


def artefacts(project: Path) -> list[Path]:
    return list((project / "data").rglob("*"))


def test_ctrl_c_ends_fetch_in_a_line_and_keeps_what_came(fetching: tuple[Path, Files]) -> None:
    project, files = fetching
    files.faults = [Fault(status=404), Fault(cut_at=500, trickle_s=3600)]  # the first asks for checksums
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DVC_ROOT")}
    with subprocess.Popen(
        stage_command(project, "fetch"), cwd=project, env=environment, stderr=subprocess.PIPE, text=True
    ) as run:
        while not any(path.stat().st_size > 500 for path in partial_files(project)):
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        assert run.stderr is not None
        said = run.stderr.read()
    assert run.returncode != 0
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert not artefacts(project)
    files.requests.clear()
    assert run_stage(project, "fetch").returncode == 0
    assert files.requests[-1][1] is not None  # the rest was asked for


def test_a_disk_that_fills_ends_fetch_in_a_line(fetching: tuple[Path, Files]) -> None:
    project, files = fetching
    limit = len(files.content["/lpcvc.zip"]) // 2
    full = run_stage(
        project, "fetch", before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    )
    assert full.returncode == 1
    assert "make room and run again; what came is kept: " in full.stderr.splitlines()[-1]
    assert "Traceback" not in full.stderr
    assert not artefacts(project)
    assert [path.stat().st_size for path in partial_files(project)] == [limit]
    assert run_stage(project, "fetch").returncode == 0
