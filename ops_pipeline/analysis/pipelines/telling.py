"""What Dagster has yet to be told about pipelines.

Whoever advances a pipeline writes an event in the same transaction, a worker as well as a command. Runs and the sensor
tell them: each transition by itself, the advances of a pipeline between two looks together.

What belongs here: reading events that were not told, and forgetting or keeping them once they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, delete, false, select, update

from ops_pipeline.analysis.pipelines.advance import ADVANCED
from ops_pipeline.analysis.pipelines.tables import pipeline_events, pipelines
from ops_pipeline.database.engine import writing
from ops_pipeline.database.retry import despite_conflicts

MOST_TOLD = 1_000
"""Events per look; the rest waits for the next one."""


@dataclass(frozen=True)
class Told:
    """Something to tell: one transition, or the advances of one pipeline.

    Attributes:
        pipeline_id: of the pipeline.
        name: of the pipeline.
        words: what happened.
        at: when, the last of it.
        since: when, the first of it.
        transition: whether it is one; advances can wait a little, so that more of them are told together.
        ended: jobs that ended.
        submitted: jobs that were submitted.
        events: ids of the rows.
    """

    pipeline_id: str
    name: str
    words: str
    at: datetime
    since: datetime
    transition: bool = True
    ended: int = 0
    submitted: int = 0
    events: tuple[int, ...] = field(default=(), repr=False)


def untold(connection: Connection) -> list[Told]:
    """What has yet to be told, in the order in which it happened."""
    table = pipeline_events.c
    of = pipeline_events.outerjoin(pipelines, pipelines.c.id == table.pipeline_id)
    wanted = select(pipeline_events, pipelines.c.name).select_from(of).where(table.told == false()).order_by(table.id)
    found: list[Told] = []
    advances: dict[str, int] = {}
    for row in connection.execute(wanted.limit(MOST_TOLD)):
        transition = row.kind != ADVANCED
        one = Told(
            pipeline_id=row.pipeline_id,
            name=row.name or "",
            words=_words(row),
            at=row.at,
            since=row.at,
            transition=transition,
            ended=row.ended,
            submitted=row.submitted,
            events=(row.id,),
        )
        if transition:
            found.append(one)
        elif row.pipeline_id in advances:
            place = advances[row.pipeline_id]
            found[place] = _together(found[place], one)
        else:
            advances[row.pipeline_id] = len(found)
            found.append(one)
    return found


def _words(row: object) -> str:
    step, before, after, reason = (getattr(row, name) for name in ("step", "before", "after", "reason"))
    arrow = f"{before} -> {after}" if before and after and before != after else after or "advanced"
    return f"{f'{step}: ' if step else ''}{arrow}{f' ({reason})' if reason else ''}"


def _together(one: Told, other: Told) -> Told:
    return replace(
        other,
        since=one.since,
        ended=one.ended + other.ended,
        submitted=one.submitted + other.submitted,
        events=one.events + other.events,
    )


def is_time(found: Sequence[Told], now: datetime, patience: timedelta) -> bool:
    """Whether to tell now: a transition at once, advances when the first of them has waited for long enough."""
    return any(one.transition or now - one.since >= patience for one in found)


def mark_told(engine: Engine, told: Sequence[Told]) -> None:
    """Keep transitions as history, and forget advances, of which a large pipeline has thousands."""
    ids = [event for one in told for event in one.events]
    table = pipeline_events.c

    def write() -> None:
        with writing(engine) as connection:
            connection.execute(delete(pipeline_events).where(table.id.in_(ids), table.kind == ADVANCED))
            connection.execute(update(pipeline_events).where(table.id.in_(ids)).values(told=True))

    if ids:
        despite_conflicts(write)
