"""The package as it is installed: what it needs, what a wheel holds, and commands that run from any folder."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from promptseg.__main__ import COMMANDS, main
from tests.imports import LIBRARY, ROOT, library_files
from tests.projects import copy_parts

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LISTS = ("requirements.txt", "requirements-dev.txt")
HEAVY = ("torch", "numpy", "pydantic", "dvc", "onnxruntime", "transformers", "matplotlib", "pandas")


def requirement(line: str) -> tuple[str, str]:
    """Return a requirement's name and its marker, without the version."""
    named, _, marker = line.partition(";")
    found = re.match(r"[\w.-]+", named)
    assert found, line
    return found[0].lower(), marker.strip()


def run_in(folder: Path, *arguments: str, source: Path = ROOT / "src") -> subprocess.CompletedProcess[str]:
    """Run this interpreter in a folder, with the package from `source`."""
    environment = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )


def pins(path: Path) -> set[str]:
    """Return `name==version` of each line of a requirements file that pins one; extras and markers are left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {re.split(r" |;", re.sub(r"\[.*?\]", "", line))[0] for line in lines if line and line[0].isalnum()}


def test_what_is_pinned_is_what_the_package_needs() -> None:
    lines = (ROOT / "requirements/main.in").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert sorted(map(requirement, pinned)) == sorted(map(requirement, PROJECT["dependencies"]))
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+(; .*)?", line) for line in pinned)
    assert not any("==" in line.partition(";")[0] for line in PROJECT["dependencies"])


def test_the_lock_holds_what_is_asked_for_and_both_lists_are_made_from_it() -> None:
    """Otherwise somebody has edited one of them: run requirements/make.sh."""
    lock, listed, more = (pins(ROOT / name) for name in ("requirements/lock.txt", *LISTS))
    assert listed | more == lock
    assert pins(ROOT / "requirements/main.in") <= listed
    assert pins(ROOT / "requirements/dev.in") <= listed | more
    assert "-e ." in (ROOT / LISTS[0]).read_text().splitlines()
    assert f"-r {LISTS[0]}" in (ROOT / LISTS[1]).read_text().splitlines()


def test_every_locked_file_has_a_hash_and_none_an_address() -> None:
    text = (ROOT / "requirements/lock.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\w)", text.strip())
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    assert "://" not in text + "".join((ROOT / name).read_text() for name in LISTS)


def test_extras_are_locked_too() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"s3", "demo"}
    assert {name for names in extras.values() for name in names} <= {
        pin.partition("==")[0] for pin in pins(ROOT / LISTS[1])
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the tree, built with the tools that are installed."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    tree = copy_parts(folder / "tree")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        (tree / name).write_bytes((ROOT / name).read_bytes())
    shutil.copytree(ROOT / "weights", tree / "weights")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, tree]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_library(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("promptseg/")}
    data = {path for path in LIBRARY.rglob("*") if path.suffix in (".html", ".j2", ".js", ".json", ".txt")}
    assert not {path.relative_to(LIBRARY.parent).as_posix() for path in [*library_files(), *data]} - held
    shipped = {path.name for path in (ROOT / "weights").iterdir() if path.suffix in (".safetensors", ".json")}
    assert {Path(name).name for name in held if name.startswith("promptseg/weights/")} == shipped


@pytest.mark.slow
def test_an_installed_wheel_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    """Commands, the files beside the code, and the process in which the compiler runs."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    done = run_in(elsewhere, "-m", "promptseg", "--help", source=site)
    assert done.returncode == 0, done.stderr
    code = (
        "import pathlib, promptseg\n"
        "from promptseg.datasets.tokenizer import ClipTokenizer\n"
        "from promptseg.hubs.local.process import run_compiler\n"
        "from promptseg.hubs.devices import Chip\n"
        "from promptseg.hubs.local.session import CompileRequest\n"
        "print(promptseg.__file__, len(ClipTokenizer().encode_all(['a cup'])))\n"
        "print(promptseg.load('nano-shapes').name)\n"
        "try:\n"
        "    run_compiler(pathlib.Path(), CompileRequest('none.onnx', 'w.onnx', Chip(73, 60, 8), None, False))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = run_in(elsewhere, "-c", code, source=site)
    imported, opened, refusal = done.stdout.splitlines()
    assert opened == "nano-shapes at 320 px"
    assert imported == f"{site / 'promptseg' / '__init__.py'} 1", done.stderr
    assert "none.onnx" in refusal
    assert "No module named" not in refusal


def test_help_lists_the_commands_and_loads_nothing_heavy(tmp_path: Path) -> None:
    loaded = f"print('loaded', sorted(set({HEAVY!r}) & sys.modules.keys()))"
    code = f"import sys; from promptseg.__main__ import main\ntry:\n    main(['--help'])\nfinally:\n    {loaded}"
    done = run_in(tmp_path, "-c", code)
    assert done.stdout.splitlines()[-1] == "loaded []", done.stderr
    assert set(re.findall(r"^    ([\w-]+)", done.stdout, re.MULTILINE)) == set(COMMANDS)


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    done = run_in(tmp_path, "-c", f"import promptseg, sys; print(sorted(set({HEAVY!r}) & sys.modules.keys()))")
    assert done.stdout == "[]\n", done.stderr


def test_a_command_finds_its_project_from_a_folder_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = copy_parts(tmp_path / "project")
    within = project / "configs" / "recipes"
    monkeypatch.chdir(within)
    assert main(["settings", "nano_first.yaml"]) == 0
    assert "-S finetune.steps=4500" in capsys.readouterr().out


def test_a_command_outside_of_a_project_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check-data", "shapes"]) == 1
    assert f"{tmp_path}: got no project, wanted dvc.yaml and params.yaml here or in a folder above" in caplog.text


def test_other_code_than_the_projects_own_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An installed package names one folder for every copy of the project."""
    for folder, warnings in ((copy_parts(tmp_path / "project"), 1), (ROOT, 0)):
        caplog.clear()
        monkeypatch.chdir(folder)
        main(["settings", str(ROOT / "configs/recipes/nano_first.yaml")])
        assert caplog.text.count("not this project's; `python -m pip install -e") == warnings


def test_an_interrupted_command_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("promptseg.commands.settings.run", interrupted)
    assert main(["settings", "recipe.yaml"]) == 130
    assert [record.getMessage() for record in caplog.records] == ["interrupted"]
