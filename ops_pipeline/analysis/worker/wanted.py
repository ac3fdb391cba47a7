"""How many workers there should be: from what could be claimed, and who is at work.

What belongs here: the look at the queue, and the pure rule. Limits and breakers count: what no worker may claim starts
none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, or_, select

from ops_pipeline.analysis.limits import IS_PENDING, IS_RUNNING, open_slots, read_openings
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.tables import analysis_tasks, analysis_workers
from ops_pipeline.database.expressions import instant_order
from ops_pipeline.reconcile import counted

tasks, workers = analysis_tasks.c, analysis_workers.c


@dataclass(frozen=True)
class Look:
    """What a look at the queue found.

    Attributes:
        claimable: tasks that could be claimed now, by service; not more than all workers together would take.
        waiting: tasks that wait for their time, for a place or for their service.
        running: tasks under way.
        workers: those alive: the run that each is, and since when.
        dead: runs whose workers stopped giving signs of life without having said good-bye.
        ended: runs whose workers said so.
    """

    claimable: Mapping[str, int]
    waiting: int
    running: int
    workers: Mapping[str, datetime]
    dead: frozenset[str] = frozenset()
    ended: frozenset[str] = frozenset()


def look(connection: Connection, policy: Policy, most: int, now: datetime, runs: Sequence[str] = ()) -> Look:
    """Look at the queue; at most `most` tasks of each service are counted, and only workers of `runs`."""
    openings = read_openings(connection, policy)
    slots = open_slots(openings, most, policy, now)
    due = instant_order(tasks.next_attempt_at)
    claimable: dict[str, int] = {}
    for service, count in slots.items():
        first = select(tasks.id).where(
            IS_PENDING, tasks.service == service, or_(due.is_(None), due <= instant_order(now))
        )
        claimable[service] = connection.execute(
            select(func.count()).select_from(first.limit(count).subquery())
        ).scalar_one()
    services = [one.service for one in openings]
    pending = connection.execute(
        select(func.count()).select_from(
            select(tasks.id).where(IS_PENDING, tasks.service.in_(services)).limit(most + 1).subquery()
        )
    ).scalar_one()
    running = connection.execute(select(func.count()).where(IS_RUNNING)).scalar_one()
    alive, dead, ended = _workers(connection, runs, now)
    found = {service: count for service, count in claimable.items() if count}
    return Look(found, max(0, pending - sum(found.values())), running, alive, dead, ended)


def _workers(
    connection: Connection, runs: Sequence[str], now: datetime
) -> tuple[dict[str, datetime], frozenset[str], frozenset[str]]:
    living = (instant_order(workers.lease_expires_at) > instant_order(now)).label("living")
    columns = (workers.run_id, workers.started_at, workers.stopped_at, living)
    rows = connection.execute(select(*columns).where(workers.run_id.in_(list(runs)))).all() if runs else []
    ended = frozenset(row.run_id for row in rows if row.stopped_at is not None)
    alive = {row.run_id: row.started_at for row in rows if row.living and row.run_id not in ended}
    return alive, frozenset(row.run_id for row in rows) - ended - set(alive), ended


@dataclass(frozen=True)
class Crew:
    """What there is of workers.

    Attributes:
        runs: the runs that have not ended, queued ones too.
        most: how many workers there may be.
        concurrency: tasks of one worker.
        lifetime: after so long a worker takes no more tasks; it then counts no more.
    """

    runs: Collection[str]
    most: int
    concurrency: int
    lifetime: timedelta


def workers_wanted(found: Look, crew: Crew, now: datetime) -> tuple[int, str]:
    """How many workers to start, and why none, in words.

    One worker takes what is claimable within milliseconds: where something is left at a look, all that are at work are
    full. Runs that have not begun to work will take their share.
    """
    claimable = sum(found.claimable.values())
    if not claimable:
        return 0, f"No task can be claimed: {found.running} run, {found.waiting} wait."
    tasks = counted(claimable, "task")
    leaving = {run for run, since in found.workers.items() if since <= now - crew.lifetime}
    staying = [run for run in crew.runs if run not in leaving | found.dead | found.ended]
    beginning = [run for run in staying if run not in found.workers]
    needed = math.ceil(claimable / crew.concurrency) - len(beginning)
    if needed <= 0:
        return 0, f"{tasks} can be claimed; {counted(len(beginning), 'worker is', 'workers are')} about to begin."
    free = crew.most - len(staying)
    if free <= 0:
        return (
            0,
            f"{tasks} can be claimed; {counted(len(staying), 'worker is', 'workers are')} at work, as many as may be.",
        )
    return min(needed, free), ""


def free_places(taken: Collection[str], count: int) -> list[int]:
    """The first numbers from 1 on that are not taken."""
    numbers = (number for number in range(1, len(taken) + count + 1) if str(number) not in taken)
    return [number for number, _ in zip(numbers, range(count), strict=False)]
