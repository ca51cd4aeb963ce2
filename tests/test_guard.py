"""A stage's result is filed under the settings that it was made with, or not at all."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import stages
from promptseg.params import load_yaml
from tests.projects import (
    SMALL,
    copy_parts,
    copy_run,
    dvc_environment,
    edit_yaml,
    files_of,
    git,
    metric,
    run_command,
    run_dvc,
    run_stage,
    stages_run,
)

SHAPES = "configs/data/shapes.yaml"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, which the guard of this process takes for its own."""
    copy = copy_parts(tmp_path / "project")
    edit_yaml(copy / SHAPES, {"train_scenes": 3, "val_scenes": 1, "test_scenes": 1})
    monkeypatch.setattr(stages, "ROOT", copy)
    return copy


def made(project: Path, stage: str) -> list[Path]:
    """Write something at every path that a stage makes; return the paths."""
    pipeline = load_yaml(project / "dvc.yaml")
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in pipeline["stages"][stage].get(kind, [])]
    names = [(entry if isinstance(entry, str) else next(iter(entry))).removeprefix("${path.")[:-1] for entry in entries]
    paths = [project / pipeline["vars"][0]["path"][name] for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made")
    return paths


def run_with_edit(file: Path, changes: dict[str, Any], stage: str) -> None:
    """Edit a file while a stage runs."""
    with stages.unchanged_settings(stage):
        edit_yaml(file, changes)


@pytest.mark.parametrize(
    ("stage", "file", "changes", "said"),
    [
        ("export", "params.yaml", {"res": 136}, "res was 320 and is 136"),
        (
            "finetune",
            "params.yaml",
            {"finetune.lr_scale.backbone": 0.5},
            "finetune.lr_scale.backbone was 1.0 and is 0.5",
        ),
        ("finetune", "params.yaml", {"finetune.res": [64]}, "finetune.res was [256, 320] and is [64]"),
        ("hub-infer", "params.yaml", {"hub.aihub.chunk_mb": 3}, "hub.aihub.chunk_mb was 1000 and is 3"),
        ("fetch", SHAPES, {"seed": 1}, f"{SHAPES}:seed was 20250601 and is 1"),
        ("fetch", "params.yaml", {"data": "lpcvc"}, "data was 'shapes' and is 'lpcvc'"),
        ("score", "params.yaml", {"score": {}}, "score.seed was 7 and is None; score.gallery was 4 and is None"),
    ],
)
def test_an_edit_under_way_fails_the_stage_and_leaves_nothing_of_it(
    project: Path, stage: str, file: str, changes: dict[str, Any], said: str
) -> None:
    paths = made(project, stage)
    kept = project / "data" / "kept"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("not the stage's")
    with pytest.raises(ValueError, match=r"changed while the stage ran") as caught:
        run_with_edit(project / file, changes, stage)
    assert str(caught.value).startswith(f"{stage}: got settings that changed")
    assert said in str(caught.value)
    assert paths
    assert not any(path.exists() for path in paths)
    assert kept.exists()


def test_params_that_cannot_be_read_at_the_end_fail_the_stage(project: Path) -> None:
    paths = made(project, "export")
    guard = stages.unchanged_settings("export")
    guard.__enter__()
    (project / "params.yaml").unlink()
    with pytest.raises(ValueError, match=r"params.yaml: no such file"):
        guard.__exit__(None, None, None)
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize(
    ("stage", "file", "changes"),
    [
        ("export", "params.yaml", {"finetune.steps": 3, "score.gallery": 2}),
        ("finetune", "params.yaml", {"res": 136, "hub.device": "Samsung Galaxy S24"}),
        ("tokenize", "params.yaml", {"data": "lpcvc"}),
        ("finetune", SHAPES, {"seed": 1}),
        ("fetch", "configs/data/lpcvc.yaml", {"val_share": 0.2}),
    ],
)
def test_an_edit_of_what_the_stage_does_not_read_does_not_matter(
    project: Path, stage: str, file: str, changes: dict[str, Any]
) -> None:
    paths = made(project, stage)
    run_with_edit(project / file, changes, stage)
    assert all(path.exists() for path in paths)


def test_an_edit_that_is_taken_back_does_not_matter(project: Path) -> None:
    text = (project / "params.yaml").read_bytes()
    with stages.unchanged_settings("export"):
        paths = made(project, "export")
        edit_yaml(project / "params.yaml", {"res": 136})
        (project / "params.yaml").write_bytes(text + b"# a comment\n")
    assert all(path.exists() for path in paths)


def test_every_stage_is_guarded_under_its_own_name(project: Path) -> None:
    """The name in dvc.yaml is that of the script; otherwise the guard would hold nothing."""
    names = {Path(command.split()[2].replace(".", "/")).stem for command in commands(project)}
    assert {name.replace("_", "-") for name in names} == set(load_yaml(project / "dvc.yaml")["stages"])


def commands(project: Path) -> list[str]:
    return [stage["cmd"] for stage in load_yaml(project / "dvc.yaml")["stages"].values()]


INTERRUPT_ITSELF = (
    "import os, signal, stages; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "os.kill(os.getpid(), signal.SIGINT)"
)


def run_body(project: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a stage with this body as export, in a process of its own: `graphs` is where its file goes."""
    code = (
        "import os, signal, sys; from pathlib import Path; import stages\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # also where these tests run in the background\n"
        f"def stage(graphs: Path) -> None:\n    {body}\n"
        "sys.argv = ['stages/export.py', '--graphs', 'models/graphs']\n"
        "stages.run_stage(stage, None, 'graphs')\n"
    )
    (project / "models").mkdir(exist_ok=True)
    return run_command(project, "-c", code)


def test_a_refused_stage_ends_in_one_line(project: Path) -> None:
    edit = "own = Path('params.yaml'); own.write_text(own.read_text().replace('res: 320', 'res: 136'))"
    done = run_body(project, f"graphs.write_text('made'); {edit}")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: export: got settings that changed while the stage ran, wanted them kept until its")
    assert "res was 320 and is 136" in line
    assert not (project / "models/graphs").exists()


def test_a_stage_that_is_left_alone_keeps_what_it_made(project: Path) -> None:
    done = run_body(project, "graphs.write_text('made')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (project / "models/graphs").read_text() == "made"


def test_ctrl_c_ends_a_stage_in_one_line_and_leaves_no_half_file(project: Path) -> None:
    before = files_of(project) | {"models"}
    half = "from promptseg.files import atomic_path"
    body = f"{half}\n    with atomic_path(graphs) as part: part.write_text('half'); os.kill(os.getpid(), signal.SIGINT)"
    done = run_body(project, body)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert files_of(project) == before


def test_ctrl_c_while_a_stage_still_imports_ends_in_one_line(project: Path) -> None:
    done = run_command(project, "-c", INTERRUPT_ITSELF)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_mistake_of_ours_still_shows_where_it_is(project: Path) -> None:
    done = run_body(project, "raise TypeError('ours')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "TypeError: ours"


def test_a_stage_runs_the_code_beside_it(project: Path, tmp_path: Path) -> None:
    """An installed package names one folder for every copy of the project; a queued experiment runs in a copy."""
    other = tmp_path / "other" / "promptseg"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit('the wrong tree')")
    done = run_command(project, "-c", f"import sys; sys.path.insert(0, {str(other.parent)!r}); import stages.fetch")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", stages.BEFORE_TRAINING)
def test_a_device_that_nobody_knows_is_refused_before_training(project: Path, stage: str) -> None:
    edit_yaml(project / "params.yaml", {"hub.device": "Abacus"})
    before = files_of(project)
    done = run_stage(project, stage)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "'Abacus'" in line
    assert files_of(project) == before


@pytest.mark.slow
def test_a_second_experiment_in_one_workspace_leaves_nothing_wrong(
    finished_run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """The first one's stage fails, clearly; no later run is served what was made at another size."""
    project = copy_run(finished_run[0], tmp_path / "project")
    script = project / "stages/export.py"
    head, begins, body = script.read_text(encoding="utf-8").partition("    params = read_params(ROOT)\n")
    flag = tmp_path / "waits"  # outside: an experiment of DVC's tidies its workspace
    waits = f"    import pathlib, time; flag = pathlib.Path({str(flag)!r}); flag.touch()\n"
    waits += "    while flag.exists():\n        time.sleep(0.05)\n"
    script.write_text(head + begins + waits + body, encoding="utf-8")
    git(project, "commit", "--all", "--message", "an export that waits")
    command = [sys.executable, "-m", "dvc", "exp", "run", "-S", "res=112"]
    first = subprocess.Popen(
        command, cwd=project, env=dvc_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not flag.exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    second = run_dvc(project, "exp", "run", "-S", "res=136")
    flag.unlink()
    said, _ = first.communicate()
    assert second.returncode != 0
    assert first.returncode != 0
    assert "export: got settings that changed while the stage ran" in said
    assert "res was 112 and is 136" in said
    script.write_text(head + begins + body, encoding="utf-8")
    assert "export" in stages_run(project, "exp", "run", "-S", "res=136")
    assert (metric(project, "export")["res"], metric(project, "score")["phrases"]) == (136, SMALL["hub.samples"])
