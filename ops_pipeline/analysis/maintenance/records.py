"""What each pass did, as rows: the source of backlog metrics, and of a run's summary.

What belongs here: writing and reading `maintenance_passes`.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, insert, select

from ops_pipeline.analysis.maintenance.tables import maintenance_passes
from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.log_fields import fields, tell_changes
from ops_pipeline.passes import Report

log = logging.getLogger(__name__)
COUNTS = ("scanned", "changed", "skipped", "failed", "left_over")
LONGEST_ERROR = 4_000


def record_pass(engine: Engine, run_id: str, report: Report, started_at: datetime) -> None:
    """Write what a pass did."""
    outcome = report.outcome
    with writing(engine) as connection:
        row = {
            "run_id": run_id,
            "name": report.name,
            "started_at": started_at,
            "finished_at": database_now(connection),
            "status": report.status,
            "scanned": outcome.scanned,
            "changed": outcome.changed,
            "skipped": outcome.skipped,
            "failed": outcome.failed,
            "left_over": report.left,
            "backlog_seconds": report.backlog_seconds,
            "error": report.error[:LONGEST_ERROR],
            "details": {"kept": dict(report.kept), "planned": report.planned, "off": report.skipped, **report.facts},
        }
        connection.execute(insert(maintenance_passes), [row])
    known = {name: row[name] for name in ("status", *COUNTS)}
    words = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in known.items() if name != "status")
    log.debug("%s: %s, %s", report.name, report.status, words, extra=fields(object=report.name, **known))
    tell_changes(log, report.changes)


def read_passes(engine: Engine, run_id: str) -> list[dict[str, Any]]:
    """The passes of a run, in their order."""
    table = maintenance_passes
    with reading(engine) as connection:
        query = select(table).where(table.c.run_id == run_id).order_by(table.c.id)
        return [dict(row) for row in connection.execute(query).mappings()]
