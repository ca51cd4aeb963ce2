"""DVC's records as points; what changed between two states; the command lines over them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from promptseg.commands import grid, recommend
from promptseg.experiments.changes import changes_between
from promptseg.experiments.records import State, comparable_points
from promptseg.report.page import CHANGES, insert_changes
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
    }
    return {**fields, **changes}


ROWS = [
    row(None, 320, 6.8, 0.50),
    row(None, 320, 6.8, 0.50, rev="main"),
    row("res320", 320, 6.8, 0.50),
    row("res192", 192, 4.5, 0.46),
    row("res512", 512, 12.8, 0.47),
    row("queued", 590, None, None),
    row("broken", 590, 15.0, "!"),
    row("few", 256, 5.0, 0.9, phrases=60.0),
]


def test_points_are_those_that_were_asked_the_same_once_each_under_their_own_name() -> None:
    found = comparable_points(ROWS)
    assert [(point.name, point.res, point.can_be_applied) for point in found.points] == [
        ("res192", 192, True),
        ("res320", 320, True),
        ("res512", 512, True),
    ]
    assert found.same == {"data": "shapes", "hub.split": "val", "phrases": 480.0, "hub.device": "X"}
    assert found.left_out == 3


def test_a_device_counts_where_as_many_have_one() -> None:
    rows = [row("a", 192, 4.5, 0.4, latency_ms_device=9.0), row("b", 320, 6.8, 0.5, latency_ms_device=20.0)]
    assert [point.latency_ms for point in comparable_points(rows).points] == [9.0, 20.0]
    assert comparable_points(rows).points[0].latency_source == "device"
    rows.append(row("c", 512, 12.0, 0.6))
    assert {point.latency_source for point in comparable_points(rows).points} == {"estimated"}


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
    found = comparable_points(rows)
    assert {point.latency_source for point in found.points} == {source}
    assert len(found.points) == (measured if source == "device" else estimated)
    other = {"device": "estimated", "estimated": "device"}[source]
    assert found.other_kinds == ({other: measured + estimated - len(found.points)} if measured else {})
    assert found.left_out == 0
    for kind, count in (("device", measured), ("estimated", estimated)):
        if count:
            assert {point.latency_source for point in comparable_points(rows, kind).points} == {kind}


def test_figures_that_are_shown_under_several_names_have_one_voice() -> None:
    """The workspace and its commit repeat an experiment: three rows measured, and yet one point against two."""
    rows = [cloud(None, 320, 9.0, 0.5), cloud(None, 320, 9.0, 0.5, rev="main"), cloud("m", 320, 9.0, 0.5)]
    rows += [row("a", 192, 4.5, 0.4), row("b", 320, 6.8, 0.5)]
    found = comparable_points(rows)
    assert [point.name for point in found.points] == ["a", "b"]
    assert found.other_kinds == {"device": 3}


def test_without_any_figure_of_the_npu_the_host_counts() -> None:
    rows = [row("a", 192, None, 0.4), row("b", 320, None, 0.5)]
    assert {point.latency_source for point in comparable_points(rows).points} == {"cpu"}


def test_recommend_tells_of_runs_by_another_clock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ROWS, cloud("x590", 590, 21.0, 0.55), cloud("x320", 320, 11.0, 0.51)]
    monkeypatch.setattr(recommend, "read_experiments", lambda _: rows)
    recommend.run(recommend.argparse.Namespace(latency=None, above_miou=None, under_ms=None))
    told = capsys.readouterr().out
    assert "x590" not in told
    assert "2 more have only the latency `device`, which is not compared with this one: --latency device" in told
    recommend.run(recommend.argparse.Namespace(latency="device", above_miou=0.54, under_ms=None))
    told = capsys.readouterr().out
    assert "ms (device)" in told
    assert "fastest of mIoU 0.54 or more: x590 (res 590, 21.00 ms device, mIoU 0.550)" in told
    assert "more have only the latency `estimated`" in told


def test_without_metrics_the_remedy_is_named() -> None:
    with pytest.raises(ValueError, match="run `dvc repro`, or `dvc queue start`"):
        comparable_points([row("queued", 320, None, None)])
    with pytest.raises(ValueError, match="try another --latency"):
        comparable_points([row("a", 320, None, 0.5)], "estimated")


def test_the_table_fits_a_terminal_and_marks_the_front() -> None:
    points = comparable_points([*ROWS, row("a-name-that-is-longer-than-a-terminal-likes", 768, 20.0, 0.52)]).points
    lines = recommend.table(points)
    assert all(len(line) <= 80 for line in lines), max(map(len, lines))
    assert [line[0] for line in lines[1:]] == ["*", "*", " ", "*"]


def test_recommend_says_which_to_apply_and_how_sure_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recommend, "read_experiments", lambda _: ROWS)
    options = recommend.argparse.Namespace(latency=None, above_miou=0.47, under_ms=5.0)
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


def test_a_dry_run_shows_dvcs_own_commands() -> None:
    command = [sys.executable, "-m", "promptseg", "grid", "--dry-run", "--prefix", "try-", "res=192,256"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "dvc exp run --queue --name try-res192 -S res=192",
        "dvc exp run --queue --name try-res256 -S res=256",
    ]


BEFORE = State(
    "HEAD", {"res": 320, "gone": 1}, {"miou": 0.5, "miou_ci_low": 0.45, "miou_ci_high": 0.55, "spill_mb": 20.0}
)
AFTER = State(None, {"res": 256}, {"miou": 0.47, "miou_ci_low": 0.42, "miou_ci_high": 0.52, "spill_mb": 10.0, "new": 1})


def test_changes_are_named_in_order_and_judged_where_there_is_a_way() -> None:
    changes = changes_between(BEFORE, AFTER)
    assert [(each.name, each.before, each.after) for each in changes.params] == [("res", 320, 256), ("gone", 1, None)]
    assert {each.name: each.better for each in changes.metrics} == {
        "miou": False, "miou_ci_low": None, "miou_ci_high": None, "spill_mb": True, "new": None
    }  # fmt: skip
    assert changes.note == "The new mIoU lies within the earlier one's 95 % interval (0.450 to 0.550)."


def test_nothing_changes_between_equals() -> None:
    changes = changes_between(BEFORE, BEFORE)
    assert (changes.params, changes.metrics, changes.note) == ((), (), "")


def test_changes_go_into_the_page_once_and_escaped() -> None:
    page = f"<html>{CHANGES}</html>"
    hostile = State(None, {"res": "<script>"}, {})
    made = insert_changes(page, changes_between(BEFORE, hostile), "abc", "HEAD~1")
    assert "What changed since HEAD~1" in made
    assert "&lt;script&gt;" in made
    assert "<script>" not in made
    with pytest.raises(ValueError, match="run `dvc repro score`"):
        insert_changes("<html></html>", changes_between(BEFORE, AFTER), "abc", "HEAD")


@pytest.mark.slow
def test_the_projects_own_states_are_read_through_dvc() -> None:
    from promptseg.experiments.records import commit_of, read_state

    state = read_state(Path(ROOT), "HEAD")
    assert {"res", "hub.device"} <= set(state.params)
    assert {"miou", "latency_ms_estimated", "host.latency_ms_cpu"} <= set(state.metrics)
    assert len(commit_of(ROOT, "HEAD")) == 40
    with pytest.raises(ValueError, match="git knows no commit"):
        commit_of(ROOT, "no-such-branch")
    with pytest.raises(ValueError, match="DVC knows no metrics"):
        read_state(Path(ROOT), "no-such-branch")
