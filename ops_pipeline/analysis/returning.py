"""Bringing tasks back that had ended: by an operator, or because their service is well again.

What belongs here: the guarded way back to `pending`, with parents and pipelines. What does not: who comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, case, select, update

from ops_pipeline.analysis.events import tell_tasks
from ops_pipeline.analysis.pipelines.advance import take_back_all
from ops_pipeline.analysis.tables import FAILED, PENDING, RUNNING, TERMINAL, UNIFIED, analysis_tasks
from ops_pipeline.analysis.waking import WORK, wake
from ops_pipeline.database.expressions import is_any_of

tasks = analysis_tasks.c
COUNTERS = ("preflight_retries", "transient_retries", "lost_leases")


def bring_back(
    connection: Connection,
    ids: Sequence[str],
    now: datetime,
    *,
    kind: str,
    condition: ColumnElement[bool],
    keep_count: bool = False,
) -> list[str]:
    """Let tasks begin anew, with the parents that had ended with them.

    Args:
        connection: a transaction of `engine.writing`.
        ids: of tasks that are claimed, not of parents.
        now: the database's clock.
        kind: of the event.
        condition: what must still hold for each.
        keep_count: whether this counts as one of the bounded returns; otherwise all counts begin anew.

    Returns:
        Those that came back.
    """
    if not ids:
        return []
    locked = select(tasks.id).where(is_any_of(tasks.id, sorted(ids)), condition).order_by(tasks.id).with_for_update()
    wanted = list(connection.scalars(locked))
    counts = dict.fromkeys(COUNTERS, 0)
    if keep_count:
        counts = {"preflight_retries": 0, "transient_retries": tasks.transient_retries + 1}
    returned = update(analysis_tasks).where(is_any_of(tasks.id, wanted), condition)
    values = dict.fromkeys(("completed_at", "cancel_requested_at", "next_attempt_at", "result_summary", "progress"))
    returned = returned.values(status=PENDING, error_class="", current_step="", updated_at=now, **values, **counts)
    rows = connection.execute(returned.returning(tasks.id, tasks.parent_id, tasks.pipeline_id)).all()
    back = sorted(row.id for row in rows)
    tell_tasks(connection, kind, back, now, before=FAILED)
    _reopen(connection, sorted({row.parent_id for row in rows if row.parent_id}), now, kind)
    take_back_all(connection, [row.pipeline_id for row in rows], now)
    if back:
        wake(connection, WORK)
    return back


def _reopen(connection: Connection, parents: Sequence[str], now: datetime, kind: str) -> None:
    if not parents:
        return
    ended = is_any_of(tasks.id, list(parents)), tasks.service == UNIFIED, tasks.status.in_(TERMINAL)
    locked = list(connection.scalars(select(tasks.id).where(*ended).order_by(tasks.id).with_for_update()))
    values = dict.fromkeys(("completed_at", "cancel_requested_at", "result_summary", "error_message"))
    status = case((tasks.started_at.is_(None), PENDING), else_=RUNNING)
    reopened = update(analysis_tasks).where(is_any_of(tasks.id, locked), *ended[1:])
    connection.execute(reopened.values(status=status, error_class="", updated_at=now, **values))
    tell_tasks(connection, kind, locked, now, before=FAILED)
