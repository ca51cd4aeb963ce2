"""DVC's records as points, the front of those that none beats, a sweep's picture, and the command lines over them."""

import base64
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptseg.commands import grid, recommend, report, sweep_plot
from promptseg.experiments.records import (
    POINT,
    Floors,
    best_under,
    comparable_points,
    fastest_above,
    pareto_front,
    read_experiments,
)
from promptseg.experiments.sweep import draw_sweep
from promptseg.report.page import COMMIT, SENSITIVITY
from tests.imports import ROOT


def row(name: str | None, res: int, ms: float | None, miou: float | str | None, **changes: Any) -> dict[str, Any]:
    """A row as `dvc.api.exp_show` hands it out."""
    fields = {
        "Experiment": name,
        "rev": name or "workspace",
        "metrics/export.json:res": float(res),
        "params.yaml:res": float(res),
        "data": "shapes",
        "hub.split": "val",
        "hub.device": "X",
        "phrases": 480.0,
        "latency_ms_estimated": ms,
        "latency_ms_estimated_low": ms,
        "latency_ms_estimated_high": ms and ms + 1,
        "host.latency_ms_cpu": 3 * (ms or 1),
        "miou": miou,
        "miou_ci_low": 0.4,
        "miou_ci_high": 0.6,
        "non_finite": 0.0,
        "binary.iou_mean": 0.99,
        "binary.iou_worst": 0.95,
        "float32.iou_mean": 0.995,
        "float32.iou_worst": 0.96,
    }
    return {**fields, **changes}


FLOORS = Floors(mean=0.95, worst=0.8)
ROWS = pd.DataFrame(
    [
        row(None, 320, 6.8, 0.50),
        row(None, 320, 6.8, 0.50, rev="main"),
        row("res320", 320, 6.8, 0.50),
        row("res192", 192, 4.5, 0.46),
        row("res512", 512, 12.8, 0.47),
        row("queued", 590, None, None),
        row("broken", 590, 15.0, "!"),
        row("few", 256, 5.0, 0.9, phrases=60.0),
    ]
)


def points_of(rows: list[dict[str, Any]] | pd.DataFrame, source: str | None = None) -> pd.DataFrame:
    return comparable_points(pd.DataFrame(rows), FLOORS, source).points


def test_points_are_those_that_were_asked_the_same_once_each_under_their_own_name() -> None:
    found = comparable_points(ROWS, FLOORS)
    assert found.points[["name", "res", "can_be_applied"]].values.tolist() == [
        ["res192", 192, True],
        ["res320", 320, True],
        ["res512", 512, True],
    ]
    assert tuple(found.points) == POINT
    assert found.same == {"data": "shapes", "hub.split": "val", "phrases": 480.0, "hub.device": "X"}
    assert (found.left_out, found.broken) == (3, {})


def test_as_many_phrases_of_another_data_set_under_the_same_name_are_other_questions() -> None:
    """Such as `shapes` with another seed: DVC shows the digest of the samples."""
    rows = [row("a", 192, 4.5, 0.4), row("b", 320, 6.8, 0.5), row("other", 256, 1.0, 0.99)]
    for each, digest in zip(rows, ("x", "x", "y"), strict=True):
        each["data/samples.jsonl"] = digest
    found = comparable_points(pd.DataFrame(rows), FLOORS)
    assert list(found.points["name"]) == ["a", "b"]
    assert found.left_out == 1


def test_a_device_counts_where_as_many_have_one() -> None:
    rows = [row("a", 192, 4.5, 0.4, latency_ms_device=9.0), row("b", 320, 6.8, 0.5, latency_ms_device=20.0)]
    assert list(points_of(rows)["latency_ms"]) == [9.0, 20.0]
    assert set(points_of(rows)["latency_source"]) == {"device"}
    rows.append(row("c", 512, 12.0, 0.6))
    assert set(points_of(rows)["latency_source"]) == {"estimated"}


def cloud(name: str | None, res: int, ms: float, miou: float, **changes: Any) -> dict[str, Any]:
    """A row of a run in the cloud: measured, and not estimated."""
    bounds = {"latency_ms_device_low": ms - 1, "latency_ms_device_high": ms + 1, "host.latency_ms_cpu": 3 * ms}
    return row(name, res, None, miou, latency_ms_device=ms, **bounds, **changes)


@pytest.mark.parametrize(
    ("measured", "estimated", "source"), [(1, 2, "estimated"), (2, 1, "device"), (2, 2, "device"), (0, 1, "estimated")]
)
def test_measured_and_estimated_are_never_compared_with_each_other(measured: int, estimated: int, source: str) -> None:
    """Not by this machine's clock either, which all of them have: it says nothing about the NPU."""
    rows = [cloud(f"m{number}", 192 + number, 9.0 + number, 0.4) for number in range(measured)]
    rows += [row(f"e{number}", 192 + number, 4.0 + number, 0.4) for number in range(estimated)]
    found = comparable_points(pd.DataFrame(rows), FLOORS)
    assert set(found.points["latency_source"]) == {source}
    assert len(found.points) == (measured if source == "device" else estimated)
    other = {"device": "estimated", "estimated": "device"}[source]
    assert found.other_kinds == ({other: measured + estimated - len(found.points)} if measured else {})
    assert found.left_out == 0
    for kind, count in (("device", measured), ("estimated", estimated)):
        if count:
            assert set(points_of(rows, kind)["latency_source"]) == {kind}


def test_precisions_are_compared_by_estimates_where_all_have_one_else_by_simulation() -> None:
    """Of `mixed` there is no estimate."""
    rows = [
        row("float", 320, 5.3, 0.5, precision="fp16", latency_ms_simulated=6.6),
        row("integer", 320, 2.6, 0.49, precision="w8a8", latency_ms_simulated=2.7),
    ]
    points = points_of(rows)
    assert list(zip(points["latency_source"], points["latency_ms"], strict=True)) == [
        ("estimated", 2.6),
        ("estimated", 5.3),
    ]
    points = points_of([*rows, row("mixed", 320, None, 0.5, precision="mixed", latency_ms_simulated=4.8)])
    assert set(points["latency_source"]) == {"simulated"}
    assert list(points["latency_ms"]) == [2.7, 4.8, 6.6]


def test_figures_that_are_shown_under_several_names_have_one_voice() -> None:
    """The workspace and its commit repeat an experiment: three rows measured, and yet one point against two."""
    rows = [cloud(None, 320, 9.0, 0.5), cloud(None, 320, 9.0, 0.5, rev="main"), cloud("m", 320, 9.0, 0.5)]
    rows += [row("a", 192, 4.5, 0.4), row("b", 320, 6.8, 0.5)]
    found = comparable_points(pd.DataFrame(rows), FLOORS)
    assert list(found.points["name"]) == ["a", "b"]
    assert found.other_kinds == {"device": 3}


def test_without_any_figure_of_the_npu_the_host_counts() -> None:
    rows = [row("a", 192, None, 0.4), row("b", 320, None, 0.5)]
    assert set(points_of(rows)["latency_source"]) == {"cpu"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"binary.iou_mean": 0.8, "binary.iou_worst": 0.8},
            "binary's masks are not the scored ones: IoU 0.800 on average",
        ),
        ({"binary.iou_worst": 0.0}, "binary's masks are not the scored ones: IoU 0.990 on average, 0.000 at worst"),
        ({"float32.iou_mean": 0.5}, "rounding changes masks: IoU 0.500 on average"),
        ({"binary.iou_mean": None, "binary.iou_worst": None}, "nothing says that the binary gives the scored masks"),
        ({"non_finite": 3.0}, "3 of its masks hold values that are no numbers"),
        ({"miou": math.inf}, "its mIoU or the interval of it is missing or not finite"),
        ({"miou_ci_low": None}, "its mIoU or the interval of it is missing or not finite"),
        ({"latency_ms_estimated": math.inf}, "its latency is not finite"),
    ],
)
def test_broken_runs_are_left_out_and_named_however_good_they_look(changes: dict[str, Any], reason: str) -> None:
    rows = [row("a", 192, 4.5, 0.4), row("b", 320, 6.8, 0.5), row("best", 256, 1.0, 0.99) | changes]
    found = comparable_points(pd.DataFrame(rows), FLOORS)
    assert list(found.points["name"]) == ["a", "b"]
    assert list(found.broken) == ["best"]
    assert reason in found.broken["best"]
    assert found.left_out == 0


def test_failed_and_waiting_runs_are_not_taken_for_the_commit_that_they_start_from() -> None:
    """DVC shows them with their own params and with the figures of that commit."""
    rows = [row("a", 192, 4.5, 0.4), row("b", 590, 4.5, 0.4, State="Failed"), row("c", 768, 4.5, 0.4, State="Queued")]
    found = comparable_points(pd.DataFrame(rows), FLOORS)
    assert list(found.points["name"]) == ["a"]
    assert "it failed" in found.broken["b"]
    assert found.left_out == 1


def test_figures_of_another_resolution_are_never_compared() -> None:
    rows = [row("a", 192, 4.5, 0.4, **{"metrics/export.json:res": 192.0}), row("b", 590, 4.5, 0.4)]
    rows[1]["metrics/export.json:res"] = 192.0
    found = comparable_points(pd.DataFrame(rows), FLOORS)
    assert list(found.points["name"]) == ["a"]
    assert found.broken["b"] == "its figures were made at 192 px, and it is filed under 590"


def test_one_phrase_that_rounding_decides_otherwise_breaks_no_run() -> None:
    rows = [row("a", 192, 4.5, 0.4), row("b", 590, 9.0, 0.5) | {"float32.iou_mean": 0.986, "float32.iou_worst": 0.2}]
    assert list(points_of(rows)["name"]) == ["a", "b"]


def test_without_a_binary_there_is_nothing_to_be_true_to() -> None:
    """Where nothing can be compiled, the host runs the graph that is scored."""
    nothing = dict.fromkeys(("binary.iou_mean", "binary.iou_worst", "float32.iou_mean", "float32.iou_worst"))
    rows = [row("a", 192, None, 0.4, **nothing), row("b", 320, None, 0.5, **nothing)]
    assert list(points_of(rows)["name"]) == ["a", "b"]


def test_by_the_hosts_clock_the_binary_does_not_matter() -> None:
    rows = [row("a", 192, 4.5, 0.4), row("b", 320, 6.8, 0.5) | {"binary.iou_mean": None, "binary.iou_worst": None}]
    assert list(points_of(rows)["name"]) == ["a"]
    assert list(points_of(rows, "cpu")["name"]) == ["a", "b"]


def test_floors_of_zero_ask_for_no_comparison_of_masks() -> None:
    rows = [row("a", 192, 4.5, 0.4) | {"binary.iou_mean": None, "binary.iou_worst": None}]
    assert list(comparable_points(pd.DataFrame(rows), Floors(0, 0)).points["name"]) == ["a"]


def test_where_all_runs_are_broken_none_is_recommended() -> None:
    broken = {"binary.iou_mean": 0.1, "binary.iou_worst": 0.0}
    with pytest.raises(ValueError, match=r"got 2 experiments, all of them broken, wanted a sound one; a: the binary's"):
        points_of([row("a", 192, 4.5, 0.4, **broken), row("b", 320, 6.8, 0.5, **broken)])


def test_recommend_and_sweep_plot_name_what_they_leave_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the floors of the project's own params."""
    rows = pd.concat([ROWS, pd.DataFrame([row("fast", 128, 1.0, 0.9, **{"binary.iou_mean": 0.94})])], ignore_index=True)
    for command in (recommend, sweep_plot):
        monkeypatch.setattr(command, "read_experiments", lambda _: rows)
    recommend.run(Namespace(latency=None, above_miou=0.4, under_ms=None))
    sweep_plot.run(Namespace(prefix="", csv=tmp_path / "a.csv", svg=tmp_path / "a.svg", latency=None))
    told = capsys.readouterr().out.splitlines()
    named = [line for line in told if line.startswith("left out: fast: the binary's masks are not the scored ones")]
    assert len(named) == 2
    assert not any(line.startswith("* fast") for line in told)
    assert "fast" not in (tmp_path / "a.csv").read_text()


def test_recommend_tells_of_runs_by_another_clock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = [cloud("x590", 590, 21.0, 0.55), cloud("x320", 320, 11.0, 0.51)]
    rows = pd.concat([ROWS, pd.DataFrame(measured)], ignore_index=True)
    monkeypatch.setattr(recommend, "read_experiments", lambda _: rows)
    recommend.run(Namespace(latency=None, above_miou=None, under_ms=None))
    told = capsys.readouterr().out
    assert "x590" not in told
    assert "2 more have only the latency `device`, which is not compared with this one: --latency device" in told
    recommend.run(Namespace(latency="device", above_miou=0.54, under_ms=None))
    told = capsys.readouterr().out
    assert "ms (device)" in told
    assert "fastest of mIoU 0.54 or more: x590 (res 590, 21.00 ms device, mIoU 0.550)" in told
    assert "more have only the latency `estimated`" in told


def test_without_metrics_the_remedy_is_named() -> None:
    with pytest.raises(ValueError, match="run `dvc repro`, or `dvc queue start`"):
        points_of([row("queued", 320, None, None)])
    with pytest.raises(ValueError, match="try another --latency"):
        points_of([row("a", 320, None, 0.5)], "estimated")
    with pytest.raises(ValueError, match="run `dvc repro`"):
        points_of([])


def test_the_table_fits_a_terminal_and_marks_the_front() -> None:
    long = row("a-name-that-is-longer-than-a-terminal-likes", 768, 20.0, 0.52)
    points = points_of(pd.concat([ROWS, pd.DataFrame([long])], ignore_index=True))
    lines = recommend.table(points)
    assert all(len(line) <= 80 for line in lines), max(map(len, lines))
    assert [line[0] for line in lines[1:]] == ["*", "*", " ", "*"]


def test_recommend_says_which_to_apply_and_how_sure_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recommend, "read_experiments", lambda _: ROWS)
    options = Namespace(latency=None, above_miou=0.47, under_ms=5.0)
    assert recommend.run(options) == 0
    told = capsys.readouterr().out
    assert "fastest of mIoU 0.47 or more: res320 (res 320, 6.80 ms estimated, mIoU 0.500); its interval reaches" in told
    assert "take it: dvc exp apply res320" in told
    assert "best of 5 ms or less: res192 (res 192, 4.50 ms estimated, mIoU 0.460); its bounds reach above" in told
    assert "3 more were asked other questions" in told


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("res=192,256", ("res", ["192", "256"])),
        ("finetune.res=[192],[256,320]", ("finetune.res", ["[192]", "[256,320]"])),
        ("hub.device=Snapdragon X Elite CRD", ("hub.device", ["Snapdragon X Elite CRD"])),
    ],
)
def test_values_are_split_outside_brackets_only(text: str, parsed: tuple[str, list[str]]) -> None:
    assert grid.parse(text) == parsed


@pytest.mark.parametrize("text", ["res", "=1", "res=", "res=1,,2", "finetune.res=[1,2"])
def test_values_that_cannot_be_split_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted key=value"):
        grid.parse(text)


def test_all_with_all_or_pairs() -> None:
    choices = [("res", ["1", "2"]), ("hub.device", ["a", "b"])]
    assert len(grid.combinations(choices, pair=False)) == 4
    assert grid.combinations(choices, pair=True) == [
        [("res", "1"), ("hub.device", "a")],
        [("res", "2"), ("hub.device", "b")],
    ]
    with pytest.raises(ValueError, match="got 2 of res, 1 of x, wanted as many"):
        grid.combinations([("res", ["1", "2"]), ("x", ["1"])], pair=True)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([("res", "192")], "res192"),
        ([("res", "590"), ("hub.device", "Snapdragon X Elite CRD")], "res590-device_Snapdragon_X_Elite_CRD"),
        ([("res", "192"), ("finetune.res", "[192,256]")], "res192-finetune_res192_256"),
        ([("finetune.learning_rate", "1e-3")], "learning_rate1e_3"),
    ],
)
def test_names_say_what_they_are_and_git_takes_them(settings: list[tuple[str, str]], name: str) -> None:
    assert grid.name_of(settings) == name
    subprocess.run(["git", "check-ref-format", f"refs/exps/{name}"], check=True)


def test_devices_with_parentheses_reach_dvc_in_quotes():
    assert grid.quoted("QCS8550 (Proxy)") == '"QCS8550 (Proxy)"'
    assert grid.quoted("Samsung Galaxy S25") == "Samsung Galaxy S25"
    assert grid.quoted('"QCS8550 (Proxy)"') == '"QCS8550 (Proxy)"'
    assert grid.name_of([("hub.device", "QCS8550 (Proxy)")]) == "device_QCS8550_Proxy"


def test_a_dry_run_shows_dvcs_own_commands() -> None:
    command = [sys.executable, "-m", "promptseg", "grid", "--dry-run", "--prefix", "try-", "res=192,256"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "dvc exp run --queue --name try-res192 -S res=192",
        "dvc exp run --queue --name try-res256 -S res=256",
    ]


def point(name: str, ms: float, miou: float, **changes: Any) -> dict[str, Any]:
    fields = {"name": name, "can_be_applied": True, "res": 320, "precision": "fp16"}
    fields |= {"miou": miou, "latency_ms": ms}
    fields |= {"miou_low": miou - 0.05, "miou_high": miou + 0.05, "latency_source": "estimated"}
    fields |= {"latency_ms_low": math.nan, "latency_ms_high": math.nan, "latency_ms_cpu": math.nan}
    return {**fields, **changes}


POINTS = pd.DataFrame([point("a", 4.5, 0.46), point("b", 6.8, 0.50), point("c", 12.8, 0.47), point("d", 15.4, 0.55)])


def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one != other and one[0] <= other[0] and one[1] >= other[1]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_none_beats(pairs: list[tuple[int, int]]) -> None:
    front = pareto_front(pd.DataFrame(pairs, columns=["latency_ms", "miou"]))
    wanted = {each for each in pairs if not any(beats(other, each) for other in pairs)}
    assert list(front.itertuples(index=False, name=None)) == sorted(wanted)


def test_operating_points_are_the_fastest_good_one_and_the_best_quick_one() -> None:
    assert list(pareto_front(POINTS)["name"]) == ["a", "b", "d"]
    assert fastest_above(POINTS, 0.47).name == "b"
    assert fastest_above(POINTS, 0.46).name == "a"
    assert best_under(POINTS, 13).name == "b"
    assert best_under(POINTS, 4.5).name == "a"


def test_what_no_experiment_reaches_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no experiment with mIoU 0.9 or more, the best is d with 0.550"):
        fastest_above(POINTS, 0.9)
    with pytest.raises(ValueError, match=r"no experiment of 1 ms or less, the fastest is a with 4.50"):
        best_under(POINTS, 1)


SWEEP = pd.DataFrame(
    [
        point("b", 6.8, 0.50, res=320, latency_ms_low=6.0, latency_ms_high=8.0, latency_ms_cpu=25.0),
        point("a", 4.512345678, 0.46, res=192),
        point("c", 12.8, 0.47, res=512, latency_ms_cpu=52.0),
    ]
)


def test_a_sweep_is_written_where_it_is_asked_for_and_never_over_the_readmes_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [row("s-320", 320, 6.8, 0.50), row("s-192", 192, 4.512345678, 0.46), row("other", 256, 5.0, 0.48)]
    monkeypatch.setattr(sweep_plot, "read_experiments", lambda _: pd.DataFrame(rows))
    parser = sweep_plot.argparse.ArgumentParser()
    sweep_plot.add_arguments(parser)
    assert parser.parse_args([]).svg is None
    options = Namespace(prefix="s-", csv=tmp_path / "a.csv", svg=tmp_path / "a.svg", latency=None)
    assert sweep_plot.run(options) == 0
    table = pd.read_csv(tmp_path / "a.csv")
    assert tuple(table) == POINT
    assert list(table["res"]) == [192, 320]
    assert "\ns-192,True,192,fp16,0.46,0.4,0.6,4.51235,4.51235," in (tmp_path / "a.csv").read_text()
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_the_picture_names_every_size_and_repeats_exactly() -> None:
    drawn = draw_sweep(SWEEP)
    texts = {element.text for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("}text")}
    assert {"192", "320", "512", "mIoU", "ms", "NPU, estimated", "this host's CPU"} <= texts
    assert draw_sweep(SWEEP) == drawn


@pytest.mark.parametrize(("source", "label"), [("device", "NPU, measured"), ("cpu", "this host's CPU")])
def test_the_picture_says_whose_clock_it_was(source: str, label: str) -> None:
    points = [point(name, 4.0 + res, 0.5, res=res, latency_source=source) for name, res in (("a", 192), ("b", 320))]
    texts = [element.text for element in ElementTree.fromstring(draw_sweep(pd.DataFrame(points))).iter()]
    assert texts.count(label) == 1
    assert f"ms ({label})" in texts
    assert "NPU, estimated" not in texts


def test_one_point_is_no_sweep() -> None:
    with pytest.raises(ValueError, match="got 1 experiments to draw, wanted at least two"):
        draw_sweep(SWEEP[:1])


def in_git(folder: Path, *arguments: str) -> None:
    names = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


def test_without_git_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(ValueError, match=r"^.*DVC cannot list experiments: .* is not a git repository$"):
        read_experiments(tmp_path)


def test_experiments_are_read_in_a_worktree_and_none_of_a_project_without_commits(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    (project / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    in_git(project, "init", "-q", ".")
    assert read_experiments(project).empty
    in_git(project, "add", "-A")
    in_git(project, "commit", "-q", "-m", "first")
    in_git(project, "worktree", "add", "-q", "../beside")
    assert len(read_experiments(tmp_path / "beside")) == 2  # the workspace and the commit


def test_the_report_is_handed_on_with_its_commit_or_one_line_says_why_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    monkeypatch.setattr(report, "project_root", lambda: tmp_path)
    monkeypatch.setattr(report, "read_paths", lambda _: {"report": page})
    options = Namespace(out=tmp_path / "out.html")
    with pytest.raises(ValueError, match="no such file; run `dvc repro`"):
        report.run(options)
    page.write_text(f"{SENSITIVITY}<p>{COMMIT}</p>")
    with pytest.raises(ValueError, match="git names no commit"):
        report.run(options)
    in_git(tmp_path, "init", "-q", ".")
    in_git(tmp_path, "add", "-A")
    in_git(tmp_path, "commit", "-q", "-m", "first")
    assert report.run(options) == 0
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert options.out.read_text() == f"<p>Git commit: {commit}.</p>"
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "sensitivity.svg").write_text("<svg/>")
    assert report.run(options) == 0
    assert base64.b64encode(b"<svg/>").decode() in options.out.read_text()
    page.write_text(f"<p>{COMMIT}</p>")
    with pytest.raises(ValueError, match="run `dvc repro score`"):
        report.run(options)
