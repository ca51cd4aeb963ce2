"""The training curve, written by DVCLive while the network trains, so that it can be watched: `dvc plots`, an editor.

In its folder DVCLive keeps a table for each figure, `plots/metrics/<name>.tsv`, with the columns step and <name>, and
the latest figures in metrics.json. The truth is the run's state: its curve, a row per step.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd

from promptseg.training.losses import LossTerms

Row = dict[str, float | None]
TERMS = tuple(field.name for field in fields(LossTerms))
FIGURES = ("loss", *TERMS, "val_miou", "train_miou")
DIGITS = 5


class LiveCurve:
    """Writes a curve's rows as they come, to a folder of tables, `plots/metrics` in DVCLive's own folder.

    With None for a folder, as in all processes but one, it writes nothing.
    It begins with the rows that there are: of a run that is resumed, those up to its snapshot, so that what a killed
    process wrote after that is not there twice. Raises OSError on a full disk, and in a git repository without commits.
    """

    def __init__(self, tables: Path | None, rows: Sequence[Row]) -> None:
        self._live = None
        self._written = 0
        if tables is None:
            return
        from dvclive import Live  # half a second, and DVC with it: only where a curve is written
        from scmrepo.exceptions import SCMError

        assert tables.parts[-2:] == ("plots", "metrics"), tables  # DVCLive's layout, which dvc.yaml names
        try:
            self._live = Live(str(tables.parents[1]), dvcyaml=None, save_dvc_exp=False)  # which empties the folder
        except (sqlite3.Error, SCMError) as error:  # it opens DVC's records, though nothing here goes there
            raise OSError(
                f"{tables}: DVCLive got {error} from DVC's records, wanted room on the disk below .dvc and, in a git "
                "repository, a first commit"
            ) from error
        tables.mkdir(parents=True, exist_ok=True)
        past = pd.DataFrame([_rounded(row) for row in rows], columns=["step", *FIGURES])
        for name in FIGURES:  # all of them, so that DVC finds every table that dvc.yaml names
            past[["step", name]].dropna().to_csv(tables / f"{name}.tsv", sep="\t", index=False)
        self._written = len(rows)

    def update(self, rows: Sequence[Row]) -> None:
        """Write those of a curve's rows that are new since the last call."""
        new = [_rounded(row) for row in rows[self._written :]]
        self._written = len(rows)
        if self._live is None or not new:
            return
        for row in new:
            self._live.step = int(row.pop("step"))
            for name, value in row.items():
                self._live.log_metric(name, value)
        self._live.next_step()  # tells editors that there is something new

    def close(self) -> None:
        """Tell editors that nothing more comes."""
        if self._live is not None:
            self._live.end()


def _rounded(row: Row) -> dict[str, float]:
    return {key: round(value, DIGITS) for key, value in row.items() if value is not None}
