"""What stands behind a report's figures."""

import pytest

from promptseg.report.details import TOOLS, group_bars, layer_bars, operation_bars, part_bars, provenance
from promptseg.scoring import GroupScore, SampleScore, Scores


def row(number: int, iou: float, kind: str, size: str) -> SampleScore:
    return SampleScore(str(number), f"a/{number}", "a cup", kind, size, 1, 2, iou, iou, 0.1, 0.3, 0.2)  # type: ignore[arg-type]


def test_a_groups_interval_is_that_of_its_own_rows() -> None:
    rows = tuple(row(n, 0.9, "keyword", "small") for n in range(9)) + tuple(
        row(n, 0.1 * (n % 3), "short", "large") for n in range(10, 19)
    )
    groups = (
        GroupScore("all", 18, 0.5, 0.1, 0.3, 0.2),
        GroupScore("small", 9, 0.9, 0.1, 0.3, 0.2),
        GroupScore("medium", 0, None, None, None, None),
        GroupScore("short", 9, 0.1, 0.1, 0.3, 0.2),
    )
    bars = {bar.label: bar for bar in group_bars(Scores({}, groups, rows), seed=0)}
    assert list(bars) == ["all (18)", "small (9)", "short (9)"]
    assert bars["small (9)"].low == pytest.approx(0.9)
    assert bars["small (9)"].high == pytest.approx(0.9)
    assert bars["short (9)"].high is not None
    assert 0 <= (bars["short (9)"].low or 0) < bars["short (9)"].high <= 0.2
    assert bars["all (18)"].mark == 0.3


@pytest.mark.parametrize(
    ("text", "unit", "values"),
    [
        ("conv_1 (NPU) 1.25 ms; resize; up (NPU) 0.5 ms", "ms", {"conv_1 (NPU)": 1.25, "up (NPU)": 0.5}),
        ("softmax (CPU) 12,345 cycles", "cycles", {"softmax (CPU)": 12345}),
        ("", "", {}),
        (None, "", {}),
    ],
)
def test_layers_are_read_from_a_devices_profile(text: str | None, unit: str, values: dict[str, float]) -> None:
    bars, got = layer_bars({"slowest_layers": text})
    assert ({bar.label: bar.value for bar in bars}, got) == (values, unit)


def test_parts_of_the_network_come_with_the_slowest_first() -> None:
    bars = part_bars({"simulated_parts_ms": {"picture": 0.5, "backbone": 2.0, "mask": 1.0}})
    assert [(bar.label, bar.value) for bar in bars] == [("backbone", 2.0), ("mask", 1.0), ("picture", 0.5)]
    assert part_bars({"simulated_parts_ms": None}) == []


def test_without_a_device_there_are_no_layers() -> None:
    assert layer_bars({}) == ([], "")


def test_rare_operations_are_added_up() -> None:
    ops = ", ".join(f"Op{number} {100 - number}" for number in range(17))
    bars = operation_bars({"ops": ops})
    assert (bars[0].label, bars[0].value) == ("Op0", 100)
    assert (bars[-1].label, bars[-1].value) == ("3 other kinds", 86 + 85 + 84)
    assert operation_bars({}) == []


def test_provenance_names_tools_and_leaves_out_what_is_not_known() -> None:
    told = provenance({"res": 320}, {"device": "a", "job_id": None, "note": ""}, {"samples": "0" * 64})
    assert set(told["tools"]) == set(TOOLS)
    assert told["compiled"] == {"device": "a"}
    assert (told["res"], told["sha256"]) == (320, {"samples": "0" * 64})
