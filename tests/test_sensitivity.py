"""Which layers `mixed` keeps, without a compiler: measurements are made up, the choice is not."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest

from promptseg.__main__ import main
from promptseg.commands.sensitivity import Row, choose, layers_of, measure_alone, write_keep
from promptseg.export.quantize import Calibrated

NAMES = ("network.backbone.stages.0.blocks.1/Add_1", "network.decoder.layers.2.ffn/MatMul_3", "network.mask/Mul_4")
NODES = [onnx.helper.make_node("Add", ["a", "b"], ["c"], name) for name in NAMES]
FOREVER = float("inf")


class FakeBench:
    """Loses 0.1 of IoU for each layer in 8 bits but `mask`, which is better there; 16 bits cost `cost` ms a layer."""

    def __init__(self, ms: float, cost: float = 0.5) -> None:
        graph = onnx.helper.make_graph(NODES, "g", [], [])
        self.calibrated = Calibrated(onnx.helper.make_model(graph), ranges=None)  # type: ignore[arg-type]
        self.ms, self.cost = ms, cost
        self.pictures = ["a"]

    def measure(self, kind: str, name: str, bits: dict[str, Any]) -> Row:
        wide = [node for node, each in bits.items() if each == "16"]
        iou = 0.8 + sum(-0.01 if "mask" in node else 0.1 for node in wide)
        return Row(kind, name, (iou,), self.ms + self.cost * len(wide))


def rows() -> list[Row]:
    return [
        Row("layer", "backbone.stages.0", (0.95,), 3.0),
        Row("layer", "decoder.layers.2", (0.9,), 3.9),
        Row("layer", "mask", (0.99,), 3.99),
    ]


def chosen(ms: float, target: float, ends: float = FOREVER, cost: float = 0.5) -> list[str]:
    whole = [Row("whole", name, (1.0,), 4.0) for name in ("float", "16 bits")] + [Row("whole", "8 bits", (0.8,), ms)]
    return [row.name for row in choose(FakeBench(ms, cost), whole, rows(), target, ends)]  # type: ignore[arg-type]


def test_layers_that_lose_most_for_a_millisecond_come_first_and_stay_if_they_help() -> None:
    assert chosen(2.0, 0.99) == ["decoder.layers.2", "decoder.layers.2 backbone.stages.0"]


def test_a_layer_stays_in_8_bits_where_16_everywhere_gain_more_for_a_millisecond() -> None:
    assert chosen(2.0, 0.99, cost=0.9) == ["decoder.layers.2", "decoder.layers.2 backbone.stages.0"]
    assert chosen(2.0, 0.99, cost=1.1) == []


def test_a_gain_that_one_sample_alone_makes_is_taken_for_chance() -> None:
    class Lucky(FakeBench):
        gained = (0.3, 0.0, 0.0, 0.0)

        def measure(self, kind: str, name: str, bits: dict[str, Any]) -> Row:
            assert list(bits.values()).count("16") == 1
            return Row(kind, name, tuple(0.6 + gain for gain in self.gained), 2.5)

    bench, eight = Lucky(2.0), Row("whole", "8 bits", (0.6,) * 4, 2.0)
    bench.pictures = list("abcd")
    whole = [Row("whole", "float", (1.0,) * 4, 9.0), Row("whole", "16 bits", (0.61,) * 4, 9.0), eight]
    assert choose(bench, whole, rows()[:1], 0.99, FOREVER) == []  # type: ignore[arg-type]
    bench.gained = (0.1, 0.05, 0.1, 0.05)
    assert [row.name for row in choose(bench, whole, rows()[:1], 0.99, FOREVER)] == ["backbone.stages.0"]  # type: ignore[arg-type]


def test_the_choice_ends_where_it_is_good_enough_or_slower_than_float_or_the_time_is_over() -> None:
    assert chosen(2.0, 0.85) == ["decoder.layers.2"]
    assert chosen(3.9, 0.99) == []
    assert chosen(2.0, 0.99, ends=0) == []


def test_a_module_above_other_layers_stands_for_its_own_operations() -> None:
    above = onnx.helper.make_node("Clip", ["a"], ["c"], "network.decoder/Clip_5")
    assert list(layers_of([*NODES, above])) == ["backbone.stages.0", "decoder.layers.2", "mask", "decoder/"]


def test_layers_are_module_paths_cut_short() -> None:
    assert layers_of(NODES) == {"backbone.stages.0": "backbone", "decoder.layers.2": "decoder", "mask": "other"}


@pytest.mark.parametrize(("until", "layers"), [(FOREVER, ["decoder.layers.2", "backbone.stages.0", "mask"]), (0, [])])
def test_layers_of_the_part_that_loses_most_are_first_and_rows_are_in_the_graphs_order(until, layers) -> None:
    begun = []

    class Alone:
        calibrated = FakeBench(2.0).calibrated

        def measure(self, kind: str, name: str, alone: dict[str, Any], beside: dict[str, Any]) -> Row:
            begun.append(name)
            assert sorted(alone.values()) == ["8", "float", "float"]
            assert sorted(beside.values()) == ["16", "16", "8"]
            return Row(kind, name, (0.8 if name == "decoder" else 0.9,), None)

    wide, narrow = ({name: bits for name in NAMES} for bits in ("16", "8"))
    with ThreadPoolExecutor(1) as pool:
        rows = measure_alone(Alone(), wide, narrow, False, until, pool)  # type: ignore[arg-type]
    assert begun == ["backbone", "decoder", "mask", *layers]
    assert [row.name for row in rows] == ["backbone", "decoder", "mask", *([] if until == 0 else layers_of(NODES))]


def test_keep_is_written_and_nothing_else_of_params(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("export:\n  opset: 18  # a\n  keep: null           # of mixed\n", encoding="utf-8")
    write_keep(path, ["decoder", "Softmax"])
    assert (
        path.read_text(encoding="utf-8")
        == "export:\n  opset: 18  # a\n  keep: [decoder,Softmax]           # of mixed\n"
    )
    write_keep(path, ["output.slice(1, None)", "decoder/"])
    assert '  keep: ["output.slice(1, None)",decoder/] ' in path.read_text(encoding="utf-8")
    write_keep(path, [])
    assert "  keep: [] " in path.read_text(encoding="utf-8")
    path.write_text("export:\n  keep:                # of mixed\n", encoding="utf-8")
    write_keep(path, ["decoder"])
    assert path.read_text(encoding="utf-8") == "export:\n  keep: [decoder]               # of mixed\n"
    path.write_text("export: {}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="got 0 lines `keep:`"):
        write_keep(path, [])


@pytest.mark.parametrize("option", ["--samples", "--workers"])
def test_none_at_all_is_a_mistake(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["sensitivity", option, "0"]) == 1
    assert capsys.readouterr().out == ""
