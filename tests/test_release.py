"""A release: it holds together or is not made, says what it is, and answers as predict does without this project."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import onnx
import pytest
from graphs import RECORD, split_picture, write_bright_graph
from hypothesis import given
from hypothesis import strategies as st
from networks import micro_network
from PIL import Image

import promptseg
from promptseg.__main__ import main
from promptseg.datasets.tokenizer import ClipTokenizer, clean_phrase
from promptseg.export.onnx_export import export_graphs
from promptseg.files import read_json, sha256_of, write_json
from promptseg.hubs.base import Binary, CompiledGraphs
from promptseg.hubs.contract import APP, read_graphs
from promptseg.params import load_yaml, read_params, read_paths
from promptseg.release import run
from promptseg.release.build import Choice, Experiment, distrust, release
from tests.graphs import export_config
from tests.imports import ROOT

DEVICE = "Snapdragon X Elite CRD"
PLAIN = Choice(devices=[], compile_others=False, cpu_only=False, force=False)
SAMPLE = {
    "sample_id": "val-0", "split": "val", "image": "a.zip/a.png", "height": 4, "width": 4, "phrase": "a cup",
    "phrase_kind": "short", "mask": {"height": 4, "width": 4, "counts": "`0"},
}  # fmt: skip


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Artefacts that belong together, of a graph that finds what is bright; its binary is made up."""
    root = tmp_path / "project"
    for name in ("params.yaml", "dvc.yaml", "LICENSE", "NOTICE"):
        root.mkdir(exist_ok=True)
        (root / name).write_bytes((ROOT / name).read_bytes())
    paths, settings = read_paths(root), load_yaml(root / "params.yaml") | {"model": "nano", "res": 64}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    for name, content in (("checkpoint", "weights"), ("predictions", "masks"), ("compiled", None)):
        paths[name].write_text(content) if content else paths[name].mkdir()
    paths["graphs"].mkdir()
    model = write_bright_graph(paths["graphs"] / "model.onnx")
    graph = onnx.load(model)
    replace(RECORD, checkpoint_sha256=sha256_of(paths["checkpoint"])).write_into(graph)
    onnx.save(graph, model)
    paths["samples"].write_text(json.dumps(SAMPLE) + "\n")
    (paths["compiled"] / "model_qnn.bin").write_bytes(b"binary")
    (paths["compiled"] / "model.onnx").write_bytes(b"wrapper")
    record = {
        "model": "nano", "res": 64, "device": DEVICE, "precision": "fp16", "graph_sha256": sha256_of(model)
    }  # fmt: skip
    binary_sha256 = sha256_of(paths["compiled"] / "model_qnn.bin")
    binary = Binary("model", sha256_of(model), "model_qnn.bin", 6, binary_sha256, "model.onnx")
    CompiledGraphs(
        **record, backend="local", contract=RECORD.contract, runtime="QNN context binary", placed_on_npu=True,
        binaries=(binary,), note="", chip="SC8380XP, v73", tool_versions={"onnxruntime_qnn": "2.7.0"},
        service=None, account=None,
    ).write(paths["compiled"])  # fmt: skip
    compared = {"runner": "emulator", "reference": "host", "samples": 8, "iou_mean": 0.99, "iou_worst": 0.9}
    fidelity = {
        **record, "non_finite": 0, "phrases": 480, "scored_by": "host", "binary": compared, "float32": compared,
        "predictions_sha256": sha256_of(paths["predictions"]),
    }  # fmt: skip
    figures = ("samples", "iou_mean", "iou_worst", "miou_change", "miou_change_low", "miou_change_high")
    scores = ("miou", "miou_ci_low", "miou_ci_high", "miou_best_baseline", "miou_small", "miou_medium", "miou_large")
    score = {
        **dict.fromkeys(scores, 0.5), "phrases": 480, "pictures": 80, "scored_by": "host", "precision": "fp16",
        **{f"binary_{name}": compared.get(name) for name in figures},
    }  # fmt: skip
    bounds = {"latency_ms_estimated_low": 4.0, "latency_ms_estimated_high": 7.0}
    write_json(paths["latency"], {**record, "latency_ms_estimated": 5.0, **bounds, "host": {"cpu": "a CPU"}})
    write_json(paths["fidelity"], fidelity)
    write_json(paths["score"], score)
    write_json(paths["export"], {"res": 64, "parameters": 1234567})
    write_json(paths["training"], {"best_step": 0})
    provenance = {"model": "nano", "init_sha256": None, "step": 7, "params": {"steps": 7, "init": None}}
    write_json(paths["description"], {"provenance": provenance})
    return Experiment(root, paths, settings, read_params(root).hub, "abc123", root / ".cache")


@pytest.fixture
def released(experiment: Experiment, tmp_path: Path) -> Path:
    release(tmp_path / "out", experiment, PLAIN)
    return tmp_path / "out"


def edit(path: Path, **changes: Any) -> None:
    write_json(path, {**read_json(path), **changes})


def test_a_release_holds_what_it_says_and_the_same_again(experiment: Experiment, tmp_path: Path) -> None:
    out, packed = tmp_path / "out", tmp_path / "out.zip"
    manifest = release(out, experiment, PLAIN)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "manifest.json"}
    assert {f"out/{name}" for name in files} == set(zipfile.ZipFile(packed).namelist())
    assert run.check(out) == len(files) - 1
    (binary,) = manifest["binaries"]
    assert (binary["device"], binary["soc_model"], binary["masks_compared"]) == (DEVICE, 60, True)
    assert (out / binary["wrappers"]["model"]).read_bytes() == b"wrapper"
    assert manifest["git_commit"] == "abc123"
    assert manifest["params"]["res"] == 64
    assert manifest["graph_sha256"] == sha256_of(out / manifest["graphs"]["model"])
    before = packed.read_bytes()
    release(out, experiment, PLAIN)
    assert packed.read_bytes() == before


def test_the_card_tells_figures_with_their_kind(released: Path) -> None:
    card = (released / "MODEL_CARD.md").read_text()
    assert "mIoU 0.500 (95 % interval 0.500 to 0.500) on 480 phrases of 80 pictures" in card
    assert "5.0 ms, **NPU, estimated**, 4.0 to 7.0 ms, on Snapdragon X Elite CRD" in card
    assert "1,234,567 parameters" in card
    assert "1 phrases on 1 pictures of val" in card
    assert "$" not in card


def remove(name: str) -> Callable[[Experiment], None]:
    return lambda experiment: experiment.paths[name].unlink()


def change(name: str, **changes: Any) -> Callable[[Experiment], None]:
    return lambda experiment: edit(experiment.paths[name], **changes)


def overwrite(name: str, file: str = "") -> Callable[[Experiment], None]:
    return lambda experiment: (experiment.paths[name] / file).write_bytes(b"other")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (remove("score"), r"got no .*metrics/score\.json; run `dvc repro`"),
        (remove("checkpoint"), r"got no .*finetuned\.safetensors"),
        (overwrite("checkpoint"), r"got a graph of the checkpoint \w{12}, and \w{12} is in .*finetuned\.safetensors"),
        (overwrite("compiled", "model_qnn.bin"), r"model_qnn\.bin: got another file than the one that was compiled"),
        (overwrite("predictions"), "fidelity: got predictions_sha256"),
        (change("latency", graph_sha256="0"), "latency: got graph_sha256 '0'"),
        (change("export", res=320), "export: got res 320, wanted 64"),
        (change("fidelity", device="another"), "fidelity: got device 'another'"),
        (
            change("score", phrases=3),
            r"got a score of other masks than .*fidelity\.json is of \(phrases\)",
        ),
        (change("score", binary_iou_mean=0.98), r"is of \(binary_iou_mean\)"),
    ],
)
def test_artefacts_that_do_not_belong_together_make_no_release(
    experiment: Experiment, tmp_path: Path, break_it: Callable[[Experiment], None], message: str
) -> None:
    break_it(experiment)
    with pytest.raises(ValueError, match=message):
        release(tmp_path / "out", experiment, PLAIN)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_a_broken_fidelity_is_refused_or_marked(experiment: Experiment, tmp_path: Path) -> None:
    broken = {"runner": "emulator", "reference": "host", "samples": 8, "iou_mean": 0.5, "iou_worst": 0.1}
    edit(experiment.paths["fidelity"], binary=broken)
    edit(experiment.paths["score"], binary_iou_mean=0.5, binary_iou_worst=0.1)
    with pytest.raises(ValueError, match=r"broken fidelity: .* is 0\.5 on average and 0\.1 at worst, .* \(--force\)"):
        release(tmp_path / "out", experiment, PLAIN)
    assert not (tmp_path / "out").exists()
    manifest = release(tmp_path / "out", experiment, replace(PLAIN, force=True))
    assert "broken fidelity" in manifest["warning"]
    assert "> **Warning: broken fidelity" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    done = answer(tmp_path / "out", bright(tmp_path), "a cup", "--on", "cpu")
    assert done.returncode == 0
    assert "warning: broken fidelity" in done.stderr


@pytest.mark.parametrize(
    ("fidelity", "reason"),
    [
        ({"non_finite": 2}, "2 of the scored masks hold values that are no numbers"),
        ({"binary": None}, "nothing says that the binary gives the scored masks"),
        ({"binary": None, "precision": "fp32"}, ""),
        ({"float32": {"iou_mean": 0.9, "iou_worst": 0.9, "runner": "a", "reference": "b"}}, "0.9 on average"),
        ({}, ""),
    ],
)
def test_what_is_not_to_be_trusted(fidelity: dict[str, Any], reason: str) -> None:
    good = {"iou_mean": 0.99, "iou_worst": 0.9}
    record = {"non_finite": 0, "precision": "fp16", "binary": good, "float32": good, **fidelity}
    told = distrust(record, read_params(ROOT).hub)
    assert reason in told
    assert bool(reason) == bool(told)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (
            ["Samsung Galaxy S24"],
            "'Samsung Galaxy S24', which there is no binary for .* compiled for 'Snapdragon X",
        ),
        ([DEVICE, "Samsung Galaxy S24"], "got 'Samsung Galaxy S24', which"),
    ],
)
def test_a_device_that_was_not_compiled_for_is_refused(
    experiment: Experiment, tmp_path: Path, devices: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        release(tmp_path / "out", experiment, replace(PLAIN, devices=devices))
    with pytest.raises(ValueError, match="'Galaxy S24', which the local compiler is not set up for; did you mean"):
        release(tmp_path / "out", experiment, replace(PLAIN, devices=["Galaxy S24"], compile_others=True))
    assert not (tmp_path / "out").exists()


def test_without_binaries_it_is_for_cpus(experiment: Experiment, tmp_path: Path) -> None:
    manifest = release(tmp_path / "out", experiment, replace(PLAIN, cpu_only=True))
    assert manifest["binaries"] == []
    assert "onnxruntime-qnn" not in (tmp_path / "out" / "requirements.txt").read_text()


def test_what_is_no_release_is_not_overwritten(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="got something that is no release"):
        release(tmp_path / "out", experiment, PLAIN)
    assert (tmp_path / "out" / "thesis.txt").is_file()


def test_a_release_that_changed_is_told_file_by_file(released: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["release", str(released), "--check"]) == 0
    (released / "run.py").write_text("other")
    (released / "LICENSE").unlink()
    (released / "more.txt").write_text("more")
    assert main(["release", str(released), "--check"]) == 1
    assert "LICENSE is missing; more.txt is not in manifest.json; run.py has other bytes" in caplog.text
    assert main(["release", str(released.parent), "--check"]) == 1
    assert "manifest.json: no such file; wanted the folder of a release" in caplog.text


def answer(folder: Path, picture: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a release's program as a user does: no package of ours on the path; `before` is code that runs first."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); {before}\nimport run; sys.exit(run.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(picture), *arguments]
    out = folder.parent
    return subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, check=False)


def bright(folder: Path, width: int = 120, height: int = 60) -> Path:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    Image.fromarray(pixels).save(folder / "half.png")
    return folder / "half.png"


def upright(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(bright(folder)).save(folder / "upright.jpg", exif=exif, quality=95)
    return folder / "upright.jpg"


LONG = " ".join(["a very long phrase of words"] * 84)  # 504 words


@pytest.mark.parametrize(
    "picture", [bright, upright, lambda folder: bright(folder, 1, 1), lambda f: bright(f, 3000, 9)]
)
def test_it_answers_as_predict_does(released: Path, tmp_path: Path, picture: Callable[[Path], Path]) -> None:
    """Masks are equal, pixel by pixel: on a CPU both run the same graph."""
    phrases = ["The red cup!", "a dog\u2019s tail", LONG]
    done = answer(released, picture(tmp_path), *phrases, "--on", "cpu", "--mask")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: cut a phrase of more than 75 tokens") == 1
    model = promptseg.load(released / "model.onnx")
    for number, found in enumerate(model.segment(picture(tmp_path), phrases), start=1):
        name = f"{picture(tmp_path).name}-{number}"
        mask = np.asarray(Image.open(tmp_path / "predictions" / f"{name}.mask.png")) > 0
        np.testing.assert_array_equal(mask, found.mask)
        drawn = np.asarray(Image.open(tmp_path / "predictions" / f"{name}.png"))
        np.testing.assert_array_equal(drawn, np.asarray(found.draw(1600)))
    assert '"The red cup!": ' in done.stdout


def with_three_graphs(experiment: Experiment) -> None:
    """Make the experiment one of the app's contract: its binaries are made up, the graphs are real."""
    paths, config = experiment.paths, export_config(1, contract="app")
    digest = sha256_of(paths["checkpoint"])
    sample = split_picture("a", 0.0, 255.0, 320)
    export_graphs(micro_network(), 64, config, [sample], paths["graphs"], model="nano", checkpoint_sha256=digest)
    graphs, compiled = read_graphs(paths["graphs"]), CompiledGraphs.read(paths["compiled"])
    made = []
    for graph in graphs:
        files = {
            name: paths["compiled"] / f"{graph.name}{end}" for name, end in (("binary", ".bin"), ("wrapper", ".onnx"))
        }
        for name, file in files.items():
            file.write_bytes(f"{graph.name} {name}".encode())
        binary, wrapper = files.values()
        made.append(Binary(graph.name, graph.sha256, binary.name, 1, sha256_of(binary), wrapper.name))
    changed = replace(compiled, contract=APP, binaries=tuple(made), graph_sha256=graphs.sha256)
    changed.write(paths["compiled"])
    for name in ("latency", "fidelity"):
        edit(paths[name], graph_sha256=graphs.sha256)


def test_an_apps_three_graphs_are_released_and_answer_as_predict_does(experiment: Experiment, tmp_path: Path) -> None:
    with_three_graphs(experiment)
    manifest = release(tmp_path / "out", experiment, PLAIN)
    assert list(manifest["graphs"]) == ["picture", "phrase", "decoder"]
    (binary,) = manifest["binaries"]
    assert {name: (tmp_path / "out" / file).read_text() for name, file in binary["wrappers"].items()} == {
        name: f"{name} wrapper" for name in manifest["graphs"]
    }
    phrases = ["the red cup", "a dog"]
    done = answer(tmp_path / "out", bright(tmp_path), *phrases, "--on", "cpu", "--mask")
    assert done.returncode == 0, done.stderr
    model = promptseg.load(experiment.paths["graphs"])
    for number, found in enumerate(model.segment(bright(tmp_path), phrases), start=1):
        mask = np.asarray(Image.open(tmp_path / "predictions" / f"half.png-{number}.mask.png")) > 0
        np.testing.assert_array_equal(mask, found.mask)


@pytest.mark.parametrize(
    ("arguments", "before", "message"),
    [
        ([], "", "got no picture or no phrase"),
        (["cup", "--on", "npu"], "", "wanted Windows on Snapdragon (arm64); `--on cpu` runs anywhere"),
        (
            ["cup", "--on", "emulator"],
            "sys.modules['onnxruntime_qnn'] = None",
            "got no onnxruntime-qnn, wanted 2.7.0",
        ),
        (
            ["cup", "--on", "emulator"],
            "import types; sys.modules['onnxruntime_qnn'] = types.SimpleNamespace(__version__='2.6.1')",
            "got onnxruntime-qnn 2.6.1, and a binary compiled by 2.7.0: python -m pip install onnxruntime-qnn==2.7.0",
        ),
        (
            ["cup", "--device", "Galaxy S24"],
            "",
            "this release was not compiled for; it has 'Snapdragon X",
        ),
        ([" . "], "", "got the phrase ' . ', wanted at least one word"),
        (["<|endoftext|>"], "", "wanted none of the tokenizer's own names"),
        (["cup", "--out", "half.png"], "", "--out: got half.png, which is a file"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_made(
    released: Path, tmp_path: Path, arguments: list[str], before: str, message: str
) -> None:
    done = answer(released, bright(tmp_path), *arguments, before=before)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "predictions").exists()


@pytest.mark.parametrize(("name", "message"), [("none.jpg", "no such picture"), ("NOTICE", "no known picture format")])
def test_what_is_no_picture_is_told(released: Path, name: str, message: str) -> None:
    done = answer(released, released / name, "a cup")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr


def test_a_release_without_binaries_says_so_where_one_is_asked_for(experiment: Experiment, tmp_path: Path) -> None:
    release(tmp_path / "out", experiment, replace(PLAIN, cpu_only=True))
    done = answer(tmp_path / "out", bright(tmp_path), "cup", "--on", "emulator")
    assert "this release holds no binary for an NPU; `--on cpu` runs anywhere" in done.stderr


LATIN = st.text(st.characters(codec="latin-1", exclude_categories=("Cc", "Cf")), max_size=40)


@given(LATIN)
def test_phrases_are_prepared_as_in_training(text: str) -> None:
    """Save for what ftfy takes for text in a wrong encoding, which the release does not undo."""
    if ftfy.fix_encoding(text) != text:
        return
    try:
        wanted = clean_phrase(text)
    except ValueError:
        with pytest.raises(ValueError, match="got the phrase"):
            run.clean(text)
        return
    if text.isascii() or text == wanted:
        assert run.clean(text) == wanted


def test_tokens_are_those_of_training(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HERE", released)
    phrases = ["the red cup", "a DOG's  tail &amp; paw", "红色的圆", "crème brûlée", LONG]
    wanted = ClipTokenizer().encode_all(phrases)
    np.testing.assert_array_equal(run._encode([run.clean(phrase) for phrase in phrases]), wanted)


@pytest.mark.slow
def test_the_emulator_answers_as_the_cpu_does(experiment: Experiment, tmp_path: Path) -> None:
    """With a real binary, for a device that the experiment was not compiled for."""
    pytest.importorskip("onnxruntime_qnn")
    other = "Samsung Galaxy S24"
    manifest = release(tmp_path / "out", experiment, replace(PLAIN, devices=[other], compile_others=True))
    assert not manifest["binaries"][0]["masks_compared"]
    picture = bright(tmp_path)
    for place in ("cpu", "emulator"):
        done = answer(tmp_path / "out", picture, "a cup", "--on", place, "--mask", "--out", place)
        assert done.returncode == 0, done.stderr
    masks = [Image.open(tmp_path / place / "half.png-1.mask.png").tobytes() for place in ("cpu", "emulator")]
    assert masks[0] == masks[1]


@pytest.mark.slow
def test_the_command_releases_a_run_of_the_pipeline(
    finished_run: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(finished_run[0])
    compiled = read_json(Path("models/compiled/manifest.json"))
    more = ["--cpu-only"] if not compiled["placed_on_npu"] else []
    assert main(["release", str(tmp_path / "out"), "--force", *more]) == 0
    assert f"{tmp_path / 'out'}: nano at 64 px" in capsys.readouterr().out
    assert main(["release", str(tmp_path / "out"), "--check"]) == 0
