from pathlib import Path

import pytest

from promptseg.hubs.local.profile import read_simulated_cost

DATA = Path(__file__).parent / "data"
WHOLE = DATA / "qnn_profile_whole.csv"  # written by onnxruntime-qnn 2.7.0 for a small graph, placed whole
SPLIT = DATA / "qnn_profile_split.csv"  # the same with one node refused: two graphs, the first written twice


def test_figures_of_a_whole_graph():
    cost = read_simulated_cost(WHOLE)
    assert cost.cycles == 10203165
    assert (cost.time_us_low, cost.time_us, cost.time_us_high) == (5200, 6813, 9507)
    assert (cost.input_fill_bytes, cost.fill_bytes) == (19208192, 18874368)
    assert (cost.spill_bytes, cost.output_bytes) == (18874368, 4194304)
    assert cost.ops_without_cost == 16
    assert cost.costless_ops == ("node_gt",)


def test_a_repeated_graph_counts_once(tmp_path):
    head, *rows = WHOLE.read_text().splitlines()
    twice = tmp_path / "twice.csv"
    twice.write_text("\n".join([head, *rows, *rows]))
    assert read_simulated_cost(twice) == read_simulated_cost(WHOLE)


def test_bytes_beyond_two_gib_are_read_as_what_they_were(tmp_path):
    wrapped = tmp_path / "wrapped.csv"
    true = 2_294_000_000
    wrapped.write_text(WHOLE.read_text().replace("19208192,BYTES", f"{2**64 + true - 2**32},BYTES"))
    assert read_simulated_cost(wrapped).input_fill_bytes == true


def test_two_graphs_are_refused():
    with pytest.raises(ValueError, match="figures of 2 graphs"):
        read_simulated_cost(SPLIT)


def test_a_file_without_figures_is_refused(tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text(WHOLE.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="figures of 0 graphs"):
        read_simulated_cost(empty)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("Input Fill", "Input Filling", "no figure named 'Input Fill'"),
        ("19208192,BYTES", "19208192,KB", "'Input Fill' in KB, wanted BYTES"),
    ],
)
def test_another_versions_file_is_refused(tmp_path, old, new, complaint):
    other = tmp_path / "other.csv"
    other.write_text(WHOLE.read_text().replace(old, new))
    with pytest.raises(ValueError, match=complaint):
        read_simulated_cost(other)
