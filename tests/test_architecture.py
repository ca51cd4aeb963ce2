"""Which way the arrows go, and how the code is written where no linter looks."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from promptseg.release.build import PROGRAM
from tests.imports import LIBRARY, ROOT, imported_modules, library_files, stage_scripts, syntax

STANDARD = sys.stdlib_module_names
PARAMS, COMMANDS = LIBRARY / "params", LIBRARY / "commands"
TABLES = {"report/charts.py", "report/gallery.py", "experiments/records.py", "experiments/sweep.py"}
# A command's purpose is to tell, and all of them tell it through one place; a release's program runs without them.
PRINTS = {COMMANDS / "__init__.py", LIBRARY / "release" / "run.py"}


def packages(path: Path) -> set[str]:
    """Top-level names of what a file imports that is neither the standard library nor this project."""
    return {name.partition(".")[0] for name in imported_modules(path)} - STANDARD - {"promptseg"}


def modules(path: Path) -> set[str]:
    """Modules of the library that a file imports, as dotted names below promptseg."""
    return {name.removeprefix("promptseg.") for name in imported_modules(path) if name.startswith("promptseg.")}


def importers(package: str) -> set[str]:
    """Files of the library and the stages that import `package`, relative to the library where they are in it."""
    users = {path for path in [*library_files(), *(ROOT / "stages").glob("*.py")] if package in packages(path)}
    return {(path.relative_to(LIBRARY) if path.is_relative_to(LIBRARY) else path).as_posix() for path in users}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def attributes(path: Path) -> set[str]:
    """Return every attribute that a file names, dotted."""
    return {ast.unparse(node) for node in ast.walk(syntax(path)) if isinstance(node, ast.Attribute)}


def test_the_networks_need_only_torch_and_libraries_of_layers() -> None:
    for path in (LIBRARY / "networks").rglob("*.py"):
        assert packages(path) <= {"torch", "timm", "transformers"}, path
        assert all(name.startswith("networks") for name in modules(path)), path
        assert not imported_modules(path) & {"os", "io", "json", "logging", "pathlib", "shutil", "subprocess"}, path


def test_the_library_knows_no_stage_and_no_test() -> None:
    for path in library_files():
        assert not {name.partition(".")[0] for name in imported_modules(path)} & {"stages", "tests"}, path


def test_stages_know_only_their_own_package_and_no_other_stage() -> None:
    for path in stage_scripts():
        own = {name for name in imported_modules(path) if name.startswith("stages")}
        assert own <= {"stages", "stages.ROOT", "stages.CACHE", "stages.run_stage"}, path


def test_only_what_a_stage_hands_over_is_known_of_params() -> None:
    """A library function takes a section or plain keywords; reading the file is for stages and commands."""
    for path in library_files():
        if path.parent not in (PARAMS, COMMANDS):
            assert not modules(path) & {"params.Params", "params.read_params", "params.read_data_config"}, path


@pytest.mark.parametrize(
    ("package", "users"),
    [
        ("yaml", {"params/__init__.py"}),
        ("pydantic", {"params/__init__.py", "params/sections.py", "params/datasets.py"}),
        ("matplotlib", {"report/charts.py", "report/gallery.py", "experiments/sweep.py"}),
        (
            "pandas",
            {
                *TABLES,
                "commands/quality.py",
                "commands/recommend.py",
                "export/onnx_export.py",
                "files.py",
                "quality.py",
                "scoring.py",
                "training/curve.py",
            },
        ),
        ("dvclive", {"training/curve.py"}),
        ("jinja2", {"report/page.py"}),
        ("qai_hub", {"hubs/aihub/service.py"}),
        ("botocore", {"hubs/aihub/service.py"}),
        ("s3transfer", {"hubs/aihub/service.py"}),
        ("h5py", {"hubs/aihub/inference.py"}),
        ("onnxruntime_qnn", {"hubs/local/session.py", "release/run.py"}),
        ("tokenizers", {"datasets/tokenizer.py", "release/run.py"}),
        ("ftfy", {"datasets/tokenizer.py"}),
        ("requests", {"download.py", "hubs/aihub/service.py"}),
        ("urllib3", {"download.py"}),
        ("transformers", {"datasets/tokenizer.py", "networks/clipseg/model.py", "checkpoints/clipseg_weights.py"}),
        ("dvc", {"experiments/records.py"}),
        ("pycocotools", {"datasets/records.py", "sources/coco.py"}),
    ],
)
def test_only_one_place_knows_a_package(package: str, users: set[str]) -> None:
    assert importers(package) <= users


def test_params_and_metrics_stay_light() -> None:
    for path in PARAMS.glob("*.py"):
        assert packages(path) <= {"yaml", "pydantic", "pydantic_core"}
        assert all(name.partition(".")[0] == "params" for name in modules(path))
    assert packages(LIBRARY / "metrics.py") == {"numpy"}
    assert not modules(LIBRARY / "metrics.py")


def test_downloads_know_nothing_of_what_they_carry() -> None:
    assert all(name.partition(".")[0] == "files" for name in modules(LIBRARY / "download.py"))


def test_layers_below_know_nothing_of_those_above() -> None:
    above = {
        "datasets": ("training", "export", "hubs", "report", "networks", "scoring", "checkpoints", "sources"),
        "sources": ("training", "export", "hubs", "report", "networks", "scoring", "checkpoints"),
        "networks": ("training", "export", "hubs", "report", "scoring", "checkpoints", "datasets", "sources"),
        "training": ("export", "hubs", "report", "scoring", "sources"),
        "hubs": ("training", "report", "scoring", "networks", "export", "checkpoints", "sources"),
        "export": ("training", "report", "scoring", "checkpoints", "sources"),
        "report": ("training", "export", "hubs", "networks", "checkpoints", "params", "sources"),
        "experiments": ("training", "export", "hubs", "networks", "checkpoints", "params", "datasets", "sources"),
        "demo": ("training", "export", "hubs", "networks", "checkpoints", "params", "sources", "experiments"),
        "release": ("training", "export", "networks", "checkpoints", "sources", "experiments", "inference"),
        "inference": ("training", "scoring", "sources", "commands", "demo"),
    }
    for package, forbidden in above.items():
        for path in (LIBRARY / package).rglob("*.py"):
            wrong = {name for name in modules(path) if name.partition(".")[0] in forbidden}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_answers_draw_and_nothing_more_of_reports() -> None:
    found = {name for path in (LIBRARY / "inference").glob("*.py") for name in modules(path)}
    assert {name for name in found if name.startswith("report.")} <= {
        *("report.overlay", "report.overlay.overlay", "report.overlay.shrink")
    }


def test_backends_are_known_in_one_place() -> None:
    plans = COMMANDS / "hub_plan.py"  # a dry run of the cloud, without opening a hub
    simulates = (COMMANDS / "devices.py", COMMANDS / "sensitivity.py")  # any ONNX file, without opening a hub
    doctor = COMMANDS / "doctor.py"  # what there is of either
    assert not {name for name in modules(plans) if name.startswith("hubs.aihub.hub")}
    for path in [*library_files(), *stage_scripts()]:
        if path.name != "backends.py" and path not in (*simulates, doctor) and path.parent.name != "local":
            assert not {name for name in modules(path) if name.startswith("hubs.local")}, path
        if path.name != "backends.py" and path not in (plans, doctor) and path.parent.name != "aihub":
            assert not {name for name in modules(path) if name.startswith("hubs.aihub")}, path


def test_the_cloud_sleeps_in_one_place() -> None:
    """So that a test can shorten every wait, and none can be forgotten."""
    for path in (LIBRARY / "hubs" / "aihub").glob("*.py"):
        slept = [name for name, _ in calls(syntax(path)) if name in ("time.sleep", "sleep")]
        assert len(slept) == (path.name == "jobs.py"), path


def test_what_a_release_holds_runs_without_this_project() -> None:
    """Its program, and the modules that are copied beside it, know nothing but what its requirements name."""
    for name in PROGRAM:
        path = LIBRARY / name
        beside = {Path(other).stem for other in PROGRAM}
        assert not modules(path), path
        assert packages(path) - beside <= {"numpy", "PIL", "tokenizers", "onnxruntime", "onnxruntime_qnn"}, path


def test_nothing_that_is_read_can_run_code() -> None:
    for path in library_files():
        for name, call in calls(syntax(path)):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            place = f"{path}:{call.lineno}"
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", place
            if name == "np.load":
                assert keywords.get("allow_pickle", "False") == "False", place
            assert name not in ("eval", "exec", "yaml.load_all", "yaml.unsafe_load", "os.system"), place
        if path.name != "restricted_pickle.py":
            assert {name for name in attributes(path) if name.startswith("pickle.")} <= {"pickle.UnpicklingError"}, path
            assert not {name for name in imported_modules(path) if name.startswith("pickle.")}, path


def test_the_library_prints_nothing() -> None:
    for path in library_files():
        assert ("print" in {name for name, _ in calls(syntax(path))}) == (path in PRINTS), path


def test_commands_are_called_by_people_alone() -> None:
    """Nothing but the command line knows a command, and only commands tell: libraries hand values back."""
    for path in library_files():
        if path.parent != COMMANDS:
            assert not {name for name in modules(path) if name.partition(".")[0] in ("commands", "__main__")}, path
        assert "sys.stdout" not in attributes(path), path


def test_stages_know_no_command() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        assert not {name for name in modules(path) if name.partition(".")[0] == "commands"}, path


def test_every_module_says_what_it_is() -> None:
    for path in library_files():
        assert ast.get_docstring(syntax(path)) or not path.read_text(encoding="utf-8"), path


def test_stages_are_thin() -> None:
    for path in stage_scripts():
        tree = syntax(path)
        assert not any(isinstance(node, ast.For | ast.While | ast.ClassDef) for node in ast.walk(tree)), path
        assert ast.get_docstring(tree), path


def test_code_and_artefacts_share_no_folder_name() -> None:
    paths = yaml.safe_load((ROOT / "dvc.yaml").read_text())["vars"][0]["path"].values()
    artefacts = {Path(path).parts[0] for path in paths}
    code = {path.parent.name for path in [*library_files(), *(ROOT / "stages").glob("*.py")]}
    assert artefacts == {"data", "models", "metrics"}
    assert not code & (artefacts | {"configs", "weights"})


def test_paths_are_typed_in_one_file() -> None:
    """Numbers are in params.yaml, paths in dvc.yaml: code names no artefact by its path."""
    paths = yaml.safe_load((ROOT / "dvc.yaml").read_text())["vars"][0]["path"].values()
    for path in [*library_files(), *(ROOT / "stages").glob("*.py")]:
        strings = {node.value for node in ast.walk(syntax(path)) if isinstance(node, ast.Constant)}
        assert not strings & set(paths), path
