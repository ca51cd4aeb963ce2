"""Faults on demand: which step of the protocol, what goes wrong, and how often."""

from dataclasses import dataclass

FOR_EVER = 10**9
# Answered instead of doing what was asked.
STATUSES = {"400": 400, "401": 401, "403": 403, "404": 404, "413": 413, "426": 426, "429": 429, "500": 500, "503": 503}
# What was asked is done, and the answer does not arrive: a cut connection, a 502 of a gateway, or too late.
LOST = ("lost", "lost behind 502", "late")
# The answer is cut short: with a length that tells, or without one.
TRUNCATED = ("truncated", "truncated without a length")
OTHER = ("cut", "garbage", "another type")
KINDS = (*STATUSES, *LOST, *TRUNCATED, *OTHER)


@dataclass
class Fault:
    """`kind` happens to the next `times` requests of `step`, a name of `routes.ROUTES`, after `skip` good ones."""

    step: str
    kind: str
    times: int = FOR_EVER
    skip: int = 0
    late_s: float = 0.0  # how long an answer of kind "late" takes

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    def happens(self) -> bool:
        """Whether it happens to the request at hand; counts."""
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return self.times >= 0
