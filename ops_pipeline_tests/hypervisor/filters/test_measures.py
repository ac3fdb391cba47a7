"""The figures of network filters."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.hypervisor.filters.measures import measure_filters
from ops_pipeline.hypervisor.tables import network_filter_orphans
from ops_pipeline_tests.hypervisor.filters.samples import filter_row, insert_rows, store


def figures(engine: Engine) -> dict[str, float]:
    with reading(engine) as connection:
        measures = measure_filters(connection, database_now(connection))
    return {
        one.name.removeprefix("ops_pipeline_network_filter"): round(value)
        for one in measures
        for value in one.values.values()
    }


def test_filters_and_orphans_are_counted(engine: Engine) -> None:
    assert figures(engine) == {"s": 0, "_orphans": 0, "_oldest_orphan_seconds": 0}
    store(engine, [filter_row("a"), filter_row("b")])
    with reading(engine) as connection:
        since = database_now(connection) - timedelta(hours=1)
    rows = [{"host_id": "h", "internal_name": name, "first_seen_at": since} for name in ("x", "y")]
    insert_rows(engine, network_filter_orphans, rows)
    assert figures(engine) == {"s": 2, "_orphans": 2, "_oldest_orphan_seconds": 3600}
