"""What is known of each analyzer service: its breaker and its last health check.

What belongs here: reading and writing `analyzer_services`. The rules of breakers are in `limits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, UpdateBase, bindparam, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ops_pipeline.analysis.limits import Breaker, after_failures
from ops_pipeline.analysis.policy import Policy
from ops_pipeline.analysis.states import LONGEST_TEXT
from ops_pipeline.analysis.tables import analyzer_services
from ops_pipeline.database.expressions import AnyOf
from ops_pipeline.database.types import TextList, UtcDateTime

services = analyzer_services.c


@dataclass(frozen=True)
class Health:
    """What a health check of a service found: whether it is well, and what it says of itself."""

    healthy: bool
    message: str = ""
    version: str = ""
    tools: Sequence[str] = ()


def record_successes(connection: Connection, names: Sequence[str], now: datetime) -> None:
    """Close the breakers of services that did something, and forget their failures."""
    if names:
        connection.execute(_CLOSE, {"names": list(names), "now": now})


def _close() -> UpdateBase:
    held = or_(services.failures > 0, services.open_until.is_not(None))
    named = AnyOf(services.service, bindparam("names", type_=TextList()))
    values = {"failures": 0, "opened": 0, "open_until": None, "updated_at": bindparam("now", type_=UtcDateTime())}
    return update(analyzer_services).where(named, held).values(**values)


_CLOSE = _close()


def record_failures(connection: Connection, failures: Mapping[str, int], policy: Policy, now: datetime) -> None:
    """Count failures of services to be available, and open their breakers when that is due."""
    for service in sorted(failures):
        before = _locked(connection, service)
        after = after_failures(before, failures[service], policy, now)
        values = {"failures": after.failures, "opened": after.opened, "open_until": after.open_until}
        changed = update(analyzer_services).where(services.service == service)
        connection.execute(changed.values(**values, updated_at=now))


def record_health(connection: Connection, found: Mapping[str, Health], now: datetime) -> None:
    """Keep what health checks found. They move no breaker: a task that is done shows more than a check does."""
    for service in sorted(found):
        _locked(connection, service)
        health = found[service]
        changed = update(analyzer_services).where(services.service == service)
        values: dict[str, Any] = {"healthy": health.healthy, "message": health.message[:LONGEST_TEXT]}
        if health.healthy:
            values |= {"version": health.version, "tools": list(health.tools)}
        connection.execute(changed.values(**values, checked_at=now, updated_at=now))


def _locked(connection: Connection, service: str) -> Breaker:
    """The breaker of a service, whose row is made when there is none and locked to the end of the transaction."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    made = dialect.insert(analyzer_services).values(service=service).on_conflict_do_nothing()
    connection.execute(made)
    columns = (services.failures, services.opened, services.open_until)
    row = connection.execute(select(*columns).where(services.service == service).with_for_update()).one()
    return Breaker(*row)
