"""What the passes of recovery have in common.

What belongs here: their result, and applying in bounded transactions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection, Engine

from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.log_fields import tell_changes
from ops_pipeline.reconcile import Outcome, Plan, count_reasons

log = logging.getLogger(__name__)
BATCH = 500
"""Rows are locked until their batch commits, and a worker that ends one of them waits so long."""
MOST = 20_000
"""So many tasks are looked at in one pass; whatever is left is due a minute later."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Recovered:
    """What a pass planned, and what it did; nothing in a dry run."""

    plan: Plan
    outcome: Outcome


def applied(
    engine: Engine,
    plan: Plan,
    items: Sequence[Item],
    write: Callable[[Connection, Sequence[Item], datetime], int],
    *,
    dry_run: bool,
) -> Recovered:
    """Apply the changes of a plan in batches.

    Args:
        engine: the operations database.
        plan: with one change for each item, in this order.
        items: what `write` needs to know.
        write: changes some of them, and tells how many; the others were changed by somebody else meanwhile.
        dry_run: stop before.
    """
    outcome = Outcome(scanned=plan.scanned, unchanged=plan.unchanged)
    if dry_run:
        return Recovered(plan, outcome)
    changed = 0
    for start in range(0, len(items), BATCH):
        changed += despite_conflicts(_write, engine, items[start : start + BATCH], write)
    tell_changes(log, plan.changes)
    reasons = {**count_reasons(plan.changes), **plan.kept}
    skipped = len(plan.changes) - changed
    return Recovered(plan, Outcome(plan.scanned, changed, plan.unchanged, skipped, reasons=reasons))


def _write(engine: Engine, items: Sequence[Item], write: Callable[[Connection, Sequence[Item], datetime], int]) -> int:
    with writing(engine) as connection:
        return write(connection, items, database_now(connection))
