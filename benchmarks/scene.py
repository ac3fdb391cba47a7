"""A filled database to measure on.

What belongs here: what every measurement does with it. What does not: any measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, Table, func, select

from benchmarks.databases import Database
from benchmarks.report import Reading
from ops_pipeline.database.engine import reading
from ops_pipeline.usage.aggregate import Policy, aggregate
from ops_pipeline.usage.hours import Window


@dataclass(frozen=True)
class Scene:
    """A filled database, and the window that all calls lie in."""

    database: Database
    calls: int
    window: Window

    @property
    def engine(self) -> Engine:
        """The engine with the project's settings."""
        return self.database.engine

    def measure(self, work: Callable[[], object]) -> Reading:
        """Do something, and tell what it cost."""
        wal, cpu, started = self.database.wal_bytes(), self.database.cpu_seconds(), time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        return Reading(seconds, self.database.cpu_seconds() - cpu, self.database.wal_bytes() - wal)

    def aggregate(self, hours: Iterable[datetime] | None = None) -> None:
        """Aggregate hours, all of them unless told.

        Raises:
            RuntimeError: an hour failed, so that its time would mean nothing.
        """
        for chunk in aggregate(self.engine, self.window if hours is None else hours, Policy()):
            if chunk.failures:
                raise RuntimeError(chunk.failures[0].error)

    def count(self, table: Table) -> int:
        """The rows of a table."""
        with reading(self.engine) as connection:
            return connection.execute(select(func.count()).select_from(table)).scalar_one()
