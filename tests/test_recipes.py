"""Recipes: read strictly, and handed to DVC's own command line without a loss."""

import argparse
import subprocess
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from promptseg.commands import settings
from promptseg.params import load_yaml, read_data_config, read_params
from promptseg.params.recipes import read_recipe
from tests.imports import ROOT
from tests.projects import copy_parts

RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def set_by_dvc(project: Path, arguments: list[str]) -> None:
    """What `dvc exp run` does with its -S before it runs anything."""
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import apply_overrides

    for path, overrides in to_path_overrides(arguments).items():
        apply_overrides(project / path, overrides)


def split_by_a_shell(text: str) -> list[str]:
    """The words that an unquoted $(...) of this text becomes."""
    script = 'for word in $(cat); do printf "%s\\0" "$word"; done'
    done = subprocess.run(["sh", "-c", script], input=text, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_dotted_and_nested_keys_are_the_same(tmp_path: Path) -> None:
    nested = read_recipe(ROOT, written(tmp_path, "finetune: {steps: 3, loss_weights: {region: 1}}\nres: 590"))
    assert nested == {"finetune.steps": 3, "finetune.loss_weights.region": 1, "res": 590}
    dotted = "finetune.steps: 3\nfinetune: {loss_weights.region: 1}\nres: 590"
    assert read_recipe(ROOT, written(tmp_path, dotted)) == nested


def test_a_data_sets_own_file_is_changed_too(tmp_path: Path) -> None:
    text = "configs/data/refcocog.yaml: {class_prompts: coco, images: {bytes: 1}}\ndata: refcocog"
    assert read_recipe(ROOT, written(tmp_path, text)) == {
        "data": "refcocog",
        "configs/data/refcocog.yaml:class_prompts": "coco",
        "configs/data/refcocog.yaml:images.bytes": 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got None, wanted keys of params.yaml"),
        ("- 1", r"got \[1\], wanted keys of params.yaml"),
        ("finetune: {stepz: 3}", "finetune.stepz: unknown key; wanted only init, "),
        ("finetune.stepz: 3", "finetune.stepz: unknown key; wanted only init, "),
        ("fine.steps: 3", "fine.steps: unknown key; fine is no section"),
        ("res.x: 3", "res.x: unknown key; res is no section"),
        ("7: 3", "7: unknown key; wanted only data, "),
        ("finetune: {steps: many}", "finetune.steps: got 'many', wanted a whole number"),
        ("finetune: {steps: {more: 3}}", "finetune.steps: got {'more': 3}, wanted a whole number"),
        ("finetune: 3", "finetune: got 3, wanted a section with keys"),
        ("finetune: {res: [128, abc]}", r"finetune.res\[1\]: got 'abc', wanted a whole number of pixels"),
        ("finetune: {zoom: [2, 1]}", "finetune.zoom: got "),
        ("finetune: {steps: 0, init: null}", "finetune.steps: got 0, wanted a number of steps >= 1, or a checkpoint"),
        ("finetune: {steps: 3}\nfinetune.steps: 4", "finetune.steps: got it twice"),
        ("data: pictures", "data: got 'pictures', wanted one of lpcvc, "),
        ("configs/data/refcocog.yaml: {train_refs: 3}", "got a data set's file that is not used, wanted .*shapes.yaml"),
        ("configs/data/shapes.yaml: {sceens: 3}", "configs/data/shapes.yaml: sceens: unknown key"),
        ("configs/data/shapes.yaml: {objects_max: 50}", "configs/data/shapes.yaml: objects_max: got 50"),
        ("configs/data/shapes.yaml: 3", "configs/data/shapes.yaml: got 3, wanted a section with keys"),
    ],
)
def test_what_is_wrong_is_named_with_the_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{written(tmp_path, text)}: .*{message}"):
        read_recipe(ROOT, tmp_path / "mine.yaml")


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.yaml: no such file"):
        read_recipe(ROOT, tmp_path / "none.yaml")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_becomes_what_it_says(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line, a shell and DVC's own override, into files that stages read."""
    said = load_yaml(recipe)
    assert isinstance(said, dict)
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser)
    assert settings.run(parser.parse_args([str(recipe)])) == 0
    words = split_by_a_shell(capsys.readouterr().out)
    assert words[::2] == ["-S"] * (len(words) // 2)
    project = copy_parts(tmp_path / "project")
    expected = expected_params(said)
    set_by_dvc(project, words[1::2])
    assert load_yaml(project / "params.yaml") == expected
    params = read_params(project)
    for name, section in said.items():
        if name.startswith("configs/data/"):
            assert {**load_yaml(ROOT / name), **section} == load_yaml(project / name)  # type: ignore[dict-item]
    read_data_config(project, params.data)


def expected_params(said: dict[str, Any]) -> Any:
    """params.yaml with the nested keys of a recipe put in, slow and obvious."""
    content: Any = load_yaml(ROOT / "params.yaml")
    for name, value in said.items():
        if name == "finetune":
            for key, inner in value.items():
                content[name][key] = inner
        elif not name.startswith("configs/data/"):
            content[name] = value
    return content


def test_a_refused_recipe_stops_dvc_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing in its place, DVC would run what params.yaml says."""
    from dvc.cli import DvcParserError, parse_args, parser

    monkeypatch.setattr(parser.logger, "error", lambda *_: None)  # writes to a stream that another test had captured
    with pytest.raises(ValueError, match=r"finetune.stepz: unknown key"):
        settings.run(argparse.Namespace(recipe=written(tmp_path, "finetune.stepz: 3")))
    words = split_by_a_shell(capsys.readouterr().out)
    parse_args(["exp", "run", "-S", "res=590"])
    for more in ([], ["-S", "res=590"], ["finetune"]):
        with pytest.raises(DvcParserError):
            parse_args(["exp", "run", *words, *more])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_opens_with_its_command(recipe: Path) -> None:
    head = recipe.read_text(encoding="utf-8").partition("\ndata:")[0]
    assert f"dvc exp run $(python -m promptseg settings configs/recipes/{recipe.name})" in head
    assert all(line.startswith("#") for line in head.splitlines())


texts = st.from_regex(r"[^\s*?\[\]'\"\\$`\x00-\x1f]{1,12}", fullmatch=True).filter(str.isprintable)
values = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), texts
)


@hypothesis.settings(deadline=None, max_examples=30)  # each runs a shell
@given(st.dictionaries(st.sampled_from(["a", "b.c", "b.d", "e"]), values | st.lists(values, max_size=3), min_size=1))
def test_whatever_is_spelled_arrives(tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, object]) -> None:
    project = tmp_path_factory.mktemp("spelled")
    content: dict[str, Any] = {"a": 0, "b": {"c": 0, "d": 0}, "e": 0}
    (project / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    set_by_dvc(project, split_by_a_shell(" ".join(settings.arguments_of(chosen))))
    for key, value in chosen.items():
        *sections, last = key.split(".")
        (content[sections[0]] if sections else content)[last] = value
    assert load_yaml(project / "params.yaml") == content


@pytest.mark.parametrize("value", ["Snapdragon X Elite", "it's", "a*", "$HOME", "", "a\\b", ["x", "a b"]])
def test_what_a_shell_would_change_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"hub.device: got .*give it by hand: -S 'hub.device="):
        settings.arguments_of({"hub.device": value})


def test_words_that_mean_something_else_stay_text() -> None:
    assert settings.arguments_of({"a": "null", "b": "12", "c": None}) == ["a='null'", "b='12'", "c=null"]
