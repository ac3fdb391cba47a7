"""Whether any pass of recovery has something to do: what the schedule asks every minute.

What belongs here: counting what is due. What does not: doing it.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Engine

from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.recovery.leases import find_lost
from ops_pipeline.analysis.recovery.transient import find_waiting
from ops_pipeline.analysis.recovery.trees import find_created, find_parents
from ops_pipeline.database.engine import database_now, reading

LEASES, TRANSIENT_FAILURES, PARENTS, CREATED_TASKS = "leases", "transient", "parents", "created"


def count_due(engine: Engine, policy: Policy) -> Mapping[str, int]:
    """How many tasks each pass would look into."""
    with reading(engine) as connection:
        now = database_now(connection)
        return {
            LEASES: len(find_lost(connection, policy, now)[0]),
            TRANSIENT_FAILURES: len(find_waiting(connection, policy, now)),
            PARENTS: len(find_parents(connection, policy, now)),
            CREATED_TASKS: len(find_created(connection, policy, now)),
        }
