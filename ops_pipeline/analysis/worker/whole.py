"""Whether the files of the newest results are what the database says.

What belongs here: which results are looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Text, cast, select

from ops_pipeline.analysis.protocol import parsed
from ops_pipeline.analysis.results import flaws_of
from ops_pipeline.analysis.tables import COMPLETED, PARTIAL_SUCCESS, analysis_tasks
from ops_pipeline.database.engine import reading

NEWEST = 100
LONGEST_LOOK_BYTES = 2**28
"""A look reads at most so much of them."""
tasks = analysis_tasks.c


def last_flaws(engine: Engine, newest: int = NEWEST) -> tuple[int, list[str]]:
    """What is wrong with the files of the newest results, and how many were looked at.

    Results whose folder is gone altogether are left out: somebody has cleaned up, or they lie on another machine.
    """
    stored = select(tasks.id, cast(tasks.result_summary, Text).label("summary"))
    ended = tasks.status.in_((COMPLETED, PARTIAL_SUCCESS)), tasks.completed_at.is_not(None)
    with reading(engine) as connection:
        rows = connection.execute(stored.where(*ended).order_by(tasks.completed_at.desc()).limit(newest)).all()
    looked, size, flaws = 0, 0, []
    for row in rows:
        files = ((parsed(row.summary or "") or {}).get("files")) or {}
        folder = Path(str(files.get("folder") or ""))
        if files and folder.is_dir() and size <= LONGEST_LOOK_BYTES:
            looked += 1
            size += _number(files.get("size_bytes"))
            flaws += [f"{row.id}: {flaw}" for flaw in flaws_of(folder, str(files.get("manifest_sha256") or ""))]
    return looked, flaws


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
