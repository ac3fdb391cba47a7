"""The record of what jobs did: one `job_outcomes` row per run.

What belongs here: writing and reading that table.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.log_fields import fields
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline.reconcile import Outcome

log = logging.getLogger(__name__)
MOST_REASONS = 20


def record_outcome(
    engine: Engine, *, job: str, run_id: str, started_at: datetime, outcome: Outcome, details: Mapping[str, Any]
) -> None:
    """Write and log the outcome of a run; `details` must be JSON and free of secrets."""
    with writing(engine) as connection:
        row = {
            "job": job,
            "run_id": run_id,
            "started_at": started_at,
            "finished_at": database_now(connection),
            "status": outcome.status,
            "scanned": outcome.scanned,
            "changed": outcome.changed,
            "skipped": outcome.skipped,
            "failed": outcome.failed,
            "details": {"reasons": dict(outcome.reasons), **details},
        }
        connection.execute(insert(job_outcomes), [row])
    _log(job, run_id, outcome, max(0.0, (datetime.now(UTC) - started_at).total_seconds()))


def _log(job: str, run_id: str, outcome: Outcome, seconds: float) -> None:
    counts = {name: getattr(outcome, name) for name in ("scanned", "changed", "skipped", "failed")}
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    told = fields(
        event="outcome",
        job=job,
        run=run_id,
        status=outcome.status,
        **counts,
        duration_seconds=round(seconds, 3),
        reasons=dict(sorted(outcome.reasons.items(), key=lambda one: -one[1])[:MOST_REASONS]),
    )
    level = logging.WARNING if outcome.failed else logging.INFO
    log.log(level, "Outcome: %s, %s in %.1f s.", outcome.status, words, seconds, extra=told)


def last_details(connection: Connection, job: str) -> dict[str, Any]:
    """The details of the last run of a job that got as far as reporting; empty when there is none."""
    query = (
        select(job_outcomes.c.details)
        .where(job_outcomes.c.job == job)
        .order_by(job_outcomes.c.finished_at.desc(), job_outcomes.c.id.desc())
        .limit(1)
    )
    return connection.execute(query).scalar() or {}
