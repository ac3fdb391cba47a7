"""Late data: whatever happens to a call after its hour was aggregated is found, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, update

from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.database.snapshots import Writers
from ops_pipeline.usage import late as module
from ops_pipeline.usage.hours import HOUR
from ops_pipeline.usage.late import Late, LateCursor, LatePolicy, compare, look_for_late_calls, moved_on
from ops_pipeline.usage.tables import model_calls, usage_hours
from ops_pipeline_tests.usage.calls import (
    NOON,
    assert_rolled_up,
    backdate,
    call,
    change,
    examples,
    execute,
    meddle,
    remove,
    rows,
    run,
    write,
)

NEVER = timedelta(days=9999)
POLICY = LatePolicy(overlap=timedelta(minutes=5), sweep_every=NEVER, sweep_hours=168)
SWEEPING = replace(POLICY, sweep_every=timedelta(0))
LAST_YEAR = NOON - timedelta(days=365)


def look(engine: Engine, cursor: LateCursor, policy: LatePolicy = POLICY) -> Late:
    """Look for late calls, and pass the cursor through its JSON as the sensor does."""
    with reading(engine) as connection:
        found = look_for_late_calls(connection, cursor, policy)
    assert LateCursor.load(found.cursor.dump()) == found.cursor
    return found


def settled(engine: Engine) -> LateCursor:
    """The cursor of somebody who looked just now and has nothing left to do."""
    found = look(engine, LateCursor())
    # Autovacuum may be writing just now.
    while found.waiting or found.cursor.looked_until is None:
        assert found.stale == {}
        found = look(engine, found.cursor)
    assert found.stale == {}
    return found.cursor


def later(cursor: LateCursor) -> LateCursor:
    """The cursor after so long a time that all that was written so far lies before its overlap."""
    assert cursor.looked_until is not None
    return replace(cursor, looked_until=cursor.looked_until + timedelta(hours=1))


def aggregated(engine: Engine, *hours: datetime, each: int = 3) -> list[dict[str, Any]]:
    """Write calls in hours, and aggregate them a day later."""
    calls = [call(hour + minute * timedelta(minutes=7)) for hour in hours for minute in range(each)]
    write(engine, *calls)
    backdate(engine, *calls)
    run(engine, *hours)
    return calls


# What happens to calls


def inserted(engine: Engine, calls: list[dict[str, Any]]) -> None:
    """A call of long ago arrives, from a queue that was stuck."""
    calls.append(call(calls[0]["called_at"] + timedelta(minutes=1)))
    write(engine, calls[-1])


def inserted_by_somebody_else(engine: Engine, calls: list[dict[str, Any]]) -> None:
    """An import brings the times of its source along, those of the last change included."""
    moment = calls[0]["called_at"]
    calls.append(call(moment, created_at=moment, updated_at=moment))
    write(engine, calls[-1])


def completed(engine: Engine, calls: list[dict[str, Any]]) -> None:
    """A call ends, with what it used."""
    change(engine, calls[1], status="failed", input_tokens=999)


def changed_by_somebody_else(engine: Engine, calls: list[dict[str, Any]]) -> None:
    """A correction with a program that knows nothing of `updated_at`, or sets it to what it was."""
    execute(
        engine, "UPDATE model_calls SET input_tokens = 77, updated_at = updated_at WHERE id = :id", id=calls[1]["id"]
    )
    calls[1]["input_tokens"] = 77


def backdated(engine: Engine, calls: list[dict[str, Any]]) -> None:
    """A correction that claims to have been made long ago."""
    change(engine, calls[1], input_tokens=78, updated_at=calls[1]["called_at"])


def dated_ahead(engine: Engine, calls: list[dict[str, Any]]) -> None:
    """A correction from a host whose clock is ahead."""
    change(engine, calls[1], input_tokens=79, updated_at=datetime.now(UTC) + timedelta(days=3))


def erased(engine: Engine, calls: list[dict[str, Any]]) -> None:
    """A user's data is erased."""
    for one in calls:
        change(engine, one, user_id="")


def replaced(engine: Engine, calls: list[dict[str, Any]]) -> None:
    """A call is deleted and another inserted: their number is what it was."""
    remove(engine, calls.pop(1))
    calls.append(call(calls[0]["called_at"], updated_at=datetime.now(UTC)))
    write(engine, calls[-1])


WRITES = [
    inserted,
    inserted_by_somebody_else,
    completed,
    changed_by_somebody_else,
    backdated,
    dated_ahead,
    erased,
    replaced,
]


@pytest.mark.parametrize("hour", [NOON, LAST_YEAR], ids=["of today", "of last year"])
@pytest.mark.parametrize("happens", WRITES)
def test_a_change_after_the_aggregation_is_found_and_then_mended(
    engine: Engine, hour: datetime, happens: Callable[[Engine, list[dict[str, Any]]], None]
) -> None:
    """Late changes were seen until midnight, and never afterwards."""
    calls = aggregated(engine, hour)
    others = aggregated(engine, hour + HOUR, hour - 30 * HOUR)
    cursor = settled(engine)
    happens(engine, calls)
    found = look(engine, cursor)
    assert set(found.stale) == {hour}
    run(engine, *found.stale)
    assert_rolled_up(engine, calls + others)
    assert look(engine, found.cursor).stale == {}
    assert look(engine, later(found.cursor)).cursor.pending == frozenset()


def test_the_reason_is_told_in_words(engine: Engine) -> None:
    calls = aggregated(engine, NOON, NOON + HOUR)
    cursor = settled(engine)
    inserted(engine, calls)
    change(engine, calls[4], input_tokens=5)
    assert look(engine, cursor).stale == {
        NOON: "2026-03-10 12:00: 3 calls became 4",
        NOON + HOUR: "2026-03-10 13:00: calls changed after the hour was aggregated",
    }


def test_a_call_that_moves_makes_both_hours_late(engine: Engine) -> None:
    """The hour it left holds no row that was touched: only counting finds that."""
    calls = aggregated(engine, NOON, NOON + 5 * HOUR)
    cursor = settled(engine)
    change(engine, calls[0], called_at=NOON + 5 * HOUR)
    assert set(look(engine, cursor).stale) == {NOON + 5 * HOUR}
    found = look(engine, cursor, SWEEPING)
    assert set(found.stale) == {NOON, NOON + 5 * HOUR}
    run(engine, *found.stale)
    assert_rolled_up(engine, calls)
    assert look(engine, found.cursor, SWEEPING).stale == {}


def test_a_deleted_call_is_found_by_counting(engine: Engine) -> None:
    calls = aggregated(engine, NOON, NOON + HOUR)
    cursor = settled(engine)
    remove(engine, calls.pop(0))
    assert look(engine, cursor).stale == {}
    found = look(engine, later(cursor), SWEEPING)
    assert found.stale == {NOON: "2026-03-10 12:00: 3 calls became 2"}
    assert found.swept == 1
    run(engine, *found.stale)
    assert_rolled_up(engine, calls)
    assert look(engine, later(found.cursor), SWEEPING).stale == {}


def test_the_deletion_of_every_call_of_an_hour_is_found(engine: Engine) -> None:
    calls = aggregated(engine, NOON, NOON + HOUR)
    cursor = settled(engine)
    remove(engine, *calls[:3])
    assert set(look(engine, later(cursor), SWEEPING).stale) == {NOON}


# Nothing late


def test_nothing_late_is_nothing_stale_however_often_one_looks(engine: Engine) -> None:
    """Each look goes over the same minutes again: what it finds there must not launch runs for ever."""
    aggregated(engine, NOON)
    write(engine, call(NOON + HOUR))
    run(engine, NOON + HOUR)
    cursor = LateCursor()
    for policy in (POLICY, SWEEPING, POLICY, SWEEPING):
        found = look(engine, cursor, policy)
        assert (found.stale, found.cursor.pending) == ({}, frozenset())
        assert found.compared == 1
        cursor = found.cursor


def test_an_empty_database_has_nothing_late(engine: Engine) -> None:
    found = look(engine, LateCursor(), SWEEPING)
    assert (found.stale, found.compared, found.swept) == ({}, 0, 0)
    write(engine, call())
    assert look(engine, found.cursor, SWEEPING).stale == {}


def test_an_empty_hour_is_not_late(engine: Engine) -> None:
    run(engine, NOON)
    assert look(engine, LateCursor(), SWEEPING).stale == {}


def test_hours_never_aggregated_are_missing_and_not_late(engine: Engine) -> None:
    aggregated(engine, NOON)
    cursor = settled(engine)
    write(engine, call(NOON + HOUR), call(LAST_YEAR), call(datetime.now(UTC)))
    assert look(engine, cursor, SWEEPING).stale == {}


def test_pruned_hours_are_left_alone(engine: Engine) -> None:
    """The pruning of raw calls looks like a deletion of every call of those hours."""
    calls = aggregated(engine, NOON, NOON + HOUR, NOON + 2 * HOUR)
    cursor = settled(engine)
    remove(engine, *calls[:3])
    inserted(engine, calls[3:])
    policy = replace(SWEEPING, pruned_before=NOON + 2 * HOUR)
    assert look(engine, cursor, policy).stale == {}
    assert set(look(engine, cursor, replace(SWEEPING, pruned_before=NOON + HOUR)).stale) == {NOON + HOUR}
    waiting = replace(cursor, pending=frozenset({NOON}))
    found = look(engine, waiting, policy)
    assert (found.stale, found.cursor.pending) == ({}, frozenset())


# Commits out of order


def test_a_transaction_that_commits_after_the_look_is_found_by_the_next(engine: Engine) -> None:
    """Rows carry the time at which they were written, and become visible when their transaction commits."""
    calls = aggregated(engine, NOON)
    cursor = settled(engine)
    with writing(engine) as connection:
        connection.execute(update(model_calls).where(model_calls.c.id == calls[0]["id"]).values(input_tokens=99))
        connection.execute(insert(model_calls).values(**call(NOON)))
        before = look(engine, cursor)
        assert before.stale == {}
        between = look(engine, before.cursor)
        assert between.stale == {}
    assert set(look(engine, between.cursor).stale) == {NOON}


def test_a_call_that_changes_between_the_snapshot_and_the_commit_of_its_aggregation_is_found(engine: Engine) -> None:
    calls = aggregated(engine, NOON)
    cursor = settled(engine)
    other = connect(engine.url.render_as_string(hide_password=False))
    change(engine, calls[0], input_tokens=50)
    thread = meddle(engine, "INTO usage_hours", lambda: change(other, calls[1], input_tokens=51))
    run(engine, NOON)
    thread.join()
    found = look(engine, cursor)
    assert set(found.stale) == {NOON}
    run(engine, NOON)
    assert_rolled_up(engine, calls)
    assert look(engine, found.cursor).stale == {}
    other.dispose()


def test_a_look_during_the_first_aggregation_of_an_hour_loses_no_change(engine: Engine) -> None:
    """The hour is not known yet when its change is seen, and is known, from before the change, when it is not."""
    calls = [call(NOON), call(NOON)]
    aggregated(engine, NOON - HOUR)
    write(engine, *calls)
    cursors = [settled(engine)]
    other = connect(engine.url.render_as_string(hide_password=False))

    def meanwhile() -> None:
        change(other, calls[1], input_tokens=51)
        cursors.append(look(other, cursors[0]).cursor)

    thread = meddle(engine, "INTO usage_hours", meanwhile)
    run(engine, NOON)
    thread.join()
    assert set(look(engine, cursors[-1]).stale) == {NOON}
    other.dispose()


def test_a_row_is_found_even_if_its_time_was_cut_to_the_second(engine: Engine) -> None:
    """SQLite's CURRENT_TIMESTAMP has no fraction: a row written after a look seems to be older than it."""
    policy = replace(POLICY, overlap=timedelta(0))
    aggregated(engine, NOON)
    cursor = settled(engine)
    for _ in range(20):
        write(engine, call(NOON))
        found = look(engine, cursor, policy)
        assert set(found.stale) == {NOON}
        run(engine, NOON)
        cursor = replace(found.cursor, pending=frozenset())


# What is pending


def test_an_hour_stays_pending_until_it_agrees_again(engine: Engine) -> None:
    """The run that should mend it may fail, or never start: the hour must not be forgotten with its overlap."""
    calls = aggregated(engine, NOON, NOON + HOUR)
    change_seen = settled(engine)
    change(engine, calls[0], input_tokens=5)
    cursor = look(engine, change_seen).cursor
    for _ in range(3):
        found = look(engine, later(cursor))
        assert set(found.stale) == {NOON} == found.cursor.pending
        assert found.compared == 1
        cursor = found.cursor
    run(engine, NOON)
    found = look(engine, later(cursor))
    assert (found.stale, found.cursor.pending) == ({}, frozenset())


def test_a_pending_hour_whose_record_is_gone_is_left_to_catch_up(engine: Engine) -> None:
    aggregated(engine, NOON, NOON + HOUR)
    cursor = replace(settled(engine), pending=frozenset({NOON}))
    with writing(engine) as connection:
        connection.execute(delete(usage_hours).where(usage_hours.c.hour == NOON))
    assert look(engine, cursor).cursor.pending == frozenset()


def test_more_hours_than_one_look_compares_wait_for_the_next(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPARED_AT_ONCE", 10)
    hours = [NOON + number * HOUR for number in range(35)]
    calls = aggregated(engine, *hours, each=1)
    cursor = settled(engine)
    for one in calls:
        change(engine, one, input_tokens=5)
    found = look(engine, cursor)
    mended: list[datetime] = []
    for _ in range(4):
        assert found.compared <= 10
        mended += sorted(found.stale, reverse=True)
        run(engine, *found.stale)
        found = look(engine, later(found.cursor))
    assert mended == sorted(hours, reverse=True)
    assert found.stale == {}
    assert_rolled_up(engine, calls)


def test_hours_that_cannot_be_mended_do_not_keep_others_from_being_compared(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours that the guard refuses stay late for ever; behind 500 of them an older one was never looked at."""
    monkeypatch.setattr(module, "COMPARED_AT_ONCE", 10)
    hours = [NOON + number * HOUR for number in range(25)]
    calls = aggregated(engine, *hours, each=1)
    cursor = settled(engine)
    for one in calls:
        change(engine, one, input_tokens=5)
    seen: set[datetime] = set()
    for _ in range(4):
        found = look(engine, cursor)
        seen |= set(found.stale)
        cursor = later(found.cursor)
        assert cursor.pending == set(hours)
    assert seen == set(hours)


# The sweep


def test_deletions_in_old_hours_are_found_after_some_sweeps(engine: Engine) -> None:
    policy = replace(SWEEPING, sweep_hours=5)
    hours = [NOON + number * HOUR for number in range(33)]
    calls = aggregated(engine, *hours, each=1)
    remove(engine, calls[0], calls[11], calls[26], calls[32])
    cursor = later(LateCursor(looked_until=datetime.now(UTC)))
    seen: list[int] = []
    # The newest five each time, and the older 28 in slices of five.
    for _ in range(6):
        found = look(engine, cursor, policy)
        seen += [hours.index(hour) for hour in sorted(set(found.stale) - cursor.pending)]
        cursor = later(found.cursor)
    assert seen == [26, 32, 11, 0]
    assert cursor.sweep_next is None
    assert cursor.pending == {hours[0], hours[11], hours[26], hours[32]}


def test_the_rotation_of_sweeps_goes_on_for_ever(engine: Engine) -> None:
    policy = replace(SWEEPING, sweep_hours=4)
    hours = [NOON + number * HOUR for number in range(19)]
    calls = aggregated(engine, *hours, each=1)
    cursor = settled(engine)
    for turn in (1, 2, 3):
        remove(engine, calls[turn])
        found = set()
        for _ in range(4):
            looked = look(engine, later(cursor), policy)
            cursor, found = looked.cursor, found | set(looked.stale)
        assert found == {hours[turn]}
        run(engine, hours[turn], allow_shrink=True)


def test_hours_that_are_added_meanwhile_leave_no_gap_in_the_rotation(engine: Engine) -> None:
    policy = replace(SWEEPING, sweep_hours=4)
    hours = [NOON + number * HOUR for number in range(20)]
    calls = aggregated(engine, *hours[:14], each=1)
    cursor = look(engine, settled(engine), policy).cursor
    calls += aggregated(engine, *hours[14:], each=1)
    remove(engine, *calls)
    found: set[datetime] = set()
    for _ in range(6):
        looked = look(engine, later(cursor), policy)
        cursor, found = looked.cursor, found | set(looked.stale)
    assert found == set(hours)


def test_calls_are_counted_at_their_own_slower_pace(engine: Engine) -> None:
    policy = replace(POLICY, sweep_every=timedelta(minutes=10))
    calls = aggregated(engine, NOON, each=4)
    first = look(engine, LateCursor(), policy)
    assert first.cursor.swept_at == first.cursor.looked_until
    remove(engine, calls[0])
    soon = look(engine, later(first.cursor), policy)
    assert (soon.stale, soon.cursor.swept_at) == ({}, first.cursor.swept_at)
    assert soon.cursor.swept_at is not None
    aged = replace(soon.cursor, swept_at=soon.cursor.swept_at - timedelta(minutes=10))
    assert set(look(engine, later(aged), policy).stale) == {NOON}


def test_a_database_whose_clock_was_set_back_is_swept_again(engine: Engine) -> None:
    """With a last sweep in the future, none was due until the clock had caught up: for a year, in one case."""
    calls = aggregated(engine, NOON, each=4)
    cursor = replace(settled(engine), swept_at=datetime.now(UTC) + timedelta(days=365))
    remove(engine, calls[0])
    assert set(look(engine, cursor, replace(POLICY, sweep_every=timedelta(minutes=10))).stale) == {NOON}


def test_a_database_whose_clock_was_set_back_is_looked_at_from_its_present_on(engine: Engine) -> None:
    calls = aggregated(engine, NOON)
    cursor = replace(settled(engine), looked_until=datetime.now(UTC) + timedelta(days=365))
    change(engine, calls[0], input_tokens=5)
    assert set(look(engine, look(engine, cursor).cursor).stale) == {NOON}


# The cursor

instants = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(st.none() | instants, st.frozensets(instants, max_size=5), st.none() | instants, st.none() | instants)
@examples(50)
def test_a_cursor_survives_its_json(
    looked: datetime | None, pending: frozenset[datetime], swept: datetime | None, following: datetime | None
) -> None:
    cursor = LateCursor(looked, pending, swept, following, looked, swept, 7)
    assert LateCursor.load(cursor.dump()) == cursor


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{}",
        "no JSON",
        "[]",
        "7",
        "null",
        '"text"',
        '{"looked_until": 5}',
        '{"looked_until": "yesterday"}',
        '{"looked_until": {}}',
        '{"pending": 5}',
        '{"pending": [5]}',
        '{"pending": ["x"]}',
        '{"pending": null}',
        '{"looked_until": "2026-03-10T12:00:00"}',
        '{"swept_at": "2026-03-10T12:00:00"}',
        '{"pending": ["2026-03-10T12:00:00"]}',
        '{"sweep_next": "2026-03-10T12:00:00"}',
        '{"looked_until": "2026-03-10',
    ],
)
def test_an_unreadable_cursor_starts_over(engine: Engine, text: str | None) -> None:
    """A person can edit the cursor in the web UI; one that is damaged must not stop the sensor for ever."""
    assert LateCursor.load(text) == LateCursor()
    calls = aggregated(engine, NOON)
    change(engine, calls[0], input_tokens=5)
    assert set(look(engine, LateCursor.load(text)).stale) == {NOON}


@pytest.mark.parametrize(
    "fields",
    [
        {"sweep_next": "2026-03-10T12:34:56+00:00"},
        {"sweep_next": "1990-01-01T00:00:00+00:00"},
        {"sweep_next": "2990-01-01T00:00:00+00:00"},
        {"sweep_next": "2026-03-10T17:30:00+05:30"},
        {"pending": ["2026-03-10T12:34:56+00:00", "1990-01-01T00:00:00+00:00"]},
        {"looked_until": "1990-01-01T00:00:00+00:00"},
    ],
    ids=str,
)
def test_an_odd_cursor_does_no_harm(engine: Engine, fields: dict[str, Any]) -> None:
    hours = [NOON + number * HOUR for number in range(12)]
    calls = aggregated(engine, *hours, each=1)
    policy = replace(SWEEPING, sweep_hours=3)
    cursor = LateCursor.load(json.dumps(json.loads(settled(engine).dump()) | fields))
    remove(engine, calls[0])
    found: set[datetime] = set()
    for _ in range(6):
        looked = look(engine, cursor, policy)
        cursor, found = looked.cursor, found | set(looked.stale)
    assert found == {NOON}


# Transactions that take longer than the overlap


def test_a_call_of_a_transaction_that_takes_longer_than_the_overlap_is_found(
    postgres_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that committed after an hour had times of an hour ago, and every look had already gone past them."""
    monkeypatch.setattr(module, "LEAST_OVERLAP", timedelta(0))
    policy = replace(POLICY, overlap=timedelta(0))
    (first, *_) = aggregated(postgres_engine, NOON)
    cursor = settled(postgres_engine)
    other = connect(postgres_engine.url.render_as_string(hide_password=False))
    with other.connect() as writer, writer.begin():
        writer.execute(update(model_calls).where(model_calls.c.id == first["id"]).values(input_tokens=7))
        for _ in range(3):
            # Other writers come and go meanwhile.
            write(postgres_engine, call(datetime.now(UTC)))
            found = look(postgres_engine, cursor, policy)
            assert found.stale == {}
            cursor = found.cursor
    other.dispose()
    assert set(look(postgres_engine, cursor, policy).stale) == {NOON}


LOOKS = [NOON + number * timedelta(seconds=20) for number in range(5)]


def test_the_cursor_waits_for_the_writers_of_the_look_it_moves_to() -> None:
    cursor = moved_on(LateCursor(), LOOKS[0], Writers(oldest=10, next=12))
    assert (cursor.looked_until, cursor.checkpoint) == (None, LOOKS[0])
    cursor = moved_on(cursor, LOOKS[1], Writers(oldest=11, next=15))
    assert (cursor.looked_until, cursor.checkpoint) == (None, LOOKS[0])
    cursor = moved_on(cursor, LOOKS[2], Writers(oldest=12, next=15))
    assert (cursor.looked_until, cursor.checkpoint) == (LOOKS[0], LOOKS[2])
    cursor = moved_on(cursor, LOOKS[3], Writers(oldest=15, next=15))
    assert (cursor.looked_until, cursor.checkpoint) == (LOOKS[3], None)


def test_a_cursor_of_another_server_does_not_wait_for_numbers_that_never_come() -> None:
    """A database restored elsewhere counts its transactions from the start again."""
    before = LateCursor(looked_until=LOOKS[0], checkpoint=LOOKS[1], checkpoint_next=9_000_000)
    cursor = moved_on(before, LOOKS[2], Writers(oldest=700, next=702))
    assert (cursor.looked_until, cursor.checkpoint, cursor.checkpoint_next) == (LOOKS[0], LOOKS[2], 702)


# Calls from nowhere


@pytest.mark.parametrize("moment", ["58158-01-01 00:00+00", "infinity", "-infinity", "0044-03-15 00:00+00 BC"])
def test_a_call_at_an_impossible_time_does_not_stop_the_look(postgres_engine: Engine, moment: str) -> None:
    """Milliseconds taken for seconds are the year 58158, which PostgreSQL keeps and Python does not know."""
    calls = aggregated(postgres_engine, NOON)
    cursor = settled(postgres_engine)
    statement = f"INSERT INTO model_calls (id, model, called_at) VALUES ('odd', 'gpt', '{moment}')"
    execute(postgres_engine, statement)
    change(postgres_engine, calls[0], input_tokens=5)
    assert set(look(postgres_engine, cursor, SWEEPING).stale) == {NOON}
    assert set(look(postgres_engine, LateCursor(), SWEEPING).stale) == {NOON}


def test_a_call_at_a_time_nobody_can_read_does_not_stop_the_look(sqlite_engine: Engine) -> None:
    calls = aggregated(sqlite_engine, NOON)
    cursor = settled(sqlite_engine)
    execute(sqlite_engine, "INSERT INTO model_calls (id, model, called_at) VALUES ('odd', 'gpt', 'yesterday')")
    change(sqlite_engine, calls[0], input_tokens=5)
    assert set(look(sqlite_engine, cursor, SWEEPING).stale) == {NOON}


# Comparing


def test_hours_are_compared_in_as_many_queries_as_needed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOWS_PER_QUERY", 3)
    hours = [NOON + number * HOUR for number in range(0, 40, 2)]
    calls = aggregated(engine, *hours, each=1)
    for one in calls[::3]:
        change(engine, one, input_tokens=5)
    with reading(engine) as connection:
        found = compare(connection, [*reversed(hours), *hours[:3], NOON + HOUR])
    assert set(found) == {*hours[::3], NOON + HOUR}
    assert found[NOON + HOUR] == "2026-03-10 13:00: not aggregated yet"


def test_comparing_nothing_asks_nothing(engine: Engine) -> None:
    with reading(engine) as connection:
        assert compare(connection, []) == {}


def test_a_comparison_writes_nothing(engine: Engine) -> None:
    """A dashboard that wrote while it read moved the watermark, and hours were lost."""
    calls = aggregated(engine, NOON)
    change(engine, calls[0], input_tokens=5)
    before = rows(engine, usage_hours)
    look(engine, LateCursor(), SWEEPING)
    assert rows(engine, usage_hours) == before
