"""dvc.yaml against the code: every reached package a dependency, every read parameter listed, every path passed."""

import ast
import configparser
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from dvc_render.vega_templates import TEMPLATES

from promptseg.experiments.records import POINT
from promptseg.export.onnx_export import OP_COLUMNS
from promptseg.hubs.base import LAYER_COLUMNS
from promptseg.params import Params
from promptseg.scoring import tradeoff_table
from promptseg.training.curve import FIGURES
from tests.imports import LIBRARY, ROOT, file_of, has_code, reached_files, stage_scripts, syntax

RAW = yaml.safe_load((ROOT / "dvc.yaml").read_text())
PATHS: dict[str, str] = RAW["vars"][0]["path"]
STAGES = ["fetch", "tokenize", "finetune", "export", "hub-compile", "hub-profile", "hub-infer", "score"]
RUN_BY = {"src/promptseg/hubs/local/process.py": "promptseg.hubs.local.session"}  # in a process of its own
ASKS_HUB = "hubs/fidelity.py"  # where a stage hands the hub that it opened
BACKEND = "${hub.backend}"  # a stage depends on the folder of the backend that runs
BESIDE = {PATHS["checkpoint"]: PATHS["description"]}  # a file that comes with another, without an option of its own
WORDS_ERRORS = "src/promptseg/download.py"  # changes no result of the cloud, and local runs do not reach it
WEIGHTS = "${finetune.watch}"  # the folder that finetune.init names a file of
REFUSED_EARLY = {"tokenize": {"finetune.init", "finetune.watch"}}  # before training deletes its outputs
WATCH = "${watch}"  # a folder of one's own pictures: outside the project's artefacts
GIVEN = {WEIGHTS, WATCH}
PARAMS = "src/promptseg/params/"
DATA_CONFIG = "configs/data/${data}.yaml:"


def resolve(text: str) -> str:
    return re.sub(r"\$\{path\.(\w+)\}", lambda match: PATHS[match[1]], text)


def stage(name: str) -> dict[str, Any]:
    return RAW["stages"][name]


def listed(name: str, kind: str) -> list[str]:
    """Resolved paths under deps, outs, metrics or plots of a stage."""
    return [resolve(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in stage(name).get(kind, [])]


def written(name: str) -> list[str]:
    return [path for kind in ("outs", "metrics", "plots") for path in listed(name, kind)]


def script(name: str) -> Path:
    match = re.match(r"python -m (stages\.\w+) ", stage(name)["cmd"])
    assert match, f"{name}: a stage runs as `python -m stages.<name>`"
    path = file_of(match[1])
    assert path
    return path


def reached(name: str) -> set[str]:
    """Files with code that the stage's imports lead to, relative to the project; params are tracked by their values."""
    files = reached_files(script(name)) | {ROOT / "stages" / "__init__.py"}
    for module, run in RUN_BY.items():
        process = file_of(run)
        assert process
        files |= reached_files(process) if ROOT / module in files else set()
    names = {path.relative_to(ROOT).as_posix() for path in files if has_code(path)}
    return {name for name in names if not name.startswith(PARAMS)}


def is_code(path: str) -> bool:
    return path.startswith(("src/", "stages/"))


def downstream(changed: set[str]) -> set[str]:
    while True:
        products = {path for name in changed for path in written(name)}
        further = changed | {name for name in STAGES if products & set(listed(name, "deps"))}
        if further == changed:
            return changed
        changed = further


def test_the_graph_has_eight_stages_and_a_script_for_each() -> None:
    assert list(RAW["stages"]) == STAGES
    assert sorted(script(name) for name in STAGES) == stage_scripts()


def declared_code(name: str) -> list[str]:
    """Dependencies that are code, files or folders, with every backend's folder in the place of the one that runs."""
    deps = [path for path in listed(name, "deps") if is_code(path)]
    backends = [path.replace(BACKEND, backend) for path in deps if BACKEND in path for backend in ("local", "aihub")]
    return [path for path in deps if BACKEND not in path] + backends


def covers(dependency: str, file: str) -> bool:
    return file == dependency or file.startswith(f"{dependency}/")


def test_stages_depend_on_what_they_reach_and_on_no_other_package() -> None:
    for name in STAGES:
        files, deps = reached(name), declared_code(name)
        assert all((ROOT / path).exists() for path in deps), deps
        missing = sorted(file for file in files if not any(covers(path, file) for path in deps))
        if name.startswith("hub-"):
            missing = [file for file in missing if file != WORDS_ERRORS]
        stale = [path for path in deps if not any(covers(path, file) for file in files)]
        assert not missing, f"stages.{name}.deps in dvc.yaml: add the package of {missing}"
        assert not stale, f"stages.{name}.deps in dvc.yaml: remove {stale}"
        assert len(deps) == len(set(deps))


def test_a_local_run_does_not_depend_on_the_cloud() -> None:
    for name in STAGES:
        deps = [path.replace(BACKEND, "local") for path in listed(name, "deps")]
        assert not any(covers(path, "src/promptseg/hubs/aihub/hub.py") for path in deps), name


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_no_stage_loads_a_file_that_reading_its_imports_overlooks(name: str) -> None:
    listing = (
        f"import sys, stages.{script(name).stem}\n"
        "print(*(getattr(module, '__file__', None) for module in list(sys.modules.values())), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {Path(line) for line in done.stdout.splitlines() if line.startswith((f"{LIBRARY}/", f"{ROOT}/stages/"))}
    assert {script(name), LIBRARY / "params" / "__init__.py"} <= loaded
    names = {path.relative_to(ROOT).as_posix() for path in loaded - {LIBRARY / "__init__.py"} if has_code(path)}
    unknown = {name for name in names if not name.startswith(PARAMS)} - reached(name)
    assert not unknown


@pytest.mark.parametrize("name", STAGES)
def test_every_option_is_a_path_of_the_stage_and_every_path_an_option(name: str) -> None:
    options = dict(re.findall(r"--([\w-]+) (\S+)", stage(name)["cmd"]))
    assert options == {option: f"${{path.{option}}}" for option in options}, "an option is named after its path"
    passed = {resolve(path) for path in options.values()}
    artefacts = {path for path in listed(name, "deps") if not is_code(path)} - GIVEN
    beside = {BESIDE[path] for path in passed if path in BESIDE}
    assert passed | beside == artefacts | set(written(name))


def test_weights_are_a_dependency_where_training_starts_from_them() -> None:
    assert [name for name in STAGES if WEIGHTS in listed(name, "deps")] == ["finetune"]


def test_what_a_person_watches_is_a_dependency_of_fetch_alone() -> None:
    assert [name for name in STAGES if WATCH in listed(name, "deps")] == ["fetch"]
    assert (ROOT / yaml.safe_load((ROOT / "params.yaml").read_text())["watch"]).is_file()


def test_every_artefact_is_made_once_and_before_it_is_read() -> None:
    made: list[str] = []
    for name in STAGES:
        assert {path for path in listed(name, "deps") if not is_code(path)} - GIVEN <= set(made), name
        made += written(name)
    assert sorted(made) == sorted(PATHS.values())


def section_fields(section: str) -> set[str]:
    """`section`, or `section.key` for each of its keys."""
    hint = get_type_hints(Params)[section]
    keys = [field.name for field in dataclasses.fields(hint)] if dataclasses.is_dataclass(hint) else []
    return {f"{section}.{key}" for key in keys} or {section}


def keys_of(section: str) -> set[str]:
    """Every key of a section, where sections lie in sections too; DVC tracks each by its dotted name."""
    hints = get_type_hints(get_type_hints(Params)[section])
    inner = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    nested = {f"{section}.{name}.{key}" for name, hint in inner.items() for key in get_type_hints(hint)}
    return nested | {f"{section}.{name}" for name in hints if name not in inner}


def attributes_of(tree: ast.AST, *owners: str) -> set[str]:
    """Names x, also dotted ones, of every `<owner>.x`; a chain counts as a whole, not its beginnings."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    beginnings = {id(node.value) for node in nodes}
    chains = {ast.unparse(node) for node in nodes if id(node) not in beginnings}
    return {chain.removeprefix(f"{owner}.") for owner in owners for chain in chains if chain.startswith(f"{owner}.")}


def hub_reads(methods: set[str]) -> set[str]:
    """Keys of the section `hub` that any backend reads in `methods` and in what they call on themselves."""
    reads = attributes_of(syntax(LIBRARY / "hubs/backends.py"), "config")
    for file, hub in (("local/hub.py", "LocalHub"), ("aihub/hub.py", "AiHub")):
        classes = [node for node in ast.walk(syntax(LIBRARY / "hubs" / file)) if isinstance(node, ast.ClassDef)]
        (backend,) = (node for node in classes if node.name == hub)
        reads |= backend_reads({node.name: node for node in backend.body if isinstance(node, ast.FunctionDef)}, methods)
    assert {f"hub.{name}" for name in reads} <= keys_of("hub"), reads
    return {f"hub.{name}" for name in reads}


def backend_reads(by_name: dict[str, ast.FunctionDef], methods: set[str]) -> set[str]:
    reads = attributes_of(by_name["__init__"], "config")
    waiting, seen = methods & set(by_name), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        own = attributes_of(by_name[name], "self")
        reads |= {chain.removeprefix("_config.") for chain in own if chain.startswith("_config.")}
        waiting |= (own & set(by_name)) - seen
    return reads


def read_params_of(name: str) -> set[str]:
    """Every parameter that a stage reads, down to single keys, from its script (and from the hub it opens)."""
    tree = syntax(script(name))
    chains = attributes_of(tree, "params", "read_params(ROOT)")
    opens_hub = "open_hub" in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    reads: set[str] = set()
    for chain in chains:
        section = chain.partition(".")[0]
        if chain == "hub" and opens_hub:
            asked = [tree, *([syntax(LIBRARY / ASKS_HUB)] if f"src/promptseg/{ASKS_HUB}" in reached(name) else [])]
            called = {node.attr for each in asked for node in ast.walk(each) if isinstance(node, ast.Attribute)}
            own = {key for each in asked for key in attributes_of(each, "config", "self.config")}
            reads |= hub_reads(called) | {f"hub.{key}" for key in own}
        else:
            reads |= {chain} if "." in chain else section_fields(section)
    if "read_data_config" in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}:
        reads.add(DATA_CONFIG)
    return reads


@pytest.mark.parametrize("name", STAGES)
def test_every_parameter_that_is_read_is_listed_and_nothing_more(name: str) -> None:
    declared: set[str] = set()
    for entry in stage(name).get("params", []):
        if isinstance(entry, dict):
            assert entry == {DATA_CONFIG.rstrip(":"): None}, "all of the data set's own file"
            declared.add(DATA_CONFIG)
        else:
            declared |= {entry} if "." in entry else section_fields(entry)
    read = read_params_of(name) | REFUSED_EARLY.get(name, set())
    missing, stale = sorted(read - declared), sorted(declared - read)
    assert not missing, f"add to stages.{name}.params: {missing}"
    assert not stale, f"remove from stages.{name}.params: {stale}"


def test_every_parameter_belongs_to_a_stage() -> None:
    everything = {key for field in dataclasses.fields(Params) for key in section_fields(field.name)}
    everything = everything - {"hub.aihub"} | keys_of("hub")
    read = {key for name in STAGES for key in read_params_of(name)}
    assert read - {DATA_CONFIG} == everything


def test_another_res_runs_export_and_what_follows() -> None:
    reads_res = {name for name in STAGES if "res" in stage(name).get("params", [])}
    assert reads_res == {"export", "score"}
    assert downstream(reads_res) == {"export", "hub-compile", "hub-profile", "hub-infer", "score"}


def test_other_training_runs_neither_data_nor_tokens() -> None:
    assert downstream({"finetune"}) == set(STAGES) - {"fetch", "tokenize"}


def test_a_plot_never_retrains() -> None:
    drawn = {name for name in STAGES if "src/promptseg/report" in listed(name, "deps")}
    assert downstream(drawn) == {"score"}


@pytest.mark.parametrize("name", STAGES)
def test_only_metrics_and_plots_stay_out_of_the_cache(name: str) -> None:
    assert all(isinstance(entry, str) for entry in stage(name).get("outs", [])), "outs have no settings"
    for kind in ("metrics", "plots"):
        for entry in stage(name).get(kind, []):
            assert list(entry.values()) == [{"cache": False}]
    assert set(stage(name)) <= {"cmd", "deps", "params", "outs", "metrics", "plots"}


def test_plots_name_columns_that_exist() -> None:
    scores = {name: 0.5 for name in ("miou", "miou_small", "miou_medium", "miou_large")}
    tradeoff = tuple(tradeoff_table(320, scores, {}, {}))
    curve = {f"{PATHS['curve']}/{name}.tsv": ("step", name) for name in FIGURES}
    columns = {**curve, PATHS["ops"]: OP_COLUMNS, PATHS["tradeoff"]: tradeoff, "metrics/sweep.csv": POINT}
    columns[PATHS["layers"]] = LAYER_COLUMNS
    for plot in RAW["plots"]:
        (settings,) = plot.values()
        for path, drawn in settings["y"].items():
            assert {settings["x"], *([drawn] if isinstance(drawn, str) else drawn)} <= set(columns[path])


def test_plots_are_drawn_by_templates_that_exist_and_never_mix_kinds_of_latency() -> None:
    own = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / ".dvc" / "plots").glob("*.json")}
    used = {settings["template"]: settings for plot in RAW["plots"] for settings in plot.values()}
    assert used.keys() <= own.keys() | {template.DEFAULT_NAME for template in TEMPLATES}
    assert own.keys() <= used.keys()
    assert own["tradeoff"]["encoding"]["column"]["field"] == "latency_source"
    assert used["tradeoff"]["x"] == "latency_ms"


def test_dvc_calls_nobody_and_adds_nothing_to_git_by_itself() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc" / "config")
    core = {key: config.getboolean("core", key) for key in config["core"]}
    assert core == {"analytics": False, "check_update": False, "autostage": False}


def test_compiled_python_never_counts_as_a_change() -> None:
    assert "**/__pycache__" in (ROOT / ".dvcignore").read_text().splitlines()
