"""The hypervisors: which there are, where, and whether they answered.

What belongs here: reading and marking rows of `hypervisor_hosts`. What does not: talking to a host (`looking`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, bindparam, select, update

from ops_pipeline.database.engine import database_now, writing
from ops_pipeline.database.replace import upsert
from ops_pipeline.hypervisor.tables import hypervisor_hosts

LOCAL = "local"
"""The host at LIBVIRT_URI, while `hypervisor_hosts` names no other; machines without a host belong to it."""
UP, UNREACHABLE = "up", "unreachable"


@dataclass(frozen=True)
class Host:
    """A hypervisor.

    Attributes:
        id: its key; machines name it.
        uri: where its libvirt is.
        state: `up`, `unreachable`, or empty as long as nobody looked.
        reason: why it is unreachable.
        last_seen_at: when it last answered, no finer than the rows are refreshed.
        uptime_seconds: its own at that time; None where its driver does not tell.
    """

    id: str
    uri: str
    state: str = ""
    reason: str = ""
    state_since: datetime | None = None
    last_seen_at: datetime | None = None
    uptime_seconds: int | None = None


@dataclass(frozen=True)
class Seen:
    """How a look at a host ended.

    Attributes:
        problem: why nothing is believed of it; empty when all is well.
        uptime_seconds: its own, if it tells.
        refused: it answered, and what it answered was not believed. When it was last seen, and its uptime then, are
            kept, since they are what a restart shows by.
    """

    problem: str = ""
    uptime_seconds: int | None = None
    refused: bool = False

    @property
    def state(self) -> str:
        """The state of the host."""
        return UNREACHABLE if self.problem and not self.refused else UP


def read_hosts(connection: Connection, local_uri: str) -> list[Host]:
    """The hosts to look at, by id.

    Args:
        connection: of the operations database.
        local_uri: LIBVIRT_URI, for the host `local` while there is no other row; empty for none.
    """
    table = hypervisor_hosts
    rows = connection.execute(
        select(
            table.c.id,
            table.c.libvirt_uri,
            table.c.state,
            table.c.reason,
            table.c.state_since,
            table.c.last_seen_at,
            table.c.uptime_seconds,
        ).order_by(table.c.id)
    )
    hosts = [Host(*row) for row in rows]
    named = [host for host in hosts if host.id != LOCAL or host.uri]
    if named:
        return named
    if not local_uri:
        return []
    (local,) = hosts or (Host(LOCAL, ""),)
    return [replace(local, uri=local_uri)]


def mark_hosts(
    connection: Connection, hosts: Sequence[Host], seen: Mapping[str, Seen], now: datetime, refresh: timedelta
) -> int:
    """Write what the looks showed: changed states at once, times of hosts that are well no more often than `refresh`.

    Returns how many rows were written.
    """
    due = hosts_due(hosts, seen, now, refresh)
    rows = [_row(host, seen[host.id], now) for host in due]
    # Only the row of LIBVIRT_URI is made here: a host that was deleted meanwhile must not come back without its URI.
    upsert(connection, hypervisor_hosts, [row for row in rows if row["id"] == LOCAL])
    others = [{"key" if name == "id" else name: value for name, value in row.items()} for row in rows]
    others = [row for row in others if row["key"] != LOCAL]
    if others:
        statement = update(hypervisor_hosts).where(hypervisor_hosts.c.id == bindparam("key"))
        connection.execute(statement.values({name: bindparam(name) for name in others[0] if name != "key"}), others)
    return len(rows)


def mark_unreachable(engine: Engine, hosts: Sequence[Host], problems: Mapping[str, str]) -> int:
    """Mark hosts that did not answer; that they do again is for the look that knows their uptime to tell.

    Returns how many rows were written.
    """
    if not problems:
        return 0
    seen = {host: Seen(problem) for host, problem in problems.items()}
    with writing(engine) as connection:
        return mark_hosts(connection, hosts, seen, database_now(connection), timedelta.max)


def hosts_due(hosts: Sequence[Host], seen: Mapping[str, Seen], now: datetime, refresh: timedelta) -> list[Host]:
    """The hosts that `mark_hosts` would write."""
    return [host for host in hosts if host.id in seen and _due(host, seen[host.id], now, refresh)]


def _due(host: Host, seen: Seen, now: datetime, refresh: timedelta) -> bool:
    if host.state != seen.state or host.reason != seen.problem:
        return True
    return not seen.problem and (host.last_seen_at is None or now - host.last_seen_at >= refresh)


def _row(host: Host, seen: Seen, now: datetime) -> dict[str, object]:
    state = seen.state
    return {
        "id": host.id,
        "state": state,
        "reason": seen.problem,
        "state_since": host.state_since if host.state == state else now,
        "last_seen_at": host.last_seen_at if seen.problem else now,
        "uptime_seconds": host.uptime_seconds if seen.problem else seen.uptime_seconds,
    }


def was_restarted(host: Host, uptime_seconds: int | None, now: datetime) -> bool:
    """True when a host's uptime shows that it was started again since it was last seen.

    Half of the time that has passed is allowed for: where a host is itself a guest, time that was stolen from it
    does not count as uptime.
    """
    if uptime_seconds is None or host.uptime_seconds is None or host.last_seen_at is None:
        return False
    passed = max(0.0, (now - host.last_seen_at).total_seconds())
    return uptime_seconds < host.uptime_seconds + passed / 2
