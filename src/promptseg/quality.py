"""How good answers about photographs are: masks of names and of single objects, and telling what is not there."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from promptseg.datasets.archives import PictureArchives
from promptseg.datasets.preprocess import CANVAS, mask_from_canvas, picture_to_canvas, read_picture
from promptseg.datasets.records import Picture, Sample, Split
from promptseg.metrics import baseline_ious, overlap, size_class
from promptseg.networks.network import Network
from promptseg.networks.xdecoder.model import resize_canvas

SEEN_OFTEN = 30  # pictures of train
BINS = 10  # of the calibration
DIGITS = 4


def answers(
    network: Network,
    images: Path,
    samples: Sequence[Sample],
    pictures: Sequence[Picture],
    token_ids: NDArray[np.int32],
    split: Split,
    res: int,
    limit: int | None,
) -> pd.DataFrame:
    """Ask every phrase of the first `limit` pictures of a split -> a row a phrase.

    Columns: image, phrase, phrase_kind, present, presence (None where the network cannot say), and of what is present
    size, iou and the IoU of the baselines, all at the picture's own size.
    """
    of_picture: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        if sample.split == split:
            of_picture[sample.image].append(index)
    objects_of = {picture.image: picture.objects for picture in pictures}
    archives = PictureArchives(images)
    rows = []
    for image in tqdm(list(of_picture)[:limit], "asking", unit="picture"):
        canvas = picture_to_canvas(read_picture(archives.read(image), image))[None]
        picture = resize_canvas(torch.from_numpy(canvas).float(), res)
        objects = [each.to_mask() for each in objects_of[image]]
        asked = sorted(of_picture[image], key=lambda index: not samples[index].means_something)  # what is present first
        shown = sum(samples[index].means_something for index in asked)
        ids = torch.from_numpy(token_ids[asked, 0])
        masks = list(network.predict(picture, ids[:shown], CANVAS).mask_logits > 0) if shown else []
        presence = network.predict(picture, ids, res).presence
        for place, index in enumerate(asked):
            sample = samples[index]
            row = {"image": image, "phrase": sample.phrase, "phrase_kind": sample.phrase_kind}
            row |= {"present": place < shown, "presence": None if presence is None else float(presence[place])}
            if place < shown:
                truth = np.ascontiguousarray(sample.mask.to_mask())
                got = mask_from_canvas(masks[place].numpy(), sample.height, sample.width)
                row |= {"size": size_class(sample.mask.area), "iou": overlap(got, truth).iou}
                row |= asdict(baseline_ious(truth, objects))
            rows.append(row)
    return pd.DataFrame(rows)


def read_scored(path: Path, samples: Sequence[Sample], split: Split) -> pd.DataFrame:
    """Read what the pipeline scored of a split, data/scores.csv, as rows of `answers`; nothing is said of presence.

    Raises ValueError for no such file, or rows of other samples than those of the split that mean something.
    """
    if not path.is_file():
        raise ValueError(f"--rows: got {path}, no such file; `dvc repro` writes data/scores.csv")
    rows = pd.read_csv(path, keep_default_na=False)
    wanted = {sample.sample_id for sample in samples if sample.split == split and sample.means_something}
    got = set(rows["sample_id"])
    if got != wanted:
        raise ValueError(
            f"--rows: got {len(got - wanted)} rows of no phrase of {split} and {len(wanted - got)} of its phrases "
            f"without a row, wanted one for each; set hub.split to {split} and hub.samples to null, and run `dvc repro`"
        )
    return rows.assign(present=True, presence=None)


def pictures_with(samples: Sequence[Sample]) -> Counter[str]:
    """Count the pictures of train, composites left out, that each name is in."""
    return Counter(
        sample.phrase
        for sample in samples
        if sample.split == "train" and sample.phrase_kind == "keyword" and sample.means_something
        and sample.sample_id.endswith("-0") and "composite" not in sample.image
    )  # fmt: skip


def summary(rows: pd.DataFrame, seen: Mapping[str, int]) -> dict[str, Any]:
    """Figures of `answers`' rows; `seen` says how many pictures of train show a name."""
    present = rows[rows["present"]]
    often = present["phrase"].map(lambda phrase: seen.get(phrase, 0)) >= SEEN_OFTEN
    is_name = present["phrase_kind"] == "keyword"
    groups = {
        "names": is_name,
        f"names_seen_{SEEN_OFTEN}_times": is_name & often,
        "names_seen_less": is_name & ~often,
        "person": is_name & (present["phrase"] == "person"),
        "objects": ~is_name,
        **{f"names_{size}": is_name & (present["size"] == size) for size in ("small", "medium", "large")},
        **{f"objects_{size}": ~is_name & (present["size"] == size) for size in ("small", "medium", "large")},
    }
    figures: dict[str, Any] = {}
    for name, chosen in groups.items():
        group = present[chosen]
        means = {key: _rounded(group[key].mean()) for key in ("iou", "largest_object", "everything")}
        figures[name] = {"phrases": len(group), "miou": means.pop("iou"), **means}
    asked = rows[(rows["phrase_kind"] == "keyword") & rows["image"].isin(rows[~rows["present"]]["image"])]
    if asked["presence"].notna().all() and asked["present"].nunique() == 2:
        figures["saying_no"] = {
            "present": int(asked["present"].sum()),
            "absent": int((~asked["present"]).sum()),
            "auroc": _rounded(auroc(asked["presence"].to_numpy(float), asked["present"].to_numpy(bool))),
            "calibration_error": _rounded(
                calibration_error(asked["presence"].to_numpy(float), asked["present"].to_numpy(bool))
            ),
        }
    return figures


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Share of the pairs of a positive and a negative in which the positive scores higher; equal ones count half."""
    ranks = pd.Series(scores).rank().to_numpy()
    count = int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def calibration_error(probabilities: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Expected calibration error over BINS even bins (Guo et al., 2017), both classes weighing the same, 0..1.

    Names that are absent outnumber those present by as many as one cares to ask: the classes are weighed alike.
    """
    weights = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    error = 0.0
    for each in Counter(bins.tolist()):
        inside = bins == each
        gap = (weights * probabilities)[inside].sum() - (weights * positive)[inside].sum()
        error += abs(float(gap))
    return error


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DIGITS)
