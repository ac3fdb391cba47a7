"""What lacks: read from the database, for whoever plans runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from ops_pipeline.database.engine import reading, writing
from ops_pipeline.usage.hours import HOUR, CatchUp, Window
from ops_pipeline.usage.progress import (
    CatchUpPolicy,
    done_hours,
    failed_attempts,
    first_wanted_hour,
    future_calls,
    read_catch_up,
    read_missing,
    recent_anomalies,
)
from ops_pipeline.usage.tables import usage_hours
from ops_pipeline_tests.usage.calls import NOON, at, call, change, erase, examples, execute, run, write

START = at("2026-01-01 00:00")
POLICY = CatchUpPolicy(start=START, pruned_before=None, max_range_hours=744, max_attempts=3)


def first(engine: Engine, start: datetime = START) -> datetime | None:
    with reading(engine) as connection:
        return first_wanted_hour(connection, start)


def missing(engine: Engine, closed_until: datetime, policy: CatchUpPolicy = POLICY) -> list[datetime]:
    with reading(engine) as connection:
        return read_missing(connection, policy, closed_until)


def catch_up(engine: Engine, closed_until: datetime, policy: CatchUpPolicy = POLICY, **options: set) -> CatchUp:
    with reading(engine) as connection:
        return read_catch_up(connection, policy, closed_until, options.get("in_flight", ()))


def future(engine: Engine, now: datetime) -> int:
    with reading(engine) as connection:
        return future_calls(connection, now)


def forget(engine: Engine, *hours: datetime) -> None:
    """Make a hole."""
    with writing(engine) as connection:
        connection.execute(delete(usage_hours).where(usage_hours.c.hour.in_(hours)))


# The first hour


def test_without_calls_there_is_no_first_hour(engine: Engine) -> None:
    assert first(engine) is None
    assert missing(engine, NOON) == []


def test_the_first_hour_is_that_of_the_earliest_call(engine: Engine) -> None:
    write(engine, call(NOON + timedelta(minutes=59, seconds=59, microseconds=999_999)), call(NOON + 9 * HOUR))
    assert first(engine) == NOON


def test_calls_before_the_start_do_not_count(engine: Engine) -> None:
    write(engine, call(START - timedelta(microseconds=1)), call(at("1970-01-01 00:00")), call(at("0001-01-02 00:00")))
    assert first(engine) is None
    write(engine, call(START))
    assert first(engine) == START


def test_the_first_hour_moves_when_older_calls_are_imported(engine: Engine) -> None:
    """First runs began at the last hour, and whatever history there was stayed out for ever."""
    write(engine, call(NOON))
    run(engine, NOON)
    assert missing(engine, NOON + HOUR) == []
    write(engine, call(NOON - 5 * HOUR))
    assert missing(engine, NOON + HOUR) == [NOON - number * HOUR for number in range(5, 0, -1)]


@pytest.mark.parametrize("moment", ["58158-01-01 00:00+00", "infinity", "-infinity", "0044-03-15 00:00+00 BC"])
def test_calls_at_impossible_times_do_not_stop_catch_up(postgres_engine: Engine, moment: str) -> None:
    """Milliseconds taken for seconds are the year 58158, which PostgreSQL keeps and Python does not know."""
    statement = f"INSERT INTO model_calls (id, model, called_at) VALUES ('odd', 'gpt', '{moment}')"
    execute(postgres_engine, statement)
    assert first(postgres_engine) is None
    write(postgres_engine, call(NOON))
    assert first(postgres_engine) == NOON
    assert missing(postgres_engine, NOON + HOUR) == [NOON]


def test_calls_at_times_nobody_can_read_do_not_stop_catch_up(sqlite_engine: Engine) -> None:
    execute(sqlite_engine, "INSERT INTO model_calls (id, model, called_at) VALUES ('odd', 'gpt', 'yesterday')")
    assert first(sqlite_engine) is None
    write(sqlite_engine, call(NOON))
    assert first(sqlite_engine) == NOON


@pytest.mark.parametrize("spelling", ["2026-03-10T12:30:00Z", "2026-03-10T18:00:00.5+05:30", "2026-03-10 12:00"])
def test_the_first_hour_may_be_spelled_in_any_way_on_sqlite(sqlite_engine: Engine, spelling: str) -> None:
    statement = "INSERT INTO model_calls (id, model, called_at) VALUES ('odd', 'gpt', :called_at)"
    execute(sqlite_engine, statement, called_at=spelling)
    write(sqlite_engine, call(NOON + HOUR))
    assert first(sqlite_engine) == NOON


# What is missing


def test_holes_anywhere_are_found_and_filled(engine: Engine) -> None:
    hours = [NOON + number * HOUR for number in range(60)]
    write(engine, *(call(hour) for hour in hours))
    run(engine, *hours)
    assert missing(engine, hours[-1] + HOUR) == []
    holes = [hours[0], hours[1], hours[13], hours[40], hours[59]]
    forget(engine, *holes)
    assert missing(engine, hours[-1] + HOUR) == holes
    run(engine, *holes)
    assert missing(engine, hours[-1] + HOUR) == []


def test_an_empty_hour_that_is_done_is_not_missing(engine: Engine) -> None:
    write(engine, call(NOON), call(NOON + 5 * HOUR))
    run(engine, *(NOON + number * HOUR for number in range(6)))
    assert missing(engine, NOON + 6 * HOUR) == []


def test_a_provisional_hour_is_not_missing(engine: Engine) -> None:
    write(engine, call(NOON, status="processing"))
    run(engine, NOON)
    assert missing(engine, NOON + HOUR) == []
    with reading(engine) as connection:
        assert done_hours(connection) == {NOON: "provisional"}


def test_reading_what_is_missing_writes_nothing(engine: Engine) -> None:
    write(engine, call(NOON))
    for _ in range(2):
        assert missing(engine, NOON + 3 * HOUR) == [NOON, NOON + HOUR, NOON + 2 * HOUR]


def test_pruned_hours_are_not_missing(engine: Engine) -> None:
    write(engine, call(NOON), call(NOON + 9 * HOUR))
    policy = CatchUpPolicy(START, NOON + 7 * HOUR, 744, 3)
    assert missing(engine, NOON + 10 * HOUR, policy) == [NOON + number * HOUR for number in (7, 8, 9)]


@given(st.sets(st.integers(0, 99), min_size=1), st.sets(st.integers(0, 99)), st.integers(0, 110))
@examples(12)
def test_done_and_missing_hours_are_all_from_the_first_call_on(
    engine: Engine, called: set[int], done: set[int], closed: int
) -> None:
    erase(engine)
    write(engine, *(call(NOON + number * HOUR) for number in called))
    run(engine, *(NOON + number * HOUR for number in done))
    wanted = [NOON + number * HOUR for number in range(min(called), closed) if number not in done]
    assert missing(engine, NOON + closed * HOUR) == wanted


# What to launch


def test_catch_up_asks_for_what_lacks_newest_first(engine: Engine) -> None:
    hours = [NOON + number * HOUR for number in range(10)]
    write(engine, call(NOON))
    run(engine, *hours[3:7])
    found = catch_up(engine, hours[-1] + HOUR)
    assert found.ranges == (Window(hours[0], hours[-1] + HOUR),)
    assert found.hours == 6
    short = CatchUpPolicy(START, None, 3, 3)
    assert catch_up(engine, hours[-1] + HOUR, short).ranges == (
        Window(hours[7], hours[-1] + HOUR),
        Window(hours[0], hours[3]),
    )


def test_catch_up_leaves_out_what_is_queued_or_running(engine: Engine) -> None:
    hours = [NOON + number * HOUR for number in range(4)]
    write(engine, call(NOON))
    found = catch_up(engine, hours[-1] + HOUR, in_flight={hours[1], hours[2]})
    assert found.ranges == (Window(hours[3], hours[3] + HOUR), Window(hours[0], hours[1]))
    assert found.in_flight == 2


def test_nothing_missing_is_nothing_to_launch(engine: Engine) -> None:
    write(engine, call(NOON))
    run(engine, NOON)
    assert catch_up(engine, NOON + HOUR) == CatchUp((), 0, (), 0)


def test_an_hour_that_keeps_failing_is_given_up_after_its_attempts_and_the_others_are_done(engine: Engine) -> None:
    """One failing hour was skipped for ever by a watermark; asked for again every hour it would never end."""
    odd = [call(NOON, input_tokens=2**62) for _ in range(2)]
    write(engine, *odd, call(NOON - HOUR), call(NOON + HOUR))
    closed = NOON + 2 * HOUR
    for attempt in range(1, 4):
        found = catch_up(engine, closed)
        assert NOON in {hour for window in found.ranges for hour in window}
        assert found.given_up == ()
        run(engine, *(hour for window in found.ranges for hour in window))
        with reading(engine) as connection:
            assert failed_attempts(connection) == {NOON: attempt}
    assert missing(engine, closed) == [NOON]
    assert catch_up(engine, closed) == CatchUp((), 0, (NOON,), 0)
    # More patience, or somebody who mends the call and runs the hour by hand.
    assert catch_up(engine, closed, CatchUpPolicy(START, None, 744, 4)).hours == 1
    for one in odd:
        change(engine, one, input_tokens=1)
    # Whoever mends the calls need not ask for the hour as well.
    assert catch_up(engine, closed).ranges == (Window(NOON, NOON + HOUR),)
    run(engine, NOON)
    assert catch_up(engine, closed) == CatchUp((), 0, (), 0)


# Calls of no hour


def test_calls_from_the_future_are_counted(engine: Engine) -> None:
    now = NOON + timedelta(minutes=30)
    write(engine, call(NOON), call(now), call(NOON + HOUR - timedelta(microseconds=1)))
    assert future(engine, now) == 0
    write(engine, call(NOON + HOUR), call(at("2036-01-01 00:00")))
    assert future(engine, now) == 2


@pytest.mark.parametrize(
    "spell",
    [
        lambda time: time.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        lambda time: time.strftime("%Y-%m-%d %H:%M"),
        lambda time: (time + timedelta(hours=14)).strftime("%Y-%m-%dT%H:%M:%S+14:00"),
    ],
)
def test_a_call_of_today_is_not_from_the_future_however_it_is_spelled(
    sqlite_engine: Engine, spell: Callable[[datetime], str]
) -> None:
    """As text, `2026-03-10T00:00` is greater than `2026-03-10 23:59`."""
    now = at("2026-03-10 23:59")
    statement = "INSERT INTO model_calls (id, model, called_at) VALUES (:id, 'gpt', :called_at)"
    execute(sqlite_engine, statement, id="1", called_at=spell(now.replace(hour=0)))
    execute(sqlite_engine, statement, id="2", called_at=spell(now))
    assert future(sqlite_engine, now) == 0
    execute(sqlite_engine, statement, id="3", called_at=spell(now + timedelta(minutes=1)))
    assert future(sqlite_engine, now) == 1


@pytest.mark.parametrize("text", ["yesterday", "", "1773144000", "2026-03-10T12:00:00+0000", "10.03.2026 12:00"])
def test_a_call_at_a_time_nobody_can_read_is_counted(sqlite_engine: Engine, text: str) -> None:
    """It can be in no hour: unless it is counted somewhere, nobody learns that it is not."""
    write(sqlite_engine, call(NOON))
    statement = "INSERT INTO model_calls (id, model, called_at) VALUES ('odd', 'gpt', :called_at)"
    execute(sqlite_engine, statement, called_at=text)
    assert future(sqlite_engine, NOON) == 1


@pytest.mark.parametrize("moment", ["58158-01-01 00:00+00", "infinity"])
def test_a_call_at_an_impossible_time_is_counted(postgres_engine: Engine, moment: str) -> None:
    statement = f"INSERT INTO model_calls (id, model, called_at) VALUES ('odd', 'gpt', '{moment}')"
    execute(postgres_engine, statement)
    assert future(postgres_engine, NOON) == 1


def test_anomalies_of_recent_hours_are_read_from_what_was_counted(engine: Engine) -> None:
    write(engine, call(NOON - HOUR, status="odd"), call(NOON), call(NOON + HOUR, type="odd", input_tokens=-1))
    run(engine, NOON - HOUR, NOON, NOON + HOUR)
    with reading(engine) as connection:
        assert recent_anomalies(connection, NOON) == {NOON + HOUR: {"unknown_type": 1, "negative_value": 1}}
        assert recent_anomalies(connection, NOON - HOUR)[NOON - HOUR] == {"unknown_status": 1}
