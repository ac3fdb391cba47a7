"""What a lab leaves behind, for `make run`: each pass of `run_maintenance` has something to plan in a dry run.

Nothing of it is claimed by a worker or touched by recovery. All ids begin with `demo_`.

What belongs here: these rows. What does not: the demonstration of analyses (`demo`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, insert, select

from ops_pipeline.analysis.demo import MODELS, PREFIX, SERVICE
from ops_pipeline.analysis.tables import UNIFIED, analysis_results, analysis_tasks, generated_applications
from ops_pipeline.database.engine import database_now, writing

OLD_TREES, CHILDREN = 4, 2
NOBODY = "accessibility-analyzer"
"""A service without an analyzer."""
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def write_leftovers(engine: Engine) -> int:
    """Write them, unless they are there; how many tasks and applications were written.

    Two applications without a directory, of which one is beyond its grace; a task of an application that does not
    exist; one for a service that nobody runs; and trees of tasks that ended long ago, one of them under legal hold.
    """
    with writing(engine) as connection:
        mine = select(generated_applications.c.id).where(generated_applications.c.id.like(f"{PREFIX}left_%"))
        if connection.execute(mine.limit(1)).first() is not None:
            return 0
        now = database_now(connection)
        applications, tasks = list(_applications(now)), list(_tasks(now))
        for table, rows in ((generated_applications, applications), (analysis_tasks, tasks)):
            for row in rows:
                # Each has columns of its own.
                connection.execute(insert(table), [row])
        connection.execute(insert(analysis_results), [_finding(row) for row in tasks if row.get("completed_at")])
    return len(applications) + len(tasks)


def _applications(now: datetime) -> Iterator[dict[str, Any]]:
    yield {"id": f"{PREFIX}left_app_1", "model_slug": MODELS[0], "app_number": 20}
    marked = {"missing_since": now - 9 * DAY, "missing_looks": 3, "missing_seen_at": now - 2 * DAY}
    yield {"id": f"{PREFIX}left_app_2", "model_slug": MODELS[1], "app_number": 21, **marked}


def _tasks(now: datetime) -> Iterator[dict[str, Any]]:
    # Due tomorrow, so that no worker takes it before.
    waiting = {"status": "pending", "next_attempt_at": now + DAY, "created_at": now - 2 * HOUR}
    yield {"id": f"{PREFIX}left_orphan", "service": SERVICE, "target": f"{MODELS[2]}/app30", **waiting}
    # Recovery gives back what a writer or a worker left; this waits for ever.
    unserved = {"status": "pending", "created_at": now - 6 * HOUR, "updated_at": now - 6 * HOUR}
    yield {"id": f"{PREFIX}left_stuck", "service": NOBODY, "target": f"{MODELS[0]}/app0", **unserved}
    for number in range(OLD_TREES):
        ended = now - (35 + 5 * number) * DAY
        root = f"{PREFIX}left_old_{number}"
        times = {"created_at": ended - HOUR, "started_at": ended - HOUR, "completed_at": ended, "updated_at": ended}
        common = {"target": f"{MODELS[number % len(MODELS)]}/app{number % 3}", "status": "completed", **times}
        labels = {"legal_hold": True} if number == OLD_TREES - 1 else None
        yield {"id": root, "service": UNIFIED, "labels": labels, **common}
        for child in range(CHILDREN):
            yield {"id": f"{root}_{child}", "parent_id": root, "service": SERVICE, "attempt": 1, **common}


def _finding(task: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"{task['id']}_finding",
        "task_id": task["id"],
        "tool": "ruff",
        "severity": "low",
        "title": "An old one",
    }
