"""Until where raw calls were pruned: hours before it are never made again.

Two sources say so, and the later one counts: MODEL_CALLS_PRUNED_BEFORE, for whoever prunes by other means, and the row
that `pruning` writes before it deletes anything.

What belongs here: reading and moving that row.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select

from ops_pipeline.database.engine import database_now
from ops_pipeline.database.replace import upsert
from ops_pipeline.usage.tables import usage_watermarks

PRUNED_BEFORE = "model_calls_pruned_before"


def pruned_before(connection: Connection, told: datetime | None = None) -> datetime | None:
    """The hour before which raw calls are gone; None when none were pruned.

    Args:
        connection: any transaction.
        told: what MODEL_CALLS_PRUNED_BEFORE says.
    """
    table = usage_watermarks.c
    written = connection.execute(select(table.hour).where(table.name == PRUNED_BEFORE)).scalar()
    return max((one for one in (told, written) if one is not None), default=None)


def move_pruned_before(connection: Connection, hour: datetime) -> None:
    """Move the row on to an hour; never back."""
    known = pruned_before(connection)
    if known is None or known < hour:
        upsert(
            connection, usage_watermarks, [{"name": PRUNED_BEFORE, "hour": hour, "set_at": database_now(connection)}]
        )
