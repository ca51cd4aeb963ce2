"""params.yaml and configs/data, strictly: what is wrong is named, with what was got and what is wanted."""

import copy
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from promptseg.params import (
    LpcvcConfig,
    PhotosConfig,
    ReferConfig,
    ShapesConfig,
    check_res,
    read_data_config,
    read_params,
)

ROOT = Path(__file__).resolve().parent.parent
OWN = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
DATA_CONFIGS = sorted(path.stem for path in (ROOT / "configs" / "data").glob("*.yaml"))
ABSENT = object()


def _changed(content: dict[str, Any], dotted: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    section = changed
    *path, last = dotted.split(".")
    for name in path:
        section = section[name]
    if value is ABSENT:
        del section[last]
    else:
        section[last] = value
    return changed


def _write(root: Path, content: object) -> Path:
    (root / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return root


def _refusal(root: Path) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        read_params(root)
    return str(caught.value)


def _assert_equal_leaves(section: object, content: object) -> None:
    """The same values; lists became tuples, mappings sections, and whole numbers floats where those are wanted."""
    if is_dataclass(section):
        assert isinstance(content, dict)
        assert [field.name for field in fields(section)] == list(content)
        for name, value in content.items():
            _assert_equal_leaves(getattr(section, name), value)
    elif isinstance(section, tuple):
        assert isinstance(content, list)
        for one, other in zip(section, content, strict=True):
            _assert_equal_leaves(one, other)
    else:
        assert section == content
        assert isinstance(section, bool) == isinstance(content, bool)


def test_the_projects_own_params_are_read_and_not_converted():
    _assert_equal_leaves(read_params(ROOT), OWN)


@pytest.mark.parametrize("name", DATA_CONFIGS)
def test_the_projects_own_data_configs_are_read_and_not_converted(name):
    content = yaml.safe_load((ROOT / "configs" / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
    config = read_data_config(ROOT, name)
    kinds = {"shapes": ShapesConfig, "refer": ReferConfig, "lpcvc": LpcvcConfig, "photos": PhotosConfig}
    assert isinstance(config, kinds[content["kind"]])
    _assert_equal_leaves(config, content)


def test_the_data_that_params_name_exist():
    assert read_params(ROOT).data in DATA_CONFIGS


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("mirror", "../shared/mirror"),
        ("mirror", ["a", "http://b"]),
        ("res", 64),
        ("res", 590),
        ("res", 1024),
        ("finetune.init", None),
        ("finetune.steps", 0),
        ("finetune.res", [590]),
        ("finetune.learning_rate", 1),
        ("finetune.weight_decay", 0),
        ("hub.samples", 1),
        ("hub.emulator_samples", 0),
        ("hub.backend", "aihub"),
        ("hub.aihub.share_with", ["a@example.org", "b@example.org"]),
    ],
)
def test_values_within_reason_are_taken_as_they_are(tmp_path, dotted, value):
    content = _changed(OWN, dotted, value)
    _assert_equal_leaves(read_params(_write(tmp_path, content)), content)


@pytest.mark.parametrize(
    ("dotted", "value", "got", "wanted"),
    [
        ("res", "abc", "'abc'", "a whole number"),
        ("res", 10, "10", "from 64 to 1024"),
        ("res", 2000, "2000", "from 64 to 1024"),
        ("res", 320.0, "320.0", "a whole number"),
        ("res", True, "True", "a whole number"),
        ("res", None, "None", "a whole number"),
        ("res", [320], r"[320]", "a whole number"),
        ("data", None, "None", "text"),
        ("data", 3, "3", "text"),
        ("mirror", 3, "3", "text or a list of at least one or null"),
        ("mirror", [], "[]", "text or a list of at least one or null"),
        ("model", "huge", "'huge'", "nano, mobile"),
        ("finetune", 3, "3", "a section with keys"),
        ("finetune", None, "None", "a section with keys"),
        ("finetune.init", False, "False", "text or null"),
        ("finetune.attends", "Inside", "'Inside'", "one of inside, outside"),
        ("finetune.mask_resize", ["bilinear"], "['bilinear']", "one of bilinear, bicubic"),
        ("finetune.seed", -1, "-1", "from 0 to below 2**63"),
        ("finetune.seed", 2**63, str(2**63), "from 0 to below 2**63"),
        ("finetune.steps", 1.5, "1.5", "a whole number"),
        ("finetune.steps", -1, "-1", ">= 0"),
        ("finetune.res", 320, "320", "a list of at least one size"),
        ("finetune.res", [], "[]", "at least one size"),
        ("finetune.val_res", 1025, "1025", "from 64 to 1024"),
        ("finetune.batch_size", 0, "0", ">= 1"),
        ("finetune.phrases_per_picture", 0, "0", ">= 1"),
        ("finetune.learning_rate", "fast", "'fast'", "a number"),
        ("finetune.learning_rate", 0, "0", "> 0"),
        ("finetune.learning_rate", float("nan"), "nan", "a number"),
        ("finetune.learning_rate", float("inf"), "inf", "a number"),
        ("finetune.learning_rate", 10**400, "1000000", "a number"),
        ("finetune.learning_rate", True, "True", "a number"),
        ("finetune.clip_norm", -0.1, "-0.1", "> 0"),
        ("finetune.warmup_steps", -1, "-1", ">= 0"),
        ("finetune.val_every", 0, "0", ">= 1"),
        ("finetune.loss_weights", [1, 2, 3], "[1, 2, 3]", "a section with keys"),
        ("finetune.loss_weights.mask_dice", -1.0, "-1.0", "a number >= 0"),
        ("finetune.loss_weights.contrast", None, "None", "a number"),
        ("export.opset", 3, "3", "from 17 to 23"),
        ("export.parity_samples", 0, "0", ">= 1"),
        ("hub.backend", "moon", "'moon'", "one of local, aihub"),
        ("hub.split", "dev", "'dev'", "one of train, val, test"),
        ("hub.samples", 0, "0", "a whole number >= 1 or null"),
        ("hub.samples", "all", "'all'", "a whole number >= 1 or null"),
        ("hub.aihub.qairt_version", 2.45, "2.45", "text"),
        ("hub.aihub.qairt_version", "2.45 --help", "'2.45 --help'", "a version"),
        ("hub.aihub.qairt_version", " ", "' '", "a version"),
        ("hub.aihub.max_profiler_iterations", 0, "0", ">= 1"),
        ("hub.aihub.share_with", "a@example.org", "'a@example.org'", "a list, each item an e-mail address"),
        ("hub.aihub.chunk_mb", 0, "0", ">= 1"),
        ("hub.aihub.jobs_in_flight", 0, "0", ">= 1"),
        ("hub.aihub.wait_hours", 0, "0", "a number > 0"),
        ("score.gallery", 13, "13", ">= 1 and <= 12"),
    ],
)
def test_a_bad_value_is_refused_by_name(tmp_path, dotted, value, got, wanted):
    message = _refusal(_write(tmp_path, _changed(OWN, dotted, value)))
    assert message.startswith(f"{dotted}: got {got}")
    assert message.partition("wanted ")[2].count(wanted) == 1


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("finetune.res", [320, "big"], "[1]: got 'big', wanted a whole number of pixels from 64 to 1024, the canvas"),
        ("finetune.res", [320, 10], "[1]: got 10, wanted a whole number of pixels from 64 to 1024, the canvas"),
        ("finetune.lr_milestones", [0.5, 1.5], "[1]: got 1.5, wanted a number > 0 and < 1"),
        ("hub.aihub.share_with", ["nobody"], "[0]: got 'nobody', wanted an e-mail address"),
        ("mirror", ["a", None], "[1]: got None, wanted text"),
    ],
)
def test_a_bad_item_is_refused_by_its_place(tmp_path, dotted, value, message):
    assert _refusal(_write(tmp_path, _changed(OWN, dotted, value))) == dotted + message


@pytest.mark.parametrize(
    ("dotted", "value", "wanted"),
    [
        ("finetune.lr_milestones", [0.5, 0.4], "rising shares of the steps"),
        ("finetune.lr_milestones", [0.5, 0.5], "rising shares of the steps"),
        ("finetune.zoom", [2, 1], "the smallest and the largest"),
        ("finetune.zoom", [1], "the smallest and the largest"),
        ("finetune.zoom", [1, 2, 3], "the smallest and the largest"),
    ],
)
def test_a_list_whose_items_do_not_fit_each_other_is_refused_whole(tmp_path, dotted, value, wanted):
    message = _refusal(_write(tmp_path, _changed(OWN, dotted, value)))
    assert message.startswith(f"{dotted}: got {value}, wanted {wanted}")


def test_every_mistake_gets_a_line(tmp_path):
    content = _changed(_changed(_changed(OWN, "res", "abc"), "finetune.steps", ABSENT), "hub.speed", 3)
    assert [line.partition(";")[0].partition(",")[0] for line in _refusal(_write(tmp_path, content)).splitlines()] == [
        "res: got 'abc'",
        "finetune.steps: missing",
        "hub.speed: unknown key",
    ]


@pytest.mark.parametrize("written", ["2020-01-01", "!!binary YQ==", "!!set {a, b}"])
def test_what_yaml_has_beyond_json_is_refused(tmp_path, written):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(re.sub(r"(?m)^data: \w+", f"data: {written}", text), encoding="utf-8")
    assert re.match(r"got .*, wanted text \(in quotes\), a number", _refusal(tmp_path))


def _every_key(section: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in section.items():
        keys.append(prefix + name)
        if isinstance(value, dict):
            keys += _every_key(value, f"{prefix}{name}.")
    return keys


@pytest.mark.parametrize("dotted", _every_key(OWN))
def test_every_key_is_needed(tmp_path, dotted):
    assert _refusal(_write(tmp_path, _changed(OWN, dotted, ABSENT))).startswith(f"{dotted}: missing; wanted ")


@pytest.mark.parametrize(
    "section", ["", "finetune.", "finetune.loss_weights.", "export.", "hub.", "hub.aihub.", "score."]
)
def test_an_unknown_key_is_refused(tmp_path, section):
    message = _refusal(_write(tmp_path, _changed(OWN, f"{section}resolution", 1)))
    assert message.startswith(f"{section}resolution: unknown key; wanted only ")


@pytest.mark.parametrize(
    ("init", "watch"),
    [
        (None, "weights"),
        ("https://example.org/a.pt", "weights"),
        ("weights/a/b.pt", "weights"),
        ("/data/x.pt", "/data/x.pt"),
        ("/data/x.pt", "/data"),
        ("/data/x.safetensors", "/data"),
        ("weights/a.pt", str(ROOT / "weights")),
    ],
)
def test_initial_weights_that_dvc_watches_are_taken(tmp_path, monkeypatch, init, watch):
    monkeypatch.chdir(ROOT)
    content = _changed(_changed(OWN, "finetune.init", init), "finetune.watch", watch)
    assert read_params(_write(tmp_path, content)).finetune.init == init


@pytest.mark.parametrize(
    ("init", "watch", "holds"),
    [
        ("models/finetuned.safetensors", "weights", "models"),
        ("/data/x.pt", "weights", "/data/x.pt"),
        ("weights/../models/a.pt", "weights", "weights/../models/a.pt"),
        ("weights_2/a.pt", "weights", "weights_2/a.pt"),
        ("/data/x.safetensors", "/data/x.safetensors", "/data"),
    ],
)
def test_initial_weights_that_dvc_does_not_watch_are_refused(tmp_path, init, watch, holds):
    """An output of the pipeline's own is one of them: DVC deletes it before training."""
    content = _changed(_changed(OWN, "finetune.init", init), "finetune.watch", watch)
    assert _refusal(_write(tmp_path, content)) == (
        f"finetune.watch: got {watch!r}, wanted what holds finetune.init, {init!r}: DVC notices changes only in what "
        f"it watches; set finetune.watch to {holds}, or, if a stage of this pipeline writes it (then DVC deletes it "
        "before training), copy it and the .json beside it to weights/ first"
    )


def test_a_link_to_what_is_not_watched_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("weights", "models"):
        (tmp_path / folder).mkdir()
    (tmp_path / "models" / "a.pt").touch()
    (tmp_path / "weights" / "a.pt").symlink_to(tmp_path / "models" / "a.pt")
    refusal = _refusal(_write(tmp_path, _changed(OWN, "finetune.init", "weights/a.pt")))
    assert refusal.startswith("finetune.watch: got 'weights', wanted what holds finetune.init")


def test_nothing_to_train_and_nothing_to_start_from_is_refused(tmp_path):
    nothing = _changed(_changed(OWN, "finetune.init", None), "finetune.steps", 0)
    assert _refusal(_write(tmp_path, nothing)).startswith(
        "finetune.steps: got 0, wanted a number of steps >= 1, or a checkpoint as init"
    )


@pytest.mark.parametrize("written", ["1e-05", "1E-5", "1.0e-5", "1.e-05", ".1e-4", "+1e-05", "0.00001"])
def test_small_numbers_are_numbers_however_dvc_writes_them(tmp_path, written):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed, count = re.subn(r"  learning_rate: \S+", f"  learning_rate: {written}", text)
    assert count == 1
    (tmp_path / "params.yaml").write_text(changed, encoding="utf-8")
    assert read_params(tmp_path).finetune.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file: got None, wanted a section with keys"),
        (b"- 1\n", "file: got [1], wanted a section with keys"),
        (b"res: [1\n", "not YAML"),
        (b"res: \xff\n", "not YAML"),
        (b"res: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, message):
    (tmp_path / "params.yaml").write_bytes(content)
    assert message in _refusal(tmp_path)


def test_a_missing_file_says_where_to_run(tmp_path):
    message = _refusal(tmp_path)
    assert "params.yaml" in message
    assert "run from the project's root" in message


def _data_root(root: Path, content: dict[str, Any]) -> Path:
    folder = root / "configs" / "data"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return root


def _data_config(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs" / "data" / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "dotted", "value", "message"),
    [
        ("shapes", "kind", "sketches", "kind: got 'sketches', wanted one of shapes, refer, lpcvc"),
        ("shapes", "kind", ABSENT, "kind: got None, wanted one of"),
        ("shapes", "seed", -1, "seed: got -1, wanted a whole number >= 0"),
        ("shapes", "val_scenes", 0, "val_scenes: got 0, wanted a whole number >= 1"),
        ("shapes", "objects_min", 1, "objects_min: got 1, wanted at least 2"),
        ("shapes", "objects_max", 9, "objects_max: got 9, wanted from objects_min to 8"),
        ("shapes", "targets_per_scene", None, "targets_per_scene: got None, wanted a whole number"),
        ("shapes", "colour", "red", "colour: unknown key"),
        ("refcocog", "images", "a.zip", "images: got 'a.zip', wanted a section with keys"),
        ("refcocog", "images.bytes", "many", "images.bytes: got 'many', wanted a whole number >= 0 or null"),
        ("refcocog", "images.bytes", -1, "images.bytes: got -1, wanted a whole number >= 0 or null"),
        ("refcocog", "pictures", "some", "pictures: got 'some', wanted one of archive, single"),
        ("refcocog", "single.path", "/a", "single.path: got '/a', wanted a path below the mirror"),
        ("refcocog", "single.url", "a", "single.url: got 'a', wanted an address"),
        ("refcocog", "single.at_once", 0, "single.at_once: got 0, wanted from 1 to 64"),
        ("refcocog", "folder", "..", "folder: got '..', wanted a path below"),
        ("refcoco", "test_splits", [], "test_splits: got [], wanted at least one of test, testA, testB"),
        ("refcoco", "test_splits", ["val"], "test_splits[0]: got 'val', wanted one of test, testA, testB"),
        ("lpcvc", "phrase_attributes", "text", "phrase_attributes: got 'text', wanted a list, each item text or null"),
        ("lpcvc", "phrase_attributes", [1], "phrase_attributes[0]: got 1, wanted text"),
        ("lpcvc", "val_share", 0, "val_share: got 0, wanted a number > 0 and < 1"),
        ("lpcvc", "test_share", 0.95, "test_share: got 0.95, wanted a share that leaves some for train"),
        ("refcocog", "images.path", "../a.zip", "images.path: got '../a.zip', wanted a path below the mirror"),
        ("refcocog", "images.path", "/a.zip", "images.path: got '/a.zip', wanted a path below the mirror"),
        ("refcocog", "images.url", "ftp://a", "images.url: got 'ftp://a', wanted an address"),
        ("refcocog", "refs.sha256", "abc", "refs.sha256: got 'abc', wanted 64 lower-case"),
        ("refcocog", "refs.sha256", ABSENT, "refs.sha256: missing; wanted 64 lower-case hexadecimal digits or null"),
        ("refcocog", "train_refs", 0, "train_refs: got 0, wanted a whole number >= 1 or null"),
        ("refcocog", "class_prompts", True, "class_prompts: got True, wanted one of none, refer, coco"),
        ("refcocog", "class_prompts", ABSENT, "class_prompts: missing; wanted one of none, refer, coco"),
        ("refcocog", "class_pictures", 0, "class_pictures: got 0, wanted a whole number >= 1 or null"),
        ("refcocog", "split_by", "gogle", "split_by: got 'gogle', wanted one of umd, unc, google"),
    ],
)
def test_a_bad_data_config_is_refused_by_file_and_name(tmp_path, name, dotted, value, message):
    root = _data_root(tmp_path, _changed(_data_config(name), dotted, value))
    with pytest.raises(ValueError, match=r".") as caught:
        read_data_config(root, "mine")
    assert str(caught.value).startswith(f"configs/data/mine.yaml: {message}")


@pytest.mark.parametrize("name", ["coco", "../data/shapes", "", "shapes.yaml"])
def test_an_unknown_data_set_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match=r"data: got .*wanted one of lpcvc, photos, refcoco, .*, shapes, shapes_large"):
        read_data_config(ROOT, name)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_scenes_of_a_split(split):
    config = read_data_config(ROOT, "shapes")
    assert isinstance(config, ShapesConfig)
    assert config.scenes(split) == getattr(config, f"{split}_scenes")


def test_check_res_takes_its_bounds():
    check_res("res", 64)
    check_res("res", 1024)
    for res in (63, 1025):
        with pytest.raises(ValueError, match=f"res: got {res}, wanted a whole number of pixels from 64 to 1024"):
            check_res("res", res)


def test_params_bring_no_torch_along():
    script = "import sys, promptseg.params; print(sorted({'torch', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT / "src", check=True)
    assert done.stdout.strip() == "[]"
