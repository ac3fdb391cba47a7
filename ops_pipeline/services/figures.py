"""The table of services and the picture of their last day.

What belongs here: reading for people. matplotlib is imported only when the picture is made.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from sqlalchemy import Engine

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.services.registry import Registry, Service
from ops_pipeline.services.states import (
    DEGRADED,
    DOWN,
    GIVEN_UP,
    MAINTENANCE,
    RECOVERING,
    STOPPED,
    UNKNOWN,
    UP,
    State,
    uptime,
)
from ops_pipeline.services.store import last_actions, read_states, read_transitions

DAY, WEEK, MONTH = timedelta(days=1), timedelta(days=7), timedelta(days=30)
COLORS = {
    UP: "#27ae60",
    DEGRADED: "#f1c40f",
    DOWN: "#c0392b",
    GIVEN_UP: "#7b241c",
    RECOVERING: "#e67e22",
    MAINTENANCE: "#5dade2",
    STOPPED: "#aab7b8",
    UNKNOWN: "#d7dbdd",
}
Transitions = Mapping[str, Sequence[tuple[datetime, str]]]


@dataclass(frozen=True)
class ServiceRow:
    """One service: its state, uptime (0 to 1) over a day, a week and 30 days, and the last that was done to it."""

    service: Service
    state: State
    uptimes: tuple[float | None, float | None, float | None]
    last_action: str


def service_rows(engine: Engine, registry: Registry) -> tuple[list[ServiceRow], Transitions, datetime]:
    """The rows of all services, those first that are not up; transitions of 30 days; and the database's time."""
    with reading(engine) as connection:
        now, states = database_now(connection), read_states(connection)
    transitions, actions = read_transitions(engine, now - MONTH), last_actions(engine)
    rows = []
    for service in registry.services:
        changes = transitions.get(service.name, [])
        day, week, month = (uptime(changes, now - span, now) for span in (DAY, WEEK, MONTH))
        acted = actions.get(service.name)
        last = f"{acted[0]:%d %b %H:%M} {acted[1]}" if acted else ""
        rows.append(ServiceRow(service, states.get(service.name, State()), (day, week, month), last))
    rows.sort(key=lambda row: (row.state.state == UP, not row.service.critical, row.service.name))
    return rows, transitions, now


def timeline(registry: Registry, transitions: Transitions, now: datetime) -> bytes:
    """A PNG: the states of each service over the last 24 hours."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second, which only a picture has to pay

    names = [service.name for service in registry.services][:40]
    figure = Figure(figsize=(11, 1.2 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots()
    for position, name in enumerate(names):
        for state, begin, hours in spans(transitions.get(name, []), now - DAY, now):
            axes.broken_barh([(begin, hours)], (position - 0.4, 0.8), color=COLORS[state])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(-24, 0)
    axes.set_xlabel(f"hours before {now:%Y-%m-%d %H:%M} UTC")
    handles = [figure.axes[0].barh(0, 0, color=color, label=state) for state, color in COLORS.items()]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1.0), ncols=len(COLORS), fontsize=7)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=80)
    return content.getvalue()


def spans(changes: Sequence[tuple[datetime, str]], start: datetime, end: datetime) -> list[tuple[str, float, float]]:
    """States within a window: each with its begin in hours before `end` (negative) and its length in hours."""
    found = []
    for (at, state), (until, _) in pairwise([*changes, (end, "")]):
        begin, stop = max(at, start), min(until, end)
        if stop > begin:
            found.append((state, (begin - end) / timedelta(hours=1), (stop - begin) / timedelta(hours=1)))
    return found
