"""Syncs against a private libvirtd.

What belongs here: putting a sync together, with something in between where a test wants it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from ops_pipeline.hypervisor.filters import sync
from ops_pipeline.hypervisor.filters.plan import FilterPolicy
from ops_pipeline.hypervisor.filters.sync import Firewall, Synced
from ops_pipeline.reconcile import SafetyLimit
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer


def firewall(engine: Engine, server: LibvirtServer | str, *, orphan_hours: float = 24, **fields: Any) -> Firewall:
    """A sync's surroundings; without a limit on removals."""
    policy = FilterPolicy(orphan_age=timedelta(hours=orphan_hours), limit=SafetyLimit())
    uri = server if isinstance(server, str) else server.uri
    return Firewall(engine, uri, **({"policy": policy} | fields))


def synced(
    engine: Engine,
    server: LibvirtServer | str,
    *,
    using: Firewall | None = None,
    between: Callable[[], object] | None = None,
    **fields: Any,
) -> Synced:
    """One sync; `between` happens after it was planned."""
    chosen = using or firewall(engine, server, **fields)
    planned = sync.plan(chosen, sync.look(chosen))
    if between is not None:
        between()
    return sync.apply(chosen, planned)
