"""Ticks open Dagster's storage cheaply, and all the same see what version it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from dagster import DagsterInstance
from dagster._core.storage import sql
from dagster._core.test_utils import create_run_for_test
from sqlalchemy.sql.compiler import SQLCompiler

from ops_pipeline.defs.ticks import STORAGES, make_ticks_cheap


def made_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has loaded the definitions, and only for one test."""
    monkeypatch.setattr(sql, "ScriptDirectory", sql.ScriptDirectory)
    for storage in STORAGES:
        monkeypatch.setattr(storage, "create_engine", storage.create_engine)
    make_ticks_cheap()


def test_migrations_are_read_once_and_the_version_of_the_database_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_cheap(monkeypatch)
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


def test_sql_is_compiled_once_and_files_are_opened_for_each_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster makes an engine for each statement, and compiled all of its SQL each time."""
    made_cheap(monkeypatch)
    compiled = []
    compile_ = SQLCompiler.__init__

    def count(self: SQLCompiler, *given: Any, **named: Any) -> None:
        compiled.append(1)
        compile_(self, *given, **named)

    monkeypatch.setattr(SQLCompiler, "__init__", count)
    counts = []
    for number in range(3):
        with DagsterInstance.local_temp(str(tmp_path)) as instance:
            create_run_for_test(instance, f"job_{number}")
            assert instance.get_runs_count() == number + 1
            assert instance.all_instigator_state() == []
            instance.get_records_for_run("none")
        counts.append(len(compiled))
        # Nothing is held open: the folder of a home can be moved or restored between two ticks.
        assert not [one.path for one in psutil.Process().open_files() if one.path.startswith(str(tmp_path))]
    # One for each file is alembic's own, which makes its table anew; it was eight.
    assert counts[2] - counts[1] <= 3
