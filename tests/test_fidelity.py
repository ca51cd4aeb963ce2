"""Masks as predictions, and the compiled graph's masks beside ONNX Runtime's."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptseg.datasets.records import read_predictions, write_predictions
from promptseg.hubs.base import HubInput, HubOutput
from promptseg.hubs.fidelity import compare_masks, infer
from tests.graphs import split_picture, write_bright_graph

SAMPLES = [split_picture(name, 30, 120, first_id=5) for name in ("b", "a", "c")]


class Device:
    """A hub whose device decides that everything is inside; it runs all samples, or is an emulator."""

    runner = "a device"

    def __init__(self, emulates: bool) -> None:
        self.emulates = emulates
        self.made: list[str] = []

    def run(self, _graph: Path, _compiled: Path, inputs: Iterable[HubInput]) -> Iterator[HubOutput]:
        for sample in inputs:
            self.made.append(sample.sample_id)
            yield HubOutput(sample.sample_id, np.ones((1024, 1024), bool))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bright_graph(tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.mark.parametrize(("emulates", "inside"), [(False, 1.0), (True, 0.5)])
def test_a_device_makes_all_masks_and_beside_an_emulator_the_host_does(
    graph: Path, tmp_path: Path, emulates: bool, inside: float
) -> None:
    device: Any = Device(emulates)
    assert write_predictions(tmp_path / "predictions.jsonl", infer(device, graph, tmp_path, SAMPLES)) == 3  # type: ignore[arg-type]
    read = read_predictions(tmp_path / "predictions.jsonl")
    assert [(name, float(mask.to_mask().mean())) for name, mask in read.items()] == [
        ("b", inside), ("a", inside), ("c", inside)
    ]  # fmt: skip


def test_one_mask_is_held_at_a_time(graph: Path, tmp_path: Path) -> None:
    device: Any = Device(emulates=False)
    for index, prediction in enumerate(infer(device, graph, tmp_path, SAMPLES)):  # type: ignore[arg-type]
        assert prediction.sample_id == SAMPLES[index].sample_id
        assert len(device.made) == index + 1


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        compare_masks("a device", [])
