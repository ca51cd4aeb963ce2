"""Fit the lines from simulated to published milliseconds, for each device and precision.

    python -m benchmarks.calibrate          # src/promptseg/hubs/devices/calibration.csv and docs/devices*.svg
    python -m benchmarks.calibrate --check  # fits, prints the table with what was tried, and writes nothing

Reads docs/data: published_latencies.csv (what Qualcomm publishes, its models package 0.65.0, runtime QNN_DLC), and what
the performance simulator says of the same architectures with drawn weights: xelite_published_vs_simulated.csv for the
chip 52 (v73) in fp16; simulated_72.csv (by benchmarks.zoo) for the chip 72 (v81), and both chips' tables for integers.

A line minimises the mean of |estimate - published| / published. It is found exactly: the best one passes through two of
the models. It is judged by leaving each model out of its own fit.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from promptseg.hubs.devices import TABLES

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "data"
COVERAGE = 0.8  # share of held-out models that an estimate's bounds shall contain
MOST_WITHOUT_COST = 20  # pieces of work that a figure may leave out; of Swin 80 have no cost, and it comes out 18 times
SAME_EXPORT = 0.11  # how far a rebuilt network's figure for chip 52 may lie from the first one's
V73, V81 = 52, 72
PRECISIONS = ("fp16", "w8a8", "w8a16")
FEWEST = 8  # models that a line needs
MOST_OFF = 0.4  # error of the third quartile of held-out models with which a line is one
V73_ARCH = 73
TRANSFORMERS = (
    *("vit", "beit", "openai_clip", "trocr_enc", "depth_anything", "segformer_base", "levit", "mobile_vit"),
    *("detr_resnet50", "bert_base_uncased_hf", "distil_bert_base_uncased_hf"),
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A line and how it did on models that it was not fitted to.

    ratios: estimate / published of each held-out model; covered: the share of held-out models within bounds that were
    widened by a factor found without them.
    """

    intercept_ms: float
    slope: float
    spread: float
    ratios: Floats
    covered: float

    @property
    def median_error(self) -> float:
        """Median of |estimate - published| / published over held-out models."""
        return float(np.median(np.abs(self.ratios - 1)))


def read_simulated(soc_model: int, precision: str = "fp16") -> pd.DataFrame:
    """Return simulated_ms, simulated_lo_ms, simulated_hi_ms by model, without those whose costs are missing.

    Of the chip 72, and of integers, only networks that came out alike in fp16 on the chip 52 in both tables: the same
    export.
    """
    first = pd.read_csv(DATA / "xelite_published_vs_simulated.csv", index_col="model")
    first = first[first["ops_without_cost"] <= MOST_WITHOUT_COST]
    if (soc_model, precision) == (V73, "fp16"):
        return first
    rebuilt, table = _read_zoo(V73, "fp16"), _read_zoo(soc_model, precision)
    common = first.index.intersection(rebuilt.index)
    ratio = rebuilt.loc[common, "simulated_ms"] / first.loc[common, "simulated_ms"]
    same = common[(ratio - 1).abs() <= SAME_EXPORT]
    table = table.loc[table.index.intersection(same)]
    return table[table["ops_without_cost"] <= MOST_WITHOUT_COST]


def _read_zoo(soc_model: int, precision: str) -> pd.DataFrame:
    table = pd.read_csv(DATA / f"simulated_{soc_model}.csv", index_col="model")
    return table[table["precision"] == precision]


def pairs(device: str, precision: str, simulated: pd.DataFrame) -> pd.DataFrame:
    """Return `simulated` with a column published_ms, of the models that are published for the device."""
    published = pd.read_csv(DATA / "published_latencies.csv")
    chosen = published[(published["device"] == device) & (published["runtime"] == "qnn_dlc")]
    chosen = chosen[chosen["precision"] == {"fp16": "float"}.get(precision, precision)].set_index("model")
    return simulated.join(chosen["published_ms"], how="inner").sort_index()


def best_line(simulated_ms: Floats, published_ms: Floats) -> tuple[float, float]:
    """Return intercept and slope with the least mean relative error; needs two models that differ."""
    best = (np.inf, 0.0, 0.0)
    for i, j in combinations(range(len(simulated_ms)), 2):
        if simulated_ms[i] == simulated_ms[j]:
            continue
        slope = (published_ms[i] - published_ms[j]) / (simulated_ms[i] - simulated_ms[j])
        intercept = published_ms[i] - slope * simulated_ms[i]
        error = float(np.mean(np.abs(intercept + slope * simulated_ms - published_ms) / published_ms))
        if error < best[0] - 1e-12:
            best = (error, float(intercept), float(slope))
    assert best[0] < np.inf, "two models with different simulated latencies"
    return best[1], best[2]


def fit(table: pd.DataFrame) -> Fit:
    """Fit a line to `pairs` and judge it, leaving each model out in turn."""
    columns = ("simulated_ms", "simulated_lo_ms", "simulated_hi_ms", "published_ms")
    simulated, low, high, published = (table[name].to_numpy(float) for name in columns)
    count = len(published)
    ratios, needed = np.zeros(count), np.zeros(count)
    for out in range(count):
        kept = np.arange(count) != out
        intercept, slope = best_line(simulated[kept], published[kept])
        ratios[out] = (intercept + slope * simulated[out]) / published[out]
        below, above = intercept + slope * low[out], intercept + slope * high[out]
        needed[out] = max(below / published[out], published[out] / above, 1.0)
    covered = [needed[out] <= _spread(np.delete(needed, out)) for out in range(count)]
    return Fit(*best_line(simulated, published), _spread(needed), ratios, float(np.mean(covered)))


def _spread(needed: Floats) -> float:
    """Return the factor that COVERAGE of further models will need at most, counting the one that was not seen."""
    rank = min(ceil(COVERAGE * (len(needed) + 1)), len(needed))
    return float(np.sort(needed)[rank - 1])


def rows() -> Iterator[dict[str, str | int | float]]:
    """Yield the rows of calibration.csv: lines that are of use, by their errors on models that they had not seen."""
    yield from (row for row in fitted() if float(row["third_quartile_error"]) <= MOST_OFF)


def fitted() -> Iterator[dict[str, str | int | float]]:
    """Yield a row for each precision and device, of use or not; none where fewer than FEWEST models are known."""
    with (TABLES / "devices.csv").open(encoding="utf-8", newline="") as stream:
        devices = list(csv.DictReader(stream))
    for precision, device in product(PRECISIONS, devices):
        chip = int(device["simulated_by"])
        table = pairs(device["device"], precision, read_simulated(chip, precision))
        if len(table) < FEWEST:
            continue
        line = fit(table)
        ranks = table[["simulated_ms", "published_ms"]].rank().to_numpy()
        yield {
            "device": device["device"],
            "precision": precision,
            "simulated_by": chip,
            "intercept_ms": round(line.intercept_ms, 3),
            "slope": round(line.slope, 4),
            "models": len(table),
            "median_error": round(line.median_error, 3),
            "third_quartile_error": round(float(np.quantile(np.abs(line.ratios - 1), 0.75)), 3),
            "rank_correlation": round(float(np.corrcoef(ranks.T)[0, 1]), 3),
            "spread": round(line.spread, 3),
            "covered": round(line.covered, 3),
        }


def compare_twins(precision: str = "fp16") -> pd.DataFrame:
    """Return the held-out error of lines from the v73 chip and from the v81 chip, on the same models, by device."""
    simulated = {chip: read_simulated(chip, precision) for chip in (V73, V81)}
    both = simulated[V81].index.intersection(simulated[V73].index)
    found = []
    for device in pd.read_csv(TABLES / "devices.csv")["device"]:
        found += [
            {
                "device": device,
                "simulated_by": chip,
                "models": len(table),
                "median_error": round(fit(table).median_error, 3),
            }
            for chip in (V73, V81)
            for table in [pairs(device, precision, simulated[chip].loc[both])]
        ]
    return pd.DataFrame(found).pivot(index="device", columns="simulated_by", values=["median_error", "models"])


def try_second_variables() -> pd.DataFrame:
    """Return the held-out median error of lines with a second variable beside the simulated milliseconds, by device."""
    simulated = read_simulated(V73)
    found = {
        name or "none": {
            device: _held_out_error(pairs(device, "fp16", simulated), columns) for device in _v73_devices()
        }
        for name in ("", "gflop", "ddr_mb", "spill_mb", "simulated_hi_ms")
        for columns in [[name] if name else []]
    }
    return pd.DataFrame(found).round(3)


def residuals_by_kind() -> pd.DataFrame:
    """Return estimate / published of held-out models on all v73 devices: median and quartiles by kind and by size."""
    ratios = []
    for device in _v73_devices():
        table = pairs(device, "fp16", read_simulated(V73))
        kind = np.where(table.index.isin(TRANSFORMERS), "with attention", "convolutions only")
        size = pd.cut(table["published_ms"], [0, 2, 8, np.inf], labels=["below 2 ms", "2 to 8 ms", "above 8 ms"])
        ratios.append(pd.DataFrame({"kind": kind, "size": size.astype(str), "ratio": fit(table).ratios}))
    table = pd.concat(ratios)
    both = pd.concat([table.groupby(name)["ratio"].describe()[["25%", "50%", "75%"]] for name in ("kind", "size")])
    return both.round(2)


def _v73_devices() -> list[str]:
    table = pd.read_csv(TABLES / "devices.csv")
    return list(table["device"][table["htp_arch"] >= V73_ARCH])


def _held_out_error(table: pd.DataFrame, columns: list[str]) -> float:
    variables = table[["simulated_ms", *columns]].to_numpy(float)
    published = table["published_ms"].to_numpy(float)
    errors = []
    for out in range(len(table)):
        kept = np.arange(len(table)) != out
        coefficients = _least_relative_error(variables[kept], published[kept])
        estimate = coefficients[0] + variables[out] @ coefficients[1:]
        errors.append(abs(estimate - published[out]) / published[out])
    return float(np.median(errors))


def _least_relative_error(variables: Floats, published: Floats) -> Floats:
    """Fit published = c0 + variables @ c for the least mean relative error, by reweighted least squares."""
    design = np.column_stack([np.ones(len(published)), variables]) / published[:, None]
    weights = np.ones(len(published))
    for _ in range(100):
        root = np.sqrt(weights)
        coefficients: Floats = np.linalg.lstsq(design * root[:, None], root, rcond=None)[0].astype(np.float64)
        weights = 1 / np.maximum(np.abs(design @ coefficients - 1), 1e-4)
    return coefficients


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw each device's models, published against simulated, with its line and bounds; a colour for each precision."""
    columns = 4
    devices, precisions = list(table["device"].unique()), list(table["precision"].unique())
    figure, axes = plt.subplots(ceil(len(devices) / columns), columns, figsize=(14, 10), layout="constrained")
    for axis, device in zip(axes.flat, devices, strict=False):
        lines = table[table["device"] == device]
        for _, row in lines.iterrows():
            _draw_line(axis, row, f"C{precisions.index(row['precision'])}")
        chip = lines["simulated_by"].iloc[0]
        axis.set(xscale="log", yscale="log", xlabel=f"simulated (chip {chip}), ms", ylabel="published, ms")
        said = [f"{row['models']} models, median error {row['median_error']:.0%}" for _, row in lines.iterrows()]
        if len(precisions) > 1:
            said = [f"{name}: {each}" for name, each in zip(lines["precision"], said, strict=True)]
            axis.legend(loc="upper left", fontsize=8)
        axis.set_title("\n".join([device, *said]), fontsize=9)
    for axis in axes.flat[len(devices) :]:
        axis.set_axis_off()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_line(axis: Axes, row: pd.Series, colour: str) -> None:
    models = pairs(row["device"], row["precision"], read_simulated(row["simulated_by"], row["precision"]))
    axis.scatter(models["simulated_ms"], models["published_ms"], s=12, color=colour, label=row["precision"])
    ends = np.geomspace(models["simulated_ms"].min(), models["simulated_ms"].max(), 50)
    estimated = row["intercept_ms"] + row["slope"] * ends
    axis.plot(ends, estimated, color="black" if colour == "C0" else colour, linewidth=1)
    axis.fill_between(ends, estimated / row["spread"], estimated * row["spread"], color=colour, alpha=0.15, linewidth=0)


def main() -> int:
    """Write the lines and their picture; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="print the lines, and write nothing")
    options = parser.parse_args()
    every = pd.DataFrame(fitted())
    of_use = every["third_quartile_error"] <= MOST_OFF
    table = every[of_use]
    print(table.to_string(index=False))
    print(f"\nno lines, with an error of the third quartile beyond {MOST_OFF:g}:")
    print(every[~of_use].to_string(index=False))
    for precision in every["precision"].unique():
        print(f"\n{precision}: held-out error from each simulated chip, on the models that both have:")
        print(compare_twins(precision).to_string())
    print("\nheld-out error with a second variable, from the v73 chip:")
    print(try_second_variables().to_string())
    print("\nestimate / published of held-out models:")
    print(residuals_by_kind().to_string())
    if not options.check:
        table.to_csv(TABLES / "calibration.csv", index=False, lineterminator="\n")
        plt.rcParams["svg.hashsalt"] = "promptseg"
        floats = table["precision"] == "fp16"
        draw(table[floats], ROOT / "docs" / "devices.svg")
        draw(table[~floats], ROOT / "docs" / "devices_integers.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
