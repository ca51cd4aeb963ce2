"""Every command in README and docs: parsed by the program that it is for, and run where it is cheap or a story."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import pytest
import yaml

from benchmarks import networks
from promptseg.__main__ import COMMANDS
from promptseg.commands.settings import arguments_of
from promptseg.params import Params, load_yaml, read_params
from promptseg.params.recipes import read_recipe
from tests.imports import ROOT
from tests.projects import copy_tracked, git, run_dvc

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Programs of the shell and of others: what they do is not ours to test. A page that needs another one adds it here.
OTHERS = {"apt-get", "cat", "cd", "cp", "curl", "export", "git", "grep", "head", "ln", "ls", "mkdir", "qai-hub"}
OTHERS |= {"source", "tar", "bash", "sbatch", "torchrun"}
TOOLS = {"pip", "pytest", "venv"}  # python -m


def commands_of(page: Path) -> list[str]:
    """Lines of a page's ```sh blocks, joined where they go on, without comments; `a && b` and `a | b` are two."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    stripped = [re.sub(r"\s+#.*$", "", line).strip() for line in lines if not line.lstrip().startswith("#")]
    return [
        part.strip()
        for line in stripped
        if line
        for part in re.split(r"&&|\|(?![^\"]*\"(?:[^\"]*\"[^\"]*\")*[^\"]*$)", line)
    ]


RECIPE = re.compile(r"\$\(python -m promptseg settings (\S+)\)")
EVERY = [(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands_of(page)]


def overridden(settings: list[str], tmp_path: Path) -> None:
    """Read params.yaml as it would be with `-S key=value` settings."""
    content: Any = load_yaml(ROOT / "params.yaml")
    for setting in settings:
        key, _, value = setting.partition("=")
        file, colon, own = key.partition(":")
        if colon:  # a key of another file that DVC tracks the params of
            assert own.partition(".")[0] in load_yaml(ROOT / file), f"{setting}: no such key of {file}"
            continue
        *sections, last = key.lstrip("+~").split(".")
        place = content
        for section in sections:
            place = place[section]
        assert last in place, f"{key}: no such key of params.yaml"
        choices = value.split(",") if not value.startswith("[") else [value]
        place[last] = yaml.safe_load(choices[0]) if "..." not in value else place[last]
        if last == "learning_rate":
            place[last] = float(choices[0])
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    read_params(tmp_path)


def settings_of(recipe: re.Match[str]) -> str:
    """What the shell puts in place of a recipe."""
    return " ".join(f"-S {each}" for each in arguments_of(read_recipe(ROOT, ROOT / recipe[1])))


def parse_ours(arguments: list[str]) -> None:
    """Parse a command line of `python -m promptseg`, without running it."""
    import argparse

    name, *rest = arguments
    if name in ("--help", "-h"):
        return
    assert name in COMMANDS, f"no command {name!r}"
    module = importlib.import_module(f"promptseg.commands.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(exit_on_error=True)
    module.add_arguments(parser)
    parser.parse_args(rest)


def parse_dvc(arguments: list[str], tmp_path: Path) -> None:
    """Let DVC's own parser take a command line, and our params reader its settings."""
    from dvc.cli import parse_args

    parse_args(arguments)
    overridden([arguments[at + 1] for at, each in enumerate(arguments) if each in ("-S", "--set-param")], tmp_path)


def test_pages_have_commands() -> None:
    """Otherwise the tests below could not fail."""
    assert len(EVERY) > 40
    assert {page for page, _ in EVERY} >= {"README.md", "docs/compare.md", "docs/own-data.md"}


def test_every_command_is_one_that_its_program_takes(tmp_path: Path) -> None:
    for page, command in EVERY:
        parse_command(page, command, tmp_path)


def parse_command(page: str, command: str, tmp_path: Path) -> None:
    """Let the program that a command is for parse it."""
    program, *arguments = shlex.split(RECIPE.sub(settings_of, command))
    while "=" in program and arguments:  # VARIABLE=value before a command
        program, *arguments = arguments
    if program == "dvc":
        parse_dvc(arguments, tmp_path)
    elif program in ("python", "python3") and arguments[:2] == ["-m", "promptseg"]:
        parse_ours(arguments[2:])
    elif program in ("python", "python3") and arguments[0] == "-m":
        known = arguments[1] in TOOLS or (ROOT / f"{arguments[1].replace('.', '/')}.py").is_file()
        assert known, f"{page}: python -m {arguments[1]}: neither a tool nor a module of this project"
        named = [argument for argument in arguments[2:] if argument.startswith(("tests/", "requirements"))]
        assert all((ROOT / name).exists() for name in named), named
    elif program in ("python", "python3"):
        assert arguments[0] in ("-", "-c", "--version") or (ROOT / arguments[0]).is_file(), arguments[0]
    else:
        assert program in OTHERS, f"{page}: {program}: no program that this test knows"


def test_links_lead_to_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_and_is_in_the_docs(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "promptseg", name, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{name}: " in " ".join(done.stdout.split())
    assert any(f"python -m promptseg {name}" in command for _, command in EVERY), f"{name}: no page shows it"


def test_the_sweeps_table_is_the_recorded_sweep() -> None:
    told = re.findall(
        r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "docs/compare.md").read_text("utf-8"), re.MULTILINE
    )
    sweep = pd.read_csv(ROOT / "metrics" / "sweep.csv")
    assert told == [(f"{row.res}", f"{row.latency_ms:.1f}", f"{row.miou:.3f}") for row in sweep.itertuples()]


@pytest.mark.slow
def test_python_in_the_docs_runs_and_prints_what_stands_below_it(tmp_path: Path) -> None:
    for name in ("docs", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    page = (ROOT / "docs/api.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```(?:\n\n```\n(.*?)^```)?", page, re.MULTILINE | re.DOTALL)
    for code, printed in blocks:
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == printed
    assert len(blocks) == 4


def test_metrics_that_the_docs_name_exist() -> None:
    """A metric that is renamed must be renamed in the docs."""
    names = {name for file in (ROOT / "metrics").glob("*.json") for name in names_of(load_yaml(file))}
    told = re.findall(r"^\| `([\w.]+)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(told) > 10
    assert set(told) <= names


def names_of(content: Any, prefix: str = "") -> set[str]:
    nested = [names_of(value, f"{prefix}{key}.") for key, value in content.items() if isinstance(value, dict)]
    return {prefix + key for key in content}.union(*nested)


def test_params_that_the_docs_name_exist() -> None:
    sections = get_type_hints(Params)
    for page in PAGES:
        for section, key in re.findall(r"`(finetune|hub|export|score)\.(\w+)[:`]", page.read_text(encoding="utf-8")):
            assert key in get_type_hints(sections[section]), f"{page.name}: {section}.{key}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone, as git has it."""
    copied = copy_tracked(tmp_path_factory.mktemp("docs") / "project")
    git(copied, "init", "-q")
    git(copied, "add", "--all")
    git(copied, "commit", "--message", "clone")
    return copied


def run_page(project: Path, page: str) -> str:
    """Run a page's commands in order; return all that they say."""
    said = ""
    for command in commands_of(ROOT / page):
        program, *arguments = shlex.split(command)
        if program == "dvc":
            done = run_dvc(project, *arguments)
        else:
            line = [sys.executable if program == "python" else program, *arguments]
            done = subprocess.run(line, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said += done.stdout
    return said


@pytest.mark.slow
def test_the_own_data_example_works_and_dvc_notices_what_changes(project: Path) -> None:
    said = run_page(project, "docs/own-data.md")
    assert "train: 4 phrases on 2 pictures" in said
    assert "no mistakes" in said
    assert "Running stage 'fetch'" in said
    samples = (project / "data/samples.jsonl").read_text()
    assert samples.count("\n") == 8
    assert "up to date" in run_dvc(project, "status", "fetch").stdout
    with (project / "mine" / "phrases.jsonl").open("a") as stream:
        stream.write('{"image": "a.png", "phrase": "red thing", "mask": [[10, 10, 30, 10, 30, 30, 10, 30]]}\n')
    assert "mine" in run_dvc(project, "status", "fetch").stdout
    assert run_dvc(project, "repro", "fetch").returncode == 0
    assert (project / "data/samples.jsonl").read_text().count("\n") == 9
    with (project / "mine" / "phrases.jsonl").open("a") as stream:
        stream.write("{\n")
    done = run_dvc(project, "repro", "fetch")
    assert done.returncode != 0
    assert "phrases.jsonl:10: got text that is not JSON" in done.stderr


NAMED = re.compile(
    r"`([\w.*<>/-]+(?:/|\.(?:py|md|ya?ml|toml|txt|csv|json|jsonl|safetensors|onnx|html|js|svg|jpg|png)))`"
)
# What a reader or a run makes, or a mirror holds, by its name in docs.
MADE = (
    ".cache/",
    "images/",
    "data/",
    "models/",
    "metrics/",
    "predictions/",
    "coco/",
    "refer/",
    "lpcvc/",
    "mine/",
    "found/",
    "out/",
    "snapdragon-",
)
MADE_FILES = {
    "report.html",
    "sweep.svg",
    "configs/data/mine.yaml",
    "src/promptseg/networks/film.py",
    "weights/focal_t.pt",
    "weights/resnet18.pth",
    "weights/nano-first.safetensors",
}
MADE_FILES |= {"model.onnx", "picture.onnx", "phrase.onnx", "decoder.onnx"}  # of an export
MADE_FILES |= {"tokenizer.json", "MODEL_CARD.md", "manifest.json"}  # of a release
EXAMPLES = {"a.png", "./a.png", "samples.jsonl", "objects.jsonl", "predictions.jsonl", "instances.json"}


def named_paths(page: Path) -> list[str]:
    """Paths between back-ticks, outside of blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [name for name in NAMED.findall(text) if "<" not in name and "*" not in name]


def test_every_path_that_a_page_names_is_there() -> None:
    """Whole, or from some folder on, as in `export/rewrites/`; what runs and readers make is known by its folder."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {f"{parent}/" for name in tracked for parent in Path(name).parents if parent != Path()}
    known = [*(name for name in tracked if (ROOT / name).exists()), *folders]
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in named_paths(page)
        if not name.startswith(MADE) and name not in MADE_FILES | EXAMPLES
        if not any(f"/{path}".endswith((f"/{name}", f"/{name}/")) for path in known)
    ]
    assert not missing


def test_readmes_figures_are_those_of_the_recorded_run() -> None:
    """The row of the default model, figure by figure."""
    score, export, latency = (load_yaml(ROOT / f"metrics/{name}.json") for name in ("score", "export", "latency"))
    (row,) = re.findall(r"^\| `nano`, the .*$", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE)
    baseline = max(value for name, value in score.items() if name.startswith("baseline_"))
    for figure in (
        f"{export['parameters'] / 1e6:.1f} million",
        f"{score['miou']:.3f} on",
        f"{score['phrases']} phrases",
        f"{score['miou_ci_low']:.3f} to {score['miou_ci_high']:.3f}",
        f"has {baseline:.3f}",
        f"{latency['latency_ms_estimated']:.1f} ms at {export['res']} px",
    ):
        assert figure in row, f"README.md: {figure}"


def test_readmes_devices_are_those_of_the_recorded_simulations() -> None:
    """The head names the devices, a cell has the estimate and its bounds."""
    page = PAGES[0].read_text(encoding="utf-8")

    def cells(first: str) -> list[str]:
        (row,) = re.findall(rf"^\| {re.escape(first)} \|.*$", page, re.MULTILINE)
        return [cell.strip() for cell in row.split("|")[2:-1]]

    names = [f"latency_ms_estimated{suffix}" for suffix in ("", "_low", "_high")]
    tables = {"`nano`, 320 px": "metrics/devices.csv", "`focal_t`, 590 px": "docs/data/devices_focal_t_590.csv"}
    for first, table in tables.items():
        estimates = pd.read_csv(ROOT / table).set_index("device")
        wanted = [
            "{:.1f} ({:.1f} to {:.1f})".format(*estimates.loc[device, names]) for device in cells("estimated, ms")
        ]
        assert cells(first) == wanted


def test_readmes_estimate_of_focal_t_is_that_of_the_recorded_simulation() -> None:
    estimates = pd.read_csv(ROOT / "docs" / "data" / "devices_focal_t_590.csv").set_index("device")
    (row,) = re.findall(r"^\| `focal_t`, the .*$", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE)
    assert f"{estimates.loc['Snapdragon X Elite CRD', 'latency_ms_estimated']:.0f} ms at 590 px" in row


def test_the_table_of_networks_is_that_of_the_recorded_simulations() -> None:
    assert networks.markdown() in (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
