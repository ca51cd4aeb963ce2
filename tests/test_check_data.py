"""check-data: for every kind of source, all mistakes at once or what it holds, and never a traceback."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from own_data import coco, lines, write_coco, write_lines, write_pictures

from promptseg.__main__ import main
from tests import test_lpcvc
from tests.imports import ROOT
from tests.projects import edit_yaml
from tests.referring import build_tables, jpeg, of_archives, source_of, tables


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without code: what check-data reads of one."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "configs", root / "configs")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root / name)
    monkeypatch.chdir(root)
    return root


def own(project: Path, annotations: str) -> Path:
    """Configure a data set `mine`, a folder of pictures."""
    write_pictures(project / "mine")
    content = {"kind": "folder", "path": "mine", "annotations": annotations, "val_share": 0.1, "test_share": 0.1}
    (project / "configs/data/mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return project / "mine"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    status = main(["check-data", *arguments])
    return status, capsys.readouterr().out.splitlines()


def test_shapes_are_told_by_their_scenes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_yaml(project / "configs/data/shapes.yaml", {"val_scenes": 7})
    status, said = told(capsys, "shapes")
    assert status == 0
    assert said[1] == "val: 7 scenes, drawn by fetch itself"
    assert said[-1] == "no mistakes"


def test_a_folder_is_told_with_the_command_that_runs_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(own(project, "phrases.jsonl"), lines())
    assert told(capsys, "mine") == (
        0,
        [
            "train: 4 phrases on 2 pictures",
            "val: 2 phrases on 1 pictures",
            "test: 2 phrases on 1 pictures",
            "no mistakes",
            "run it with: dvc exp run -S data=mine -S watch=mine",
        ],
    )


def test_a_folder_is_found_from_a_folder_within_the_project(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(own(project, "phrases.jsonl"), lines())
    (project / "below").mkdir()
    monkeypatch.chdir(project / "below")
    assert told(capsys, "mine")[0] == 0


def test_all_mistakes_of_a_folder_are_listed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content: list[Any] = lines()
    for at in range(6):
        content[at]["phrase"] = "\t"
    content[6] = "["
    content[7]["image"] = "x" * 300
    write_lines(own(project, "phrases.jsonl"), content)
    status, said = told(capsys, "mine")
    assert status == 1
    assert [line.split(": ")[0] for line in said] == [
        *(f"phrases.jsonl:{number}" for number in range(1, 9)),
        "8 mistakes; see docs/own-data.md",
    ]


def test_the_challenges_layout_is_read_from_the_mirror(
    project: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = test_lpcvc.tables()
    test_lpcvc.as_zip(content, tmp_path / "mirror")
    edit_yaml(project / "configs/data/lpcvc.yaml", {"val_share": 0.3, "test_share": 0.3})
    status, said = told(capsys, "lpcvc", "--mirror", str(tmp_path / "mirror"))
    assert (status, said[-1]) == (0, "no mistakes")
    assert sum(int(line.split()[1]) for line in said[:3]) == 24
    content["annotations"][2]["id"] = 10
    content["files"]["images/default/000003.jpg"] = jpeg(3)[:-200]
    test_lpcvc.as_zip(content, tmp_path / "mirror")
    edit_yaml(project / "params.yaml", {"mirror": str(tmp_path / "mirror")})
    status, said = told(capsys, "lpcvc")
    assert status == 1
    assert said[0].startswith("lpcvc.zip: instances_default.json, annotation number 2: id: got 10 again")
    assert said[1].startswith("lpcvc.zip: instances_default.json, image 3: image: images/default/000003.jpg: got a pic")
    assert said[2:] == ["2 mistakes; see docs/own-data.md"]


def test_referring_expressions_are_read_and_what_is_left_out_is_listed(
    project: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = tables()
    again = {"sent_id": 9, "sent": "Red box"}
    content["refs"].append({**content["refs"][0], "ref_id": 104, "ann_id": 11, "sentences": [again]})
    build_tables(tmp_path, content)
    mirror = tmp_path / "mirror"
    config = of_archives(*(source_of(mirror / name) for name in ("images.zip", "refs.zip", "annotations.zip")))
    sources = {
        name: {key: getattr(getattr(config, name), key) for key in ("path", "url", "bytes", "sha256")}
        for name in ("images", "refs", "annotations")
    }
    edit_yaml(project / "configs/data/refcocog.yaml", sources)
    status, said = told(capsys, "refcocog", "--mirror", str(mirror))
    assert status == 0
    assert said == [
        "left out (a phrase that means two objects of its picture): ref 104: 'Red box'",
        "train: 1 phrases on 1 pictures",
        "val: 2 phrases on 1 pictures",
        "test: 2 phrases on 1 pictures",
        "no mistakes",
    ]


NASTY: dict[str, Any] = {
    "an id that is an object": {"id": {"$oid": "5"}},
    "an id that is a list": {"id": [1]},
    "a huge id": {"id": 10**4000},
    "a picture's id that is an object": {"image_id": {"a": 1}},
    "a huge coordinate": {"segmentation": [[10**400, 1, 2, 2, 3, 3]]},
    "run lengths of text": {"segmentation": {"size": [60, 80], "counts": "\ud83d"}},
    "a size of objects": {"segmentation": {"size": [{}, []], "counts": [1]}},
    "a long name of a mask": {"segmentation": "m" * 300},
    "phrases of objects": {"phrases": [{"a": 1}, None, 7]},
    "attributes of numbers": {"attributes": 7},
    "a phrase of half an emoji": {"phrases": ["\ud83d"]},
}


@pytest.mark.parametrize("fields", NASTY.values(), ids=NASTY)
def test_no_value_ends_in_a_traceback(
    project: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any]
) -> None:
    folder = own(project, "coco.json")
    content = coco()
    content["annotations"][2].update(fields)
    write_coco(folder, content)
    status, said = told(capsys, "mine")
    assert status == 1
    assert all(len(line) < 400 for line in said)
    "\n".join(said).encode("utf-8")


@pytest.mark.parametrize("content", [b"", b"\0", b"[" * 100_000, b'{"images": [[]], "annotations": [7]}', b"{\xff}"])
@pytest.mark.parametrize("annotations", ["phrases.jsonl", "coco.json"])
def test_no_file_ends_in_a_traceback(
    project: Path, capsys: pytest.CaptureFixture[str], annotations: str, content: bytes
) -> None:
    (own(project, annotations) / annotations).write_bytes(content)
    assert told(capsys, "mine")[0] == 1


@pytest.mark.usefixtures("project")
def test_a_mirror_of_something_else_is_one_line(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "lpcvc.zip").write_bytes(b"PK")
    assert told(capsys, "lpcvc", "--mirror", str(tmp_path))[0] == 1
    assert "got a file that is not a whole zip archive" in caplog.text
    with zipfile.ZipFile(tmp_path / "lpcvc.zip", "w") as archive:
        archive.writestr("annotations/instances_default.json", json.dumps([1]))
    status, said = told(capsys, "lpcvc", "--mirror", str(tmp_path))
    assert status == 1
    assert said[0].startswith("lpcvc.zip: instances_default.json: got no lists named 'images' and 'annotations'")
