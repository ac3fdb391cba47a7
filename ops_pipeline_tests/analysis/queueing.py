"""What the tests of the queue have in common: times, a policy, and looks at rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, insert, select, update

from ops_pipeline.analysis.claiming import claim
from ops_pipeline.analysis.ending import finish
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.states import Result, Task
from ops_pipeline.analysis.submitting import Submission, submit
from ops_pipeline.analysis.tables import analysis_tasks
from ops_pipeline.database.engine import reading, writing

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
POLICY = Policy()


def after(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def add(engine: Engine, *, now: datetime = NOON, services: Sequence[str] = ("static",), **rest: Any) -> str:
    """Submit one task."""
    submission = Submission(tuple(services), rest.pop("target", "acme/app1"), **rest)
    with writing(engine) as connection:
        return submit(connection, [submission], now)[0]


def add_row(engine: Engine, **values: Any) -> None:
    """Insert a task as another program does: only what it says, the rest by default."""
    row = {"service": "static", "target": "acme/app1"} | values
    with writing(engine) as connection:
        connection.execute(insert(analysis_tasks), [row])


def take(
    engine: Engine,
    owner: str = "worker-1",
    batch: int = 100,
    *,
    now: datetime = NOON,
    policy: Policy = POLICY,
    services: Sequence[str] | None = None,
) -> list[Task]:
    """Claim tasks."""
    with writing(engine) as connection:
        return claim(connection, owner, batch, policy=policy, now=now, services=services)


def end(
    engine: Engine, *results: Result, owner: str = "worker-1", now: datetime = NOON, policy: Policy = POLICY
) -> dict[str, str]:
    """End attempts; no jitter."""
    with writing(engine) as connection:
        return finish(connection, owner, results, policy=policy, now=now, jitter=lambda: 0.0)


def row_of(engine: Engine, task_id: str) -> Mapping[str, Any]:
    """A task as it stands."""
    with reading(engine) as connection:
        return connection.execute(select(analysis_tasks).where(analysis_tasks.c.id == task_id)).mappings().one()


def rows_of(engine: Engine) -> list[Mapping[str, Any]]:
    """Every task."""
    with reading(engine) as connection:
        return list(connection.execute(select(analysis_tasks).order_by(analysis_tasks.c.id)).mappings())


def children_of(engine: Engine, task_id: str) -> dict[str, Mapping[str, Any]]:
    """The children of a task, by service."""
    return {row["service"]: row for row in rows_of(engine) if row["parent_id"] == task_id}


def change(engine: Engine, task_id: str, **values: Any) -> None:
    """Write into a task, whatever anybody thinks of it."""
    with writing(engine) as connection:
        connection.execute(update(analysis_tasks).where(analysis_tasks.c.id == task_id).values(**values))
