"""The word in which every domain tells its figures to whoever watches over the deployment.

What belongs here: `Measure`. What does not: how figures are found, which the domains know, or served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection


@dataclass(frozen=True)
class Measure:
    """One figure, or one per combination of a few labels.

    Attributes:
        name: as Prometheus wants it: `ops_pipeline_…`, with its base unit at the end; counters without `_total`.
        help: what it says, in one sentence.
        labels: names of labels; only such whose values are few and known, never ids of users, calls or tasks.
        values: the figure by the values of the labels, in their order.
        kind: `gauge`, or `counter` for what only grows.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]
    kind: Literal["gauge", "counter"] = "gauge"


Measurer = Callable[[Connection, datetime], Sequence[Measure]]
"""What a domain offers: its figures from one snapshot, at the database's time."""


def single(name: str, help_: str, value: float | None) -> Measure:
    """A figure without labels; None leaves it out, as nothing is known."""
    return Measure(name, help_, (), {} if value is None else {(): value})


def age_seconds(instant: datetime | None, now: datetime) -> float:
    """How long ago something was, in seconds; 0 when there is nothing."""
    return max(0.0, (now - instant).total_seconds()) if instant else 0.0
