"""Aggregation among others: two runs at once, writers in between, and processes that are killed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from ops_pipeline.database.engine import connect, reading
from ops_pipeline.settings import CALL_TYPES
from ops_pipeline.usage.aggregate import Policy, aggregate
from ops_pipeline.usage.hours import HOUR, Window
from ops_pipeline.usage.progress import CatchUpPolicy, read_missing
from ops_pipeline.usage.tables import (
    CALL_STATUSES,
    hourly_model_latency,
    hourly_model_usage,
    usage_hour_attempts,
    usage_hours,
)
from ops_pipeline_tests.usage.calls import (
    NOON,
    assert_rolled_up,
    at,
    call,
    change,
    contents,
    execute,
    expected_totals,
    meddle,
    remove,
    rows,
    run,
    totals,
    write,
)

MIDNIGHT = at("2026-03-10 00:00")
DAYS = [MIDNIGHT + number * HOUR for number in range(72)]


def again(engine: Engine) -> Engine:
    """Another engine of the same database, as another process has."""
    return connect(engine.url.render_as_string(hide_password=False))


def believable_calls(number: int, hours: int) -> list[dict[str, Any]]:
    """So many calls of various kinds over so many hours, always the same."""
    return [
        call(
            MIDNIGHT + timedelta(seconds=(index * 7919) % (hours * 3600), microseconds=index),
            id=f"call-{index}",
            user_id=f"user-{index % 23}",
            app_id=("", "chat", "mail")[index % 3],
            model=f"model-{index % 5}",
            type=CALL_TYPES[index % 6],
            status=CALL_STATUSES[1 + index % 2],
            duration_seconds=0.25 * (index % 97),
            ttfb_ms=float(index % 1009),
            input_tokens=index,
            credits=Decimal(index).scaleb(-10),
        )
        for index in range(number)
    ]


def in_threads(*works: Callable[[], Any]) -> list[BaseException]:
    """Start all at the same moment, wait for all, and return what they raised."""
    barrier, raised = threading.Barrier(len(works)), []

    def body(work: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    threads = [threading.Thread(target=body, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


# Two runs


def test_two_runs_of_the_same_hours_at_once_are_like_one(engine: Engine) -> None:
    """Two daemons on one storage fire each schedule twice."""
    calls = believable_calls(600, 72)
    write(engine, *calls)
    others = [again(engine), again(engine), again(engine)]
    failed: list[Any] = []

    def work(own: Engine) -> None:
        failed.extend(failure for chunk in aggregate(own, DAYS, Policy()) for failure in chunk.failures)

    for _ in range(3):
        assert in_threads(*(lambda own=own: work(own) for own in others)) == []
        assert failed == []
        assert_rolled_up(engine, calls)
        assert rows(engine, usage_hour_attempts) == []
        assert len(rows(engine, usage_hours)) == 72
        for name in (hourly_model_usage, hourly_model_latency, usage_hours):
            execute(engine, f"DELETE FROM {name.name}")
    for own in others:
        own.dispose()


def test_two_runs_of_overlapping_ranges_while_calls_change_end_with_the_last_state(engine: Engine) -> None:
    calls = believable_calls(200, 72)
    write(engine, *calls)
    run(engine, *DAYS)
    one, other, third = again(engine), again(engine), again(engine)

    def gateway() -> None:
        for number, each in enumerate(calls[:40]):
            change(third, each, input_tokens=1_000_000 + number)

    raised = in_threads(
        lambda: list(aggregate(one, DAYS[:50], Policy())), lambda: list(aggregate(other, DAYS[20:], Policy())), gateway
    )
    assert raised == []
    run(engine, *DAYS)
    assert_rolled_up(engine, calls)
    for own in (one, other, third):
        own.dispose()


def test_attempts_of_two_runs_are_both_counted(engine: Engine) -> None:
    """Both found no row yet, both inserted one, and the second run ended with a duplicate key."""
    write(engine, *(call(input_tokens=2**62) for _ in range(2)))
    others = [again(engine) for _ in range(4)]
    assert in_threads(*(lambda own=own: run(own, NOON) for own in others)) == []
    (row,) = rows(engine, usage_hour_attempts)
    assert row["attempts"] == 4
    for own in others:
        own.dispose()


# One snapshot


@pytest.mark.parametrize("before", ["INTO hourly_model_usage", "INTO hourly_model_latency", "FROM hourly_model_usage"])
def test_calls_that_change_during_an_aggregation_are_all_in_or_all_out(engine: Engine, before: str) -> None:
    """Without one snapshot a call ended between two statements: counted as processing, with its latency."""
    calls = [call(NOON, status="processing", duration_seconds=None, input_tokens=0), call(NOON, user_id="ben"), call()]
    write(engine, *calls)
    expected = [dict(one) for one in calls]
    own = again(engine)

    def gateway() -> None:
        change(own, calls[0], status="success", duration_seconds=3.0, input_tokens=50)
        write(own, call(NOON, id="late", user_id="carl"))
        remove(own, calls[1])

    gateway_thread = meddle(engine, before, gateway)
    (chunk,) = run(engine, NOON)
    gateway_thread.join()
    assert not chunk.failures
    assert chunk.hours[0].processing == 1
    assert_rolled_up(engine, expected)
    run(engine, NOON)
    assert_rolled_up(engine, [calls[0], calls[2], call(NOON, id="late", user_id="carl")])
    own.dispose()


def test_a_gateway_is_not_kept_from_writing_by_an_aggregation(postgres_engine: Engine) -> None:
    write(postgres_engine, call())
    own, took = again(postgres_engine), []

    def gateway() -> None:
        started = time.monotonic()
        write(own, call())
        took.append(time.monotonic() - started)

    meddle(postgres_engine, "INTO hourly_model_latency", gateway)
    run(postgres_engine, NOON)
    assert len(took) == 1
    assert totals(postgres_engine)["calls"] == 1
    own.dispose()


# Killed

SCRIPT = """
import os, sys
from ops_pipeline.database.engine import connect, reading
from ops_pipeline.usage.aggregate import Policy, aggregate
from ops_pipeline.usage.hours import Window
from ops_pipeline.usage.progress import CatchUpPolicy, read_missing
from ops_pipeline.database.types import parse_instant

start, end = map(parse_instant, sys.argv[1:])
engine = connect(os.environ["TEST_DATABASE"])
with engine.connect():
    print("ready", flush=True)
sys.stdin.readline()
with reading(engine) as connection:
    missing = read_missing(connection, CatchUpPolicy(start, None, 744, 99), end)
for chunk in aggregate(engine, missing, Policy()):
    print(len(chunk.hours), flush=True)
"""
MONTH = Window(MIDNIGHT, MIDNIGHT + 720 * HOUR)
KILLS = 5


def catch_up_process(engine: Engine) -> subprocess.Popen[str]:
    """Start a process that catches up with the month as soon as it is told to."""
    url = engine.url.render_as_string(hide_password=False)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, MONTH.start.isoformat(), MONTH.end.isoformat()],
        env=os.environ | {"TEST_DATABASE": url, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_in_the_middle(process: subprocess.Popen[str]) -> int:
    """Tell a process to go on and kill it a random moment later; returns the hours it said to have done."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for _ in range(secrets.randbelow(4)):
        process.stdout.readline()
    time.sleep(secrets.randbelow(40) / 1000)
    process.kill()
    said, _ = process.communicate()
    return sum(map(int, said.split()))


def assert_whole_hours(engine: Engine) -> None:
    """What `usage_hours` says to be done is there, and nothing else is."""
    hour, calls = hourly_model_usage.c.hour, func.sum(hourly_model_usage.c.calls)
    with reading(engine) as connection:
        there = {row[0]: row[1] for row in connection.execute(select(hour, calls).group_by(hour))}
        known = {row.hour: row.calls for row in connection.execute(select(usage_hours.c.hour, usage_hours.c.calls))}
    assert there == {one: count for one, count in known.items() if count}


def test_a_run_killed_at_any_moment_keeps_whole_hours_and_the_next_one_does_the_rest(engine: Engine) -> None:
    """A killed run left hours that were half written, or written and not known to be done."""
    calls = believable_calls(20_000, 720)
    write(engine, *calls)
    # Started together, since each takes a second to import everything; told to go on one after the other.
    processes = [catch_up_process(engine) for _ in range(KILLS)]
    said = 0
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        said += kill_in_the_middle(process)
        assert_whole_hours(engine)
    done = rows(engine, usage_hours)
    assert said <= len(done)

    with reading(engine) as connection:
        missing = read_missing(connection, CatchUpPolicy(MONTH.start, None, 744, 99), MONTH.end)
    assert len(missing) == 720 - len(done)
    chunks = run(engine, *missing)
    assert not [failure for chunk in chunks for failure in chunk.failures]
    after = contents(engine)
    assert after["usage_hour_attempts"] == []
    assert totals(engine) == expected_totals(calls)

    for table in (hourly_model_usage, hourly_model_latency, usage_hours):
        execute(engine, f"DELETE FROM {table.name}")
    run(engine, *MONTH)
    clean = contents(engine)
    for row in after["usage_hours"] + clean["usage_hours"]:
        del row["revision"]
    assert after == clean
