"""The three kinds of transaction, shown by interleaving real ones."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Literal

import pytest
from sqlalchemy import Connection, Engine, insert, select, text, update

from ops_pipeline.database.engine import database_now, reading, rewriting, writing
from ops_pipeline.database.errors import Conflict, Unreachable
from ops_pipeline.usage.tables import model_calls, usage_hours
from ops_pipeline_tests.servers import wait_until

calls = model_calls.c
Kind = Literal["writing", "rewriting"]
ACTIVITY = "FROM pg_stat_activity WHERE datname = current_database()"
TOLD_IN = 10
"""Seconds after which a transaction that should have gone on is taken for stuck."""


def transaction(kind: Kind, engine: Engine) -> AbstractContextManager[Connection]:
    return writing(engine) if kind == "writing" else rewriting(engine, usage_hours)


def add_call(connection: Connection, call_id: str) -> None:
    row = {"id": call_id, "model": "gpt", "called_at": database_now(connection), "input_tokens": 0}
    connection.execute(insert(model_calls), [row])


def ids(connection: Connection) -> list[str]:
    return list(connection.scalars(select(calls.id).order_by(calls.id)))


def committed_ids(engine: Engine) -> list[str]:
    with reading(engine) as connection:
        return ids(connection)


def add_in_own_transaction(engine: Engine, call_id: str, kind: Kind = "writing") -> list[str]:
    """What such a transaction sees when it has got its lock, before it adds a call."""
    with transaction(kind, engine) as connection:
        seen = ids(connection)
        add_call(connection, call_id)
    return seen


def wait_for_blocked(engine: Engine, other: Future[Any]) -> None:
    """Wait until the transaction of the other thread waits for a lock."""
    if engine.dialect.name == "postgresql":
        waiting = f"SELECT COUNT(*) {ACTIVITY} AND wait_event_type = 'Lock'"

        def blocked() -> bool:
            with engine.connect() as connection:
                return bool(connection.execute(text(waiting)).scalar_one())

        wait_until(blocked, TOLD_IN, "the other transaction to wait for a lock")
    else:
        # SQLite tells nobody who waits; in this time the other would have got through.
        threading.Event().wait(0.15)
    assert not other.done()


def test_a_second_rewrite_waits_and_then_sees_what_the_first_committed(engine: Engine) -> None:
    """With the snapshot taken before the lock, the second wrote back what it had read before the first's commit."""
    with ThreadPoolExecutor(1) as pool:
        with rewriting(engine, usage_hours) as connection:
            add_call(connection, "first")
            other = pool.submit(add_in_own_transaction, engine, "second", "rewriting")
            wait_for_blocked(engine, other)
        assert other.result(TOLD_IN) == ["first"]
    assert committed_ids(engine) == ["first", "second"]


@pytest.mark.parametrize("first", ["writing", "rewriting"])
@pytest.mark.parametrize("second", ["writing", "rewriting"])
def test_sqlite_writers_wait_for_each_other(sqlite_engine: Engine, first: Kind, second: Kind) -> None:
    with ThreadPoolExecutor(1) as pool:
        with transaction(first, sqlite_engine) as connection:
            other = pool.submit(add_in_own_transaction, sqlite_engine, "second", second)
            wait_for_blocked(sqlite_engine, other)
            add_call(connection, "first")
        assert other.result(TOLD_IN) == ["first"]


def test_a_rewrite_holds_up_other_writers_of_its_turnstile_and_nobody_else(postgres_engine: Engine) -> None:
    row = "('2026-03-10 12:00Z', 'complete', 0, 0, now(), 0, 1, '{}')"

    def write_turnstile() -> None:
        with writing(postgres_engine) as connection:
            columns = "hour, state, calls, processing, aggregated_at, source_version, revision, anomalies"
            connection.exec_driver_sql(f"INSERT INTO usage_hours ({columns}) VALUES {row}")

    with ThreadPoolExecutor(1) as pool:
        with rewriting(postgres_engine, usage_hours):
            other = pool.submit(write_turnstile)
            wait_for_blocked(postgres_engine, other)
            add_in_own_transaction(postgres_engine, "elsewhere")
        other.result(TOLD_IN)


@pytest.mark.parametrize("kind", ["writing", "rewriting"])
def test_readers_are_not_held_up_and_see_the_last_commit(engine: Engine, kind: Kind) -> None:
    add_in_own_transaction(engine, "old")
    with transaction(kind, engine) as connection, ThreadPoolExecutor(1) as pool:
        add_call(connection, "new")
        assert pool.submit(committed_ids, engine).result(TOLD_IN) == ["old"]
    assert committed_ids(engine) == ["new", "old"]


@pytest.mark.parametrize("kind", ["reading", "rewriting"])
def test_all_selects_of_a_transaction_see_one_snapshot(engine: Engine, kind: str) -> None:
    """A call that arrived between two SELECTs was in the hour's calls, and not in its tokens."""
    if kind == "rewriting" and engine.dialect.name == "sqlite":
        # Nobody else can write meanwhile.
        kind = "reading"
    add_in_own_transaction(engine, "before")
    with reading(engine) if kind == "reading" else rewriting(engine, usage_hours) as connection:
        assert ids(connection) == ["before"]
        with ThreadPoolExecutor(1) as pool:
            pool.submit(add_in_own_transaction, engine, "meanwhile").result(TOLD_IN)
        assert ids(connection) == ["before"]
    assert committed_ids(engine) == ["before", "meanwhile"]


def test_reading_cannot_write_on_postgresql(postgres_engine: Engine) -> None:
    with pytest.raises(Unreachable, match="read-only transaction"), reading(postgres_engine) as connection:
        add_call(connection, "a")
    assert committed_ids(postgres_engine) == []


def test_no_kind_of_transaction_leaves_its_mark_on_the_pooled_connection(postgres_engine: Engine) -> None:
    def marks(connection: Connection) -> list[str]:
        names = ("transaction_isolation", "transaction_read_only", "work_mem")
        return [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]

    with writing(postgres_engine) as connection:
        usual = marks(connection)
    with reading(postgres_engine) as connection:
        assert marks(connection)[:2] == ["repeatable read", "on"]
    with rewriting(postgres_engine, usage_hours) as connection:
        assert marks(connection) == ["repeatable read", "off", "64MB"]
    with writing(postgres_engine) as connection:
        assert marks(connection) == usual
    assert usual[:2] == ["read committed", "off"]
    assert postgres_engine.pool.checkedin() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["writing", "rewriting"])
def test_an_exception_rolls_back_and_frees_the_lock(engine: Engine, kind: Kind) -> None:
    with pytest.raises(RuntimeError, match="stop"), transaction(kind, engine) as connection:
        add_call(connection, "lost")
        raise RuntimeError("stop")
    assert committed_ids(engine) == []
    assert add_in_own_transaction(engine, "next", kind) == []


def test_many_rewrites_at_once_lose_no_update(engine: Engine) -> None:
    """Each reads a number and writes it back plus one; SQLite takes the lock before the read, not at the write."""
    add_in_own_transaction(engine, "counter")

    def count_up(_: int) -> None:
        with rewriting(engine, usage_hours) as connection:
            number = connection.scalars(select(calls.input_tokens)).one()
            connection.execute(update(model_calls).values(input_tokens=number + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count_up, range(20), timeout=60))
    with reading(engine) as connection:
        assert connection.scalars(select(calls.input_tokens)).one() == 20


def test_a_row_that_another_wrote_meanwhile_is_a_conflict_and_a_second_attempt_succeeds(
    postgres_engine: Engine,
) -> None:
    add_in_own_transaction(postgres_engine, "row")

    def set_tokens(connection: Connection, tokens: int) -> None:
        connection.execute(update(model_calls).values(input_tokens=tokens))

    def rewrite_while_another_writes(*, another: bool) -> None:
        with rewriting(postgres_engine, usage_hours) as connection:
            ids(connection)
            if another:
                with writing(postgres_engine) as other:
                    set_tokens(other, 1)
            set_tokens(connection, 2)

    with pytest.raises(Conflict, match=r"concurrent update.*Try again"):
        rewrite_while_another_writes(another=True)
    rewrite_while_another_writes(another=False)


def test_of_two_transactions_in_each_others_way_one_goes_on_and_one_is_told_of_a_conflict(
    postgres_engine: Engine,
) -> None:
    for name in ("a", "b"):
        add_in_own_transaction(postgres_engine, name)
    met = threading.Barrier(2)

    def touch(first: str, second: str) -> str:
        try:
            with writing(postgres_engine) as connection:
                connection.exec_driver_sql("SET LOCAL deadlock_timeout = '50ms'")
                connection.execute(update(model_calls).where(calls.id == first).values(input_tokens=1))
                met.wait(TOLD_IN)
                connection.execute(update(model_calls).where(calls.id == second).values(input_tokens=1))
        except Conflict as conflict:
            return str(conflict)
        return "done"

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(touch, *pair) for pair in ("ab", "ba")]
        ends = sorted(future.result(TOLD_IN) for future in both)
    assert "deadlock detected" in ends[0]
    assert ends[1] == "done"


def test_a_connection_that_died_in_the_pool_is_replaced_without_a_word(postgres_engine: Engine) -> None:
    """After each restart of the server, the first run of every process failed with "terminating connection"."""
    add_in_own_transaction(postgres_engine, "before")
    others = f"{ACTIVITY} AND pid <> pg_backend_pid()"
    with writing(postgres_engine) as first, writing(postgres_engine) as second:
        for connection in (first, second):
            ids(connection)
    with postgres_engine.connect() as connection:
        assert connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid, 5000) {others}").scalar_one()
        with reading(postgres_engine) as replaced:
            assert ids(replaced) == ["before"]


def test_sqlite_writes_ahead_waits_for_locks_and_checks_foreign_keys(sqlite_engine: Engine) -> None:
    with reading(sqlite_engine) as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")
        }
    assert settings == {"journal_mode": "wal", "busy_timeout": 30_000, "foreign_keys": 1, "synchronous": 1}
