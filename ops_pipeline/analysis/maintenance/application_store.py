"""Applications in the database: what is known of them, marks with their conditions, and the root that was seen.

What belongs here: SQL over `generated_applications` and `application_roots`. Decisions are in `applications`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Text, and_, case, cast, delete, func, or_, select, update

from ops_pipeline.analysis.maintenance.applications import LOOKS, Application, Policy
from ops_pipeline.analysis.maintenance.labels import hold_of, json_or_text, retention_of
from ops_pipeline.analysis.maintenance.root import Known
from ops_pipeline.analysis.maintenance.tables import application_roots
from ops_pipeline.analysis.tables import COMPLETED, PENDING, RUNNING, generated_applications
from ops_pipeline.database.batches import wait_at_most, without_waiting_for_disk
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.expressions import instant_order, is_any_of
from ops_pipeline.database.instants import known_instant
from ops_pipeline.database.replace import upsert
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.database.rows import row_hash

ROWS_PER_TRANSACTION = 5_000
LOCK_SECONDS = 0.2
_table = generated_applications.c
# What is still to be made has not been missed by anybody yet.
# Nearly all are completed, and one comparison costs less than two.
_MADE = or_(_table.generation_status == COMPLETED, _table.generation_status.not_in((PENDING, RUNNING)))
_PLAIN = _table.missing_since.is_(None), _table.labels.is_(None)


def read_slugs(connection: Connection) -> list[str]:
    """Every model that has an application, through the index: one step for each model, not for each application."""
    models = select(func.min(_table.model_slug).label("slug")).cte("models", recursive=True)
    following = select(func.min(_table.model_slug)).where(_table.model_slug > models.c.slug).scalar_subquery()
    models = models.union_all(select(following).where(models.c.slug.is_not(None)))
    return list(connection.scalars(select(models.c.slug).where(models.c.slug.is_not(None))))


class Model(NamedTuple):
    """The applications of a model: those without mark and labels as their number of rows and their numbers."""

    slug: str
    plain: int
    numbers: set[int]
    noted: int


def read_models(connection: Connection) -> list[Model]:
    """Every model with its applications, by one look at each row.

    Most have neither mark nor labels, and 100,000 rows by themselves take longer to read than to look for on a disk.
    """
    plain = and_(*_PLAIN)
    numbers = func.aggregate_strings(case((plain, cast(_table.app_number, Text))), ",")
    query = select(_table.model_slug, func.count(case((plain, 1))), numbers, func.count()).where(_MADE)
    return [
        Model(slug, count, set(map(int, text.split(","))) if text else set(), total - count)
        for slug, count, text, total in connection.execute(query.group_by(_table.model_slug))
    ]


def read_noted_of(connection: Connection, slugs: Sequence[str]) -> list[Application]:
    """Those of some models that have a mark or labels."""
    return read_noted(connection, is_any_of(_table.model_slug, slugs)) if slugs else []


def read_plain(connection: Connection, targets: Sequence[str]) -> list[Application]:
    """Applications without mark and labels that stand for some targets, in all their versions."""
    columns = _table.id, _table.model_slug, _table.app_number, _table.version
    query = select(*columns).where(_MADE, *_PLAIN, is_any_of(_table.target, targets))
    return [Application(*row) for row in connection.execute(query)] if targets else []


def read_noted(connection: Connection, condition: ColumnElement[bool]) -> list[Application]:
    """Applications that have a mark or labels, under a further condition."""
    columns = (
        _table.id,
        _table.model_slug,
        _table.app_number,
        _table.version,
        known_instant(_table.missing_since).label("since"),
        _table.missing_looks,
        known_instant(_table.missing_seen_at).label("seen"),
        cast(_table.labels, Text).label("labels"),
    )
    noted = or_(_table.missing_since.is_not(None), _table.labels.is_not(None))
    found: list[Application] = []
    for row in connection.execute(select(*columns).where(_MADE, noted, condition)):
        labels = json_or_text(row.labels)
        found.append(Application(*row[:7], hold=hold_of(labels), retention=retention_of(labels)))
    return found


def mark(engine: Engine, rows: Sequence[Application]) -> int:
    """Mark applications as missing from now on; returns how many were not marked meanwhile."""

    def values(now: datetime) -> dict[str, Any]:
        return {"missing_since": now, "missing_looks": 1, "missing_seen_at": now}

    def unmarked(now: datetime) -> ColumnElement[bool]:
        return or_(_table.missing_since.is_(None), instant_order(_table.missing_since) > instant_order(now))

    return _update(engine, rows, values, unmarked)


def count_look(engine: Engine, rows: Sequence[Application], spacing: timedelta) -> int:
    """Count a look that found applications still missing; returns how many were counted."""

    def values(now: datetime) -> dict[str, Any]:
        return {"missing_looks": _table.missing_looks + 1, "missing_seen_at": now}

    def due(now: datetime) -> ColumnElement[bool]:
        seen = _table.missing_seen_at
        order = instant_order(seen)
        apart = or_(seen.is_(None), order > instant_order(now), order <= instant_order(now - spacing))
        return and_(_table.missing_since.is_not(None), apart)

    return _update(engine, rows, values, due)


def clear(engine: Engine, rows: Sequence[Application]) -> int:
    """Take the marks of applications away; returns how many had one."""
    values = {"missing_since": None, "missing_looks": 0, "missing_seen_at": None}
    return _update(engine, rows, lambda _: values, lambda _: _table.missing_since.is_not(None))


def clear_named(engine: Engine, target: str) -> list[Application]:
    """Take the marks of all versions of one application away; returns those that had one, as they were."""
    with writing(engine) as connection:
        marked = [row for row in read_noted(connection, _table.target == target) if row.missing_since is not None]
        ids = is_any_of(_table.id, [row.id for row in marked])
        values = {"missing_since": None, "missing_looks": 0, "missing_seen_at": None}
        connection.execute(update(generated_applications).where(ids).values(values))
        return marked


def is_known(engine: Engine, target: str) -> bool:
    """Whether any version of an application has a row."""
    with reading(engine) as connection:
        return connection.execute(select(_table.id).where(_table.target == target).limit(1)).first() is not None


def _update(
    engine: Engine,
    rows: Sequence[Application],
    values: Callable[[datetime], dict[str, Any]],
    condition: Callable[[datetime], ColumnElement[bool]],
) -> int:
    changed = 0
    for first in range(0, len(rows), ROWS_PER_TRANSACTION):
        ids = [row.id for row in rows[first : first + ROWS_PER_TRANSACTION]]

        def batch(ids: list[str] = ids) -> int:
            with writing(engine) as connection:
                wait_at_most(connection, LOCK_SECONDS)
                now = database_now(connection)
                wanted = is_any_of(_table.id, ids), condition(now)
                return connection.execute(update(generated_applications).where(*wanted).values(values(now))).rowcount

        changed += despite_conflicts(batch)
    return changed


def delete_archived(connection: Connection, archived: dict[str, int], policy: Policy) -> set[str]:
    """Delete applications that are what they were when they were archived, and still due; returns those deleted.

    One that somebody holds just now stays: whoever waited for it would keep the others locked meanwhile.

    Args:
        connection: a transaction of `engine.writing`.
        archived: the hash of each row, by id.
        policy: the grace.
    """
    limit = instant_order(database_now(connection) - policy.retention)
    due = and_(instant_order(_table.missing_since) < limit, _table.missing_looks >= LOOKS)
    mine = is_any_of(_table.id, sorted(archived))
    locked = (
        select(_table.id, row_hash(generated_applications).label("hash"))
        .where(mine, due)
        .with_for_update(skip_locked=True)
    )
    unchanged = [row.id for row in connection.execute(locked) if archived[row.id] == row.hash]
    connection.execute(delete(generated_applications).where(is_any_of(_table.id, unchanged), due))
    return set(unchanged)


def still_there(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those of some applications that have a row."""
    return set(connection.scalars(select(_table.id).where(is_any_of(_table.id, list(ids)))))


def read_root(connection: Connection, location: str) -> Known | None:
    """What was seen of a root before; None on first use."""
    roots = application_roots.c
    row = connection.execute(select(roots.marker, roots.device).where(roots.location == location)).first()
    return Known(row.marker, row.device) if row else None


def remember_root(engine: Engine, location: str, known: Known, applications: int) -> None:
    """Remember a root as it was found: whatever looks different from now on is another one."""
    with writing(engine) as connection:
        now = database_now(connection)
        row = {
            "location": location,
            "marker": known.marker,
            "device": known.device,
            "adopted_at": now,
            "looked_at": now,
            "applications": applications,
        }
        upsert(connection, application_roots, [row])


def saw_root(engine: Engine, location: str, applications: int) -> None:
    """Write down a look."""
    with writing(engine) as connection:
        without_waiting_for_disk(connection)
        seen = {"looked_at": database_now(connection), "applications": applications}
        connection.execute(update(application_roots).where(application_roots.c.location == location).values(seen))
