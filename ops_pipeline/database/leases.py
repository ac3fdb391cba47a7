"""Leases: work of which only one is done at a time, wherever it runs, and that a dead process does not hold for ever.

What belongs here: the table, taking, keeping and giving back. What does not: what is done under a lease.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Column, Engine, MetaData, Table, Text, delete, update
from sqlalchemy.dialects import postgresql, sqlite

from ops_pipeline.database.batches import without_waiting_for_disk
from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.expressions import instant_order
from ops_pipeline.database.retry import despite_conflicts
from ops_pipeline.database.types import UtcDateTime

LEASE_SECONDS = 300
KEPT_EVERY_SECONDS = 15

metadata = MetaData()

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)
"""Who does what at the moment, by the database's clock."""


class LeaseHeld(Exception):
    """Somebody else does this work at the moment, or took it over: nothing more may be done here."""


@dataclass
class Lease:
    """A lease that is held; `keep` is called now and then, and `keep(now=True)` before what cannot be undone."""

    engine: Engine
    name: str
    seconds: float
    clock: Callable[[], float]
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    kept_at: float = 0.0

    def keep(self, *, now: bool = False) -> None:
        """Renew the lease when its last renewal is a while ago.

        Raises:
            LeaseHeld: it was lost.
        """
        if not now and self.clock() - self.kept_at < KEPT_EVERY_SECONDS:
            return
        if not despite_conflicts(self._renewed):
            raise LeaseHeld(f"{self.name} was taken over by another run, since this one stood still for too long.")
        self.kept_at = self.clock()

    def _renewed(self) -> bool:
        with writing(self.engine) as connection:
            without_waiting_for_disk(connection)
            until = database_now(connection) + timedelta(seconds=self.seconds)
            mine = (leases.c.name == self.name) & (leases.c.owner == self.owner)
            return connection.execute(update(leases).where(mine).values(expires_at=until)).rowcount == 1

    def taken(self) -> bool:
        """Take the lease if it is free or its holder is dead."""
        with writing(self.engine) as connection:
            # A server that dies forgets it, and whoever holds it is told by the next `keep`.
            without_waiting_for_disk(connection)
            now = database_now(connection)
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            row = {"name": self.name, "owner": self.owner, "expires_at": now + timedelta(seconds=self.seconds)}
            statement = dialect.insert(leases).values(row)
            free = instant_order(leases.c.expires_at) < instant_order(now)
            taking = statement.on_conflict_do_update(index_elements=["name"], set_=row, where=free)
            taken = connection.execute(taking.returning(leases.c.name)).first() is not None
        self.kept_at = self.clock()
        return taken

    def give_back(self) -> None:
        """Free the lease."""
        with writing(self.engine) as connection:
            without_waiting_for_disk(connection)
            mine = (leases.c.name == self.name) & (leases.c.owner == self.owner)
            connection.execute(delete(leases).where(mine))


@contextmanager
def leased(
    engine: Engine, name: str, seconds: float = LEASE_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Generator[Lease, None, None]:
    """Hold a lease.

    Args:
        engine: the database.
        name: of the work.
        seconds: after so long without `keep` somebody else may take it.
        clock: in seconds, for the pace of `keep`.

    Raises:
        LeaseHeld: somebody else holds it.
    """
    lease = Lease(engine, name, seconds, clock)
    if not despite_conflicts(lease.taken):
        raise LeaseHeld(
            f"{name} is at work in another run: wait for it. What a dead run held is free after {seconds:g} s."
        )
    try:
        yield lease
    finally:
        # What cannot be given back expires; the error of the work is the one to tell.
        with suppress(DatabaseProblem):
            lease.give_back()
