"""Ticks open Dagster's storage cheaply, and all the same see what version it has."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._core.storage import sql

from ops_pipeline.defs.ticks import read_migrations_once


def test_migrations_are_read_once_and_the_version_of_the_database_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "ScriptDirectory", sql.ScriptDirectory)
    read_migrations_once()
    scripts = sql.ScriptDirectory.from_config
    scripts.cache_clear()  # type: ignore[attr-defined]
    for _ in range(3):
        with DagsterInstance.local_temp(str(tmp_path)) as instance:
            assert instance.run_storage.alembic_version()[0] == instance.run_storage.alembic_version()[1]
    # One place of scripts for runs and one for schedules; that of events is read by the storage of events.
    assert scripts.cache_info().misses <= 3  # type: ignore[attr-defined]
    assert scripts.cache_info().hits > 3  # type: ignore[attr-defined]
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'older'")
        assert instance.run_storage.alembic_version()[0] == "older"
