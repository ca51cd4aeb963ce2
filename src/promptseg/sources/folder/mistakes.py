"""Mistakes in a data set of one's own, all of them, each with the line that it is on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

SHOWN = 5  # in an error; `check-data` lists them all


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong: `where` is "file:line" or "file, annotation 7", `what` says got, wanted and remedy."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class Mistakes:
    """A list that readers add to while they go on reading: a person mends ten mistakes at once, not one a run."""

    found: list[Mistake] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        """Note one."""
        self.found.append(Mistake(where, what))


def refusal(name: str, found: Sequence[Mistake]) -> str:
    """Return an error's text: the first few mistakes, and how many more there are."""
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    first = "; ".join(map(str, found[:SHOWN]))
    return f"{name}: got {len(found)} mistakes, wanted none: {first}{more}; `python -m promptseg check-data` lists all"
