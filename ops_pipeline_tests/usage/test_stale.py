"""Stale calls: every call that nobody ends is failed once, and whoever ends one himself is never overruled."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event, func, select, update

from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.database.errors import Unreachable
from ops_pipeline.reconcile import Change, Outcome
from ops_pipeline.settings import CALL_TYPES
from ops_pipeline.usage import stale as module
from ops_pipeline.usage.hours import HOUR
from ops_pipeline.usage.late import LateCursor, LatePolicy, look_for_late_calls
from ops_pipeline.usage.stale import (
    EARLIEST,
    FEWEST_RECENT,
    LARGEST_BATCH,
    RECENT,
    SMALLEST_BATCH,
    Alarm,
    Cleaned,
    StaleCall,
    StaleCalls,
    StaleGroup,
    StalePolicy,
    alarm_of,
    fail_stale,
    find_stale,
    look_for_alarm,
    next_batch,
    outcome_of,
    plan_stale,
    timeout_text,
)
from ops_pipeline.usage.tables import hourly_model_usage, model_calls, usage_hours
from ops_pipeline_tests.usage.calls import (
    MILLISECOND,
    NOON,
    assert_rolled_up,
    call,
    change,
    erase,
    examples,
    execute,
    rows,
    run,
    write,
)

MINUTE = timedelta(minutes=1)
LIMIT = 30 * MINUTE
POLICY = StalePolicy(LIMIT, {"video": 120 * MINUTE, "embedding": 5 * MINUTE})
TIMED_OUT = "Timeout: Processing exceeded 30 minutes"
WRITTEN = {"status", "error_reason", "duration_seconds", "updated_at"}
"""The columns that a clean-up may write; the last by the database's trigger."""
ENDED = {"status": "success", "duration_seconds": 2400.0, "input_tokens": 70, "output_tokens": 7}
"""What a gateway writes when a call ends. It knows nothing of time-outs, and leaves `error_reason` alone."""


def clocked(engine: Engine, now: datetime) -> Engine:
    """Another engine of the same database, on which the database's own clock stands still at `now`."""
    if engine.dialect.name == "postgresql":
        execute(engine, "CREATE SCHEMA IF NOT EXISTS clock")
        execute(
            engine,
            "CREATE OR REPLACE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
            f" AS $$ SELECT timestamptz '{now.isoformat()}' $$",
        )
        path = {"options": "-csearch_path=clock,pg_catalog,public"}
        return connect(engine.url.update_query_dict(path).render_as_string(hide_password=False))
    plain = sqlite3.connect(":memory:", check_same_thread=False)

    def strftime(pattern: str, instant: Any) -> Any:
        moment = f"{now:%Y-%m-%d %H:%M:%S.%f}" if instant == "now" else instant
        return plain.execute("SELECT strftime(?, ?)", (pattern, moment)).fetchone()[0]

    other = connect(engine.url.render_as_string(hide_password=False))

    @event.listens_for(other, "connect")
    def replace_clock(connection: Any, _record: Any) -> None:
        # An index and the triggers use the function too.
        connection.create_function("strftime", 2, strftime, deterministic=True)

    return other


@pytest.fixture
def noon(engine: Engine) -> Iterator[Engine]:
    """The operations database at noon."""
    at_noon = clocked(engine, NOON)
    yield at_noon
    at_noon.dispose()


def again(engine: Engine) -> Engine:
    """Another engine of the same database, as another process has; it waits for no lock of PostgreSQL for long."""
    url = engine.url
    if engine.dialect.name == "postgresql":
        url = url.update_query_dict({"options": f"{url.query.get('options', '')} -clock_timeout=5s"})
    return connect(url.render_as_string(hide_password=False))


def processing(age: timedelta, **fields: Any) -> dict[str, Any]:
    """A call that began so long before noon and has not ended."""
    unfinished = {"status": "processing", "duration_seconds": None, "ttfb_ms": None}
    return call(NOON - age, **(unfinished | fields))


def look(engine: Engine, policy: StalePolicy = POLICY) -> StaleCalls:
    with reading(engine) as connection:
        return find_stale(connection, policy)


def clean(engine: Engine, policy: StalePolicy = POLICY) -> Cleaned:
    """Fail what is stale at noon."""
    return fail_stale(engine, NOON, policy)


def state(engine: Engine, one: dict[str, Any]) -> tuple[str, str | None, float | None]:
    """Status, error and duration of a call."""
    names = model_calls.c.status, model_calls.c.error_reason, model_calls.c.duration_seconds
    with reading(engine) as connection:
        row = connection.execute(select(*names).where(model_calls.c.id == one["id"])).one()
    return row.status, row.error_reason, row.duration_seconds


def failed_ids(engine: Engine) -> set[str]:
    with reading(engine) as connection:
        return set(connection.scalars(select(model_calls.c.id).where(model_calls.c.status == "failed")))


UNTOUCHED = ("processing", None, None)


# What becomes of a call


def test_a_call_that_nobody_ends_becomes_failed(noon: Engine) -> None:
    """Calls of a gateway that had died were shown as processing for ever, and held up the bills of their month."""
    one = processing(LIMIT + MILLISECOND)
    write(noon, one)
    found = look(noon)
    assert (found.now, found.processing, found.calls) == (NOON, 1, 1)
    cleaned = fail_stale(noon, found.now, POLICY)
    assert cleaned.counts == {("openai", "gpt", "chatCompletion"): 1}
    assert (cleaned.calls, cleaned.batches, cleaned.oldest) == (1, 1, one["called_at"])
    assert cleaned.examples == (StaleCall(one["id"], "openai", "gpt", "chatCompletion", one["called_at"]),)
    assert state(noon, one) == ("failed", TIMED_OUT, 1800.0)
    assert look(noon) == StaleCalls(NOON, 0, None, ())


def test_nothing_else_of_the_call_is_touched(noon: Engine) -> None:
    one = processing(
        timedelta(days=3),
        error_reason="retried once",
        ttfb_ms=12.5,
        media_seconds=3.25,
        cache_read_tokens=4,
        request_id="r-1",
        trace_id="t-1",
        credential_id="key-1",
    )
    other = processing(timedelta(days=3), status="success")
    write(noon, one, other)
    before = rows(noon, model_calls)
    assert clean(noon).calls == 1
    after = rows(noon, model_calls)
    assert [{name: row[name] for name in row if name not in WRITTEN} for row in after] == [
        {name: row[name] for name in row if name not in WRITTEN} for row in before
    ]
    assert after[-1] == before[-1]
    assert state(noon, one) == ("failed", TIMED_OUT, 1800.0)


@pytest.mark.parametrize(
    ("recorded", "kept"),
    [(None, 1800.0), (-5.0, 1800.0), (0.0, 1800.0), (1799.9, 1800.0), (1800.0, 1800.0), (7200.5, 7200.5)],
)
def test_the_duration_is_the_limit_at_least_and_not_the_delay_of_the_cleaner(
    noon: Engine, recorded: float | None, kept: float
) -> None:
    """A cleaner that was down for a weekend made calls of two days: the averages of the month were useless."""
    one = processing(timedelta(days=7), duration_seconds=recorded)
    write(noon, one)
    clean(noon)
    assert state(noon, one)[2] == kept


def test_each_type_has_its_own_limit(noon: Engine) -> None:
    ages = {"video": 120, "embedding": 5, "chatCompletion": 30, "custom": 30, "telepathy": 30}
    for type_, minutes in ages.items():
        over = processing(minutes * MINUTE + MILLISECOND, type=type_)
        under = processing(minutes * MINUTE - MILLISECOND, type=type_)
        write(noon, over, under)
        assert clean(noon).counts == {("openai", "gpt", type_): 1}
        assert state(noon, over) == ("failed", f"Timeout: Processing exceeded {minutes} minutes", minutes * 60.0)
        assert state(noon, under) == UNTOUCHED


def test_without_limits_of_types_one_limit_holds_for_all(noon: Engine) -> None:
    calls = [processing(31 * MINUTE, type=type_) for type_ in (*CALL_TYPES, None, "", "telepathy")]
    young = processing(29 * MINUTE, type="video")
    write(noon, young, *calls)
    plain = StalePolicy(LIMIT)
    assert look(noon, plain).calls == clean(noon, plain).calls == len(calls)
    assert {state(noon, one) for one in calls} == {("failed", TIMED_OUT, 1800.0)}
    assert state(noon, young) == UNTOUCHED


def test_a_call_without_type_or_provider_is_no_exception(noon: Engine) -> None:
    """NULL is neither equal to "video" nor different from it: such calls were never cleaned up."""
    bare = [processing(LIMIT + MINUTE, type=type_, provider=None) for type_ in (None, "")]
    young = processing(LIMIT - MINUTE, type=None, provider=None)
    write(noon, young, *bare)
    (group,) = look(noon).groups
    assert group == StaleGroup("", "gpt", "", 2, NOON - LIMIT - MINUTE, LIMIT)
    assert clean(noon).counts == {("", "gpt", ""): 2}
    assert {state(noon, one) for one in bare} == {("failed", TIMED_OUT, 1800.0)}
    assert state(noon, young) == UNTOUCHED


def test_a_call_exactly_at_its_limit_stays(noon: Engine) -> None:
    at_limit = [processing(LIMIT), processing(120 * MINUTE, type="video"), processing(5 * MINUTE, type="embedding")]
    write(noon, *at_limit)
    assert (look(noon).processing, look(noon).calls) == (3, 0)
    assert clean(noon) == Cleaned({}, None, (), 0, 0.0)
    assert fail_stale(noon, NOON + MILLISECOND, POLICY).calls == 3


def test_calls_of_other_statuses_are_none_of_its_business(noon: Engine) -> None:
    others = [processing(timedelta(days=1), status=status) for status in ("success", "failed", "Processing", "", None)]
    write(noon, *others)
    before = rows(noon, model_calls)
    assert look(noon) == StaleCalls(NOON, 0, None, ())
    assert clean(noon).calls == 0
    assert rows(noon, model_calls) == before


def test_a_call_of_the_future_is_not_stale(noon: Engine) -> None:
    write(noon, processing(-HOUR))
    assert (look(noon).processing, look(noon).calls) == (1, 0)
    assert clean(noon).calls == 0


@pytest.mark.parametrize(("ahead", "stale"), [(3 * HOUR, 1), (-3 * HOUR, 0)])
def test_the_databases_clock_decides_and_not_the_hosts(engine: Engine, ahead: timedelta, stale: int) -> None:
    """A host whose clock was an hour ahead failed every call that was running."""
    host = datetime.now(UTC)
    write(engine, call(host - (MINUTE if stale else HOUR), status="processing"))
    elsewhere = clocked(engine, host + ahead)
    found = look(elsewhere)
    assert abs(found.now - host - ahead) <= MILLISECOND
    assert (found.processing, found.calls) == (1, stale)
    assert fail_stale(elsewhere, found.now, POLICY).calls == stale
    elsewhere.dispose()


def test_the_clock_of_a_real_database_runs(engine: Engine) -> None:
    now = datetime.now(UTC)
    write(engine, call(now - 31 * MINUTE, status="processing"), call(now - 29 * MINUTE, status="processing"))
    found = look(engine)
    assert timedelta(0) <= found.now - now + MILLISECOND < MINUTE
    assert (found.processing, found.calls) == (2, 1)
    assert fail_stale(engine, found.now, POLICY).calls == 1


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (LIMIT, TIMED_OUT),
        (timedelta(days=7), "Timeout: Processing exceeded 10080 minutes"),
        (timedelta(seconds=90), "Timeout: Processing exceeded 1.5 minutes"),
    ],
)
def test_the_limit_stands_in_the_error_as_a_person_would_write_it(limit: timedelta, text: str) -> None:
    assert timeout_text(limit) == text


# Times that are not as ours


def spelled(engine: Engine, *times: str) -> list[dict[str, Any]]:
    """Write processing calls whose times are spelled as given."""
    calls = [{"id": f"spelled-{number}"} for number, _ in enumerate(times)]
    for one, instant in zip(calls, times, strict=True):
        execute(
            engine,
            f"INSERT INTO model_calls (id, model, called_at) VALUES (:id, 'gpt', '{instant}')",
            id=one["id"],
        )
    return calls


@pytest.mark.parametrize(
    ("text", "stale"),
    [
        ("2026-03-10T11:29:59", True),
        ("2026-03-10T11:29:59Z", True),
        ("2026-03-10 11:29:59", True),
        ("2026-03-10 11:29:59.9", True),
        ("2026-03-10 11:29:59.998999999", True),
        ("2026-03-10T13:29:59.998+02:00", True),
        ("2026-03-10 06:29:59-05:00", True),
        ("2026-03-10 11:29", True),
        ("2026-03-10", True),
        ("2026-03-10T11:30:00", False),
        ("2026-03-10T11:30:00Z", False),
        ("2026-03-10 11:30:00.000000", False),
        ("2026-03-10 11:30:00.000000001", False),
        ("2026-03-10 13:30:00+02:00", False),
        ("2026-03-10T06:30:01-05:00", False),
        ("2026-03-11", False),
    ],
)
def test_every_spelling_of_sqlite_is_a_time(sqlite_engine: Engine, text: str, stale: bool) -> None:
    """Compared as text, "2026-03-10T..." is later than every "2026-03-10 ..." of the day."""
    (one,) = spelled(sqlite_engine, text)
    at_noon = clocked(sqlite_engine, NOON)
    assert (look(at_noon).processing, look(at_noon).calls) == (1, int(stale))
    assert clean(at_noon).calls == int(stale)
    assert state(sqlite_engine, one) == (("failed", TIMED_OUT, 1800.0) if stale else UNTOUCHED)
    at_noon.dispose()


def test_text_that_is_no_time_is_left_alone_and_stops_nothing(sqlite_engine: Engine) -> None:
    strange = spelled(
        sqlite_engine, "yesterday", "", "10.03.2026 09:00", "2026-13-01 00:00:00", "9999-12-31T23:59-05:00"
    )
    at_noon = clocked(sqlite_engine, NOON)
    assert (look(at_noon).processing, look(at_noon).oldest, look(at_noon).calls) == (5, None, 0)
    one = processing(HOUR)
    write(at_noon, one)
    assert (look(at_noon).oldest, look(at_noon).calls) == (one["called_at"], 1)
    assert clean(at_noon).calls == 1
    assert {state(at_noon, each) for each in strange} == {UNTOUCHED}
    at_noon.dispose()


@pytest.mark.parametrize("text", ["2026-02-30 12:00:00", "2026-03-09 24:00:00"])
def test_a_date_that_sqlite_knows_and_python_does_not_stops_nothing(sqlite_engine: Engine, text: str) -> None:
    (one,) = spelled(sqlite_engine, text)
    at_noon = clocked(sqlite_engine, NOON)
    assert look(at_noon).calls == 1
    assert clean(at_noon).calls == 1
    assert state(at_noon, one) == ("failed", TIMED_OUT, 1800.0)


def test_times_before_our_era_are_stale_and_those_that_python_does_not_know_stop_nothing(
    postgres_engine: Engine,
) -> None:
    """One call of the year 58158, milliseconds written as seconds, and no call was cleaned up any more."""
    future = spelled(postgres_engine, "58158-01-01 00:00:00+00", "infinity")
    at_noon = clocked(postgres_engine, NOON)
    assert look(at_noon) == StaleCalls(NOON, 2, None, ())
    execute(postgres_engine, "UPDATE model_calls SET id = 'future-' || id")
    spelled(postgres_engine, "-infinity", "4000-01-01 00:00:00+00 BC", "1969-12-31 23:59:59+00")
    write(postgres_engine, processing(HOUR))
    found = look(at_noon)
    assert (found.processing, found.calls, found.oldest) == (6, 4, EARLIEST)
    cleaned = clean(at_noon)
    assert (cleaned.calls, cleaned.oldest) == (4, EARLIEST)
    assert look(at_noon) == StaleCalls(NOON, len(future), None, ())
    at_noon.dispose()


# Calls that end at the same moment


def test_a_call_that_ends_between_look_and_clean_up_keeps_its_result(noon: Engine) -> None:
    ended, dead = processing(HOUR), processing(HOUR)
    write(noon, ended, dead)
    found = look(noon)
    change(noon, ended, **ENDED)
    before = rows(noon, model_calls)[0]
    cleaned = fail_stale(noon, found.now, POLICY)
    assert rows(noon, model_calls)[0] == before
    assert state(noon, dead)[0] == "failed"
    outcome = outcome_of(found, cleaned, POLICY)
    assert (outcome.scanned, outcome.changed, outcome.skipped, outcome.unchanged) == (2, 1, 1, 0)


def test_a_call_whose_writer_is_at_work_is_his(noon: Engine) -> None:
    """PostgreSQL leaves the row to the next run; on SQLite the clean-up waits, and sees what the writer left."""
    ended, dead = processing(HOUR), processing(HOUR)
    write(noon, ended, dead)
    found, results = look(noon), list[Cleaned]()
    own = again(noon)
    cleaner = threading.Thread(target=lambda: results.append(fail_stale(own, NOON, POLICY)))
    with writing(noon) as gateway:
        gateway.execute(update(model_calls).where(model_calls.c.id == ended["id"]).values(**ENDED))
        cleaner.start()
        cleaner.join(4 if noon.dialect.name == "postgresql" else 0.2)
        waits = cleaner.is_alive()
    cleaner.join()
    assert waits == (noon.dialect.name == "sqlite")
    assert results[0].calls == 1
    assert outcome_of(found, results[0], POLICY).skipped == 1
    assert state(noon, ended) == ("success", None, 2400.0)
    assert state(noon, dead) == ("failed", TIMED_OUT, 1800.0)
    own.dispose()


def test_a_call_whose_writer_gives_up_is_failed_by_the_next_run(postgres_engine: Engine) -> None:
    one, own = processing(HOUR), again(postgres_engine)
    write(postgres_engine, one)
    gateway = postgres_engine.connect()
    gateway.execute(update(model_calls).values(**ENDED))
    assert clean(own) == Cleaned({}, None, (), 0, 0.0)
    gateway.rollback()
    gateway.close()
    assert clean(own).calls == 1
    assert state(postgres_engine, one) == ("failed", TIMED_OUT, 1800.0)
    own.dispose()


def test_a_call_that_ends_while_it_is_being_failed_waits_and_wins(noon: Engine) -> None:
    """Between the look at a row and its UPDATE a result arrived, and "failed" was written over it."""
    one = processing(HOUR)
    write(noon, one)
    own, cleaner = again(noon), again(noon)
    gateway = threading.Thread(target=lambda: change(own, one, **ENDED))
    waited: list[bool] = []

    @event.listens_for(cleaner, "before_cursor_execute")
    def hook(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE model_calls"):
            gateway.start()
            gateway.join(0.3)
            waited.append(gateway.is_alive())

    assert clean(cleaner).calls == 1
    gateway.join()
    assert waited == [True]
    assert state(noon, one) == ("success", None, 2400.0)
    own.dispose()
    cleaner.dispose()


def test_two_clean_ups_at_once_fail_every_call_once(noon: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BATCH", 7)
    monkeypatch.setattr(module, "LARGEST_BATCH", 7)
    calls = [processing(HOUR + number * MINUTE) for number in range(60)]
    write(noon, *calls)
    count_failures(noon)
    engines, results = [again(noon), again(noon)], list[Cleaned]()
    barrier = threading.Barrier(2)

    def work(own: Engine) -> None:
        barrier.wait()
        results.append(clean(own))

    threads = [threading.Thread(target=work, args=(own,)) for own in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    # What one held at the other's last look is left to the next run.
    rest = clean(noon)
    assert sum(result.calls for result in results) + rest.calls == 60
    assert failures(noon) == Counter(one["id"] for one in calls)
    for own in engines:
        own.dispose()


# Calls that end afterwards


@pytest.mark.parametrize("type_", ["chatCompletion", "video"])
def test_a_success_that_comes_after_the_clean_up_wins(noon: Engine, type_: str) -> None:
    """A call of 40 minutes ended well, was billed, and stood in the list of time-outs."""
    one = processing(3 * HOUR, type=type_)
    write(noon, one)
    assert clean(noon).calls == 1
    change(noon, one, **ENDED)
    assert state(noon, one) == ("success", None, 2400.0)
    assert clean(noon).calls == 0
    assert state(noon, one) == ("success", None, 2400.0)


def test_a_gateway_that_writes_the_whole_row_again_wins_too(noon: Engine) -> None:
    one = processing(HOUR)
    write(noon, one)
    clean(noon)
    execute(
        noon,
        "INSERT INTO model_calls (id, model, called_at, status) VALUES (:id, 'gpt', '2026-03-10 11:00:00', 'success')"
        " ON CONFLICT (id) DO UPDATE SET status = excluded.status",
        id=one["id"],
    )
    assert state(noon, one)[:2] == ("success", None)


def test_a_failure_that_comes_afterwards_keeps_its_own_text(noon: Engine) -> None:
    one, silent = processing(HOUR), processing(HOUR)
    write(noon, one, silent)
    clean(noon)
    change(noon, one, status="failed", error_reason="quota exceeded", duration_seconds=1900.0)
    change(noon, silent, status="failed", duration_seconds=1900.0)
    assert state(noon, one) == ("failed", "quota exceeded", 1900.0)
    assert state(noon, silent) == ("failed", TIMED_OUT, 1900.0)


@pytest.mark.parametrize(
    "text", ["Timeout: upstream", "Timeout: Processing exceeded", "timeout: processing exceeded 30 minutes", "", "503"]
)
def test_texts_of_others_are_not_cleared(noon: Engine, text: str) -> None:
    one = processing(MINUTE, error_reason=text)
    write(noon, one)
    change(noon, one, **ENDED)
    assert state(noon, one) == ("success", text, 2400.0)


def test_a_call_that_goes_on_processing_is_failed_again(noon: Engine) -> None:
    """A gateway that retries says "processing" again; when that dies too, its call must come to an end as well."""
    one = processing(HOUR)
    write(noon, one)
    clean(noon)
    change(noon, one, status="processing")
    assert clean(noon).calls == 1
    assert state(noon, one) == ("failed", TIMED_OUT, 1800.0)


# The hours concerned

LOOK = LatePolicy(overlap=5 * MINUTE, sweep_every=timedelta(days=9999), sweep_hours=168)


def late_hours(engine: Engine) -> set[datetime]:
    """The hours that the look for late calls would have aggregated again."""
    with reading(engine) as connection:
        return set(look_for_late_calls(connection, LateCursor(), LOOK).stale)


def counted(engine: Engine) -> tuple[str, int, int, int]:
    """The state of the only hour, and its calls that are processing, failed and successful."""
    (hour,), (row,) = rows(engine, usage_hours), rows(engine, hourly_model_usage)
    return hour["state"], row["processing"], row["failed"], row["succeeded"]


def test_the_hours_of_failed_calls_are_aggregated_again_and_once_more_when_one_ends_well(engine: Engine) -> None:
    """An hour stayed provisional for ever, and its month with it."""
    one, other = processing(timedelta(0)), call(NOON + MINUTE)
    write(engine, one, other)
    run(engine, NOON)
    assert counted(engine) == ("provisional", 1, 0, 1)
    assert late_hours(engine) == set()

    found = look(engine)
    assert fail_stale(engine, found.now, POLICY).calls == 1
    assert late_hours(engine) == {NOON}
    run(engine, NOON)
    assert counted(engine) == ("complete", 0, 1, 1)
    assert late_hours(engine) == set()

    change(engine, one, **ENDED)
    assert late_hours(engine) == {NOON}
    run(engine, NOON)
    assert counted(engine) == ("complete", 0, 0, 2)
    assert_rolled_up(engine, [one, other])
    assert late_hours(engine) == set()


# Batches


def count_failures(engine: Engine) -> None:
    """Have the database itself write down each time that a call becomes failed."""
    execute(engine, "CREATE TABLE failures (id TEXT)")
    if engine.dialect.name == "postgresql":
        execute(
            engine,
            "CREATE FUNCTION note_failure() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN INSERT INTO failures VALUES (NEW.id); RETURN NULL; END $$",
        )
        body = "FOR EACH ROW WHEN (NEW.status = 'failed') EXECUTE FUNCTION note_failure()"
    else:
        body = "WHEN NEW.status = 'failed' BEGIN INSERT INTO failures VALUES (NEW.id); END"
    execute(engine, f"CREATE TRIGGER note_failure AFTER UPDATE OF status ON model_calls {body}")


def failures(engine: Engine) -> Counter[str]:
    with reading(engine) as connection:
        return Counter(connection.exec_driver_sql("SELECT id FROM failures").scalars())


@pytest.mark.parametrize("same", [1, 2, 5, 6, 100], ids=lambda same: f"{same} at the same time")
@pytest.mark.parametrize("step", [MILLISECOND, timedelta(microseconds=100), MINUTE])
def test_every_call_is_failed_once_whatever_batches_and_ties_there_are(
    noon: Engine, same: int, step: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that went on strictly behind the last one's end left out the calls of the same moment."""
    monkeypatch.setattr(module, "FIRST_BATCH", 5)
    monkeypatch.setattr(module, "SMALLEST_BATCH", 3)
    monkeypatch.setattr(module, "LARGEST_BATCH", 7)
    calls = [processing(HOUR + (number // same) * step) for number in range(41)]
    young = [processing(MINUTE) for _ in range(5)]
    write(noon, *calls, *young)
    count_failures(noon)
    cleaned = clean(noon)
    assert failures(noon) == Counter(one["id"] for one in calls)
    assert cleaned.calls == 41
    assert 6 <= cleaned.batches <= 14
    assert 0 < cleaned.longest_seconds < 30
    oldest = min(one["called_at"] for one in calls)
    assert cleaned.oldest is not None
    assert abs(cleaned.oldest - oldest) < MILLISECOND
    assert len({one.id for one in cleaned.examples}) == len(cleaned.examples) == 20
    assert {state(noon, one) for one in young} == {UNTOUCHED}


def test_rows_that_somebody_holds_do_not_keep_those_behind_them_from_being_failed(
    postgres_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch was full of locked rows, looked empty, and the clean-up said that all was done."""
    for name in ("FIRST_BATCH", "SMALLEST_BATCH", "LARGEST_BATCH"):
        monkeypatch.setattr(module, name, 3)
    calls, own = [processing(2 * HOUR - number * MINUTE) for number in range(20)], again(postgres_engine)
    write(postgres_engine, *calls)
    held = {one["id"] for one in [*calls[:4], calls[9], calls[10]]}
    with writing(postgres_engine) as gateway:
        gateway.execute(update(model_calls).where(model_calls.c.id.in_(held)).values(input_tokens=1))
        assert clean(own).calls == 14
    assert failed_ids(postgres_engine) == {one["id"] for one in calls} - held
    assert clean(own).calls == 6
    own.dispose()


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 10])
def test_the_last_batch_may_be_full_or_empty(noon: Engine, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_BATCH", "SMALLEST_BATCH", "LARGEST_BATCH"):
        monkeypatch.setattr(module, name, 5)
    write(noon, *(processing(HOUR + number * MINUTE) for number in range(count)))
    cleaned = clean(noon)
    assert (cleaned.calls, cleaned.batches) == (count, math.ceil(count / 5))


sizes, durations = st.integers(SMALLEST_BATCH, LARGEST_BATCH), st.floats(0, 1e6)


@given(sizes, durations)
def test_a_batch_stays_within_its_bounds_and_at_most_doubles(size: int, seconds: float) -> None:
    assert SMALLEST_BATCH <= next_batch(size, seconds) <= min(2 * size, LARGEST_BATCH)


@given(sizes, durations, durations)
def test_the_slower_a_batch_was_the_smaller_is_the_next(size: int, one: float, other: float) -> None:
    assert next_batch(size, max(one, other)) <= next_batch(size, min(one, other))


@pytest.mark.parametrize(
    ("size", "seconds", "following"),
    [
        (1_000, 0.2, 1_000),
        (1_000, 0.4, 500),
        (1_000, 0.16, 1_250),
        (1_000, 0.01, 2_000),
        (1_000, 0.0, 2_000),
        (1_000, -1.0, 2_000),
        (15_000, 0.1, 20_000),
        (1_000, 60.0, 100),
        (100, 60.0, 100),
    ],
)
def test_a_batch_aims_at_a_fifth_of_a_second(size: int, seconds: float, following: int) -> None:
    assert next_batch(size, seconds) == following


# Errors


def fill_disk_at(engine: Engine, one: dict[str, Any]) -> None:
    """Have the disk be full as soon as one call is updated."""
    if engine.dialect.name == "postgresql":
        raising = "RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'"
        execute(engine, f"CREATE FUNCTION fill_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {raising}; END $$")
        body = f"FOR EACH ROW WHEN (NEW.id = '{one['id']}') EXECUTE FUNCTION fill_disk()"
    else:
        body = f"WHEN NEW.id = '{one['id']}' BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
    execute(engine, f"CREATE TRIGGER fill_disk BEFORE UPDATE ON model_calls {body}")


def test_an_error_in_the_middle_keeps_what_was_done_and_says_so(noon: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_BATCH", "SMALLEST_BATCH", "LARGEST_BATCH"):
        monkeypatch.setattr(module, name, 5)
    calls = [processing(2 * HOUR - number * MINUTE) for number in range(14)]
    write(noon, *calls)
    fill_disk_at(noon, calls[12])
    with pytest.raises(Unreachable) as caught:
        clean(noon)
    assert caught.value.__notes__ == ["10 stale calls were failed before."]
    assert failed_ids(noon) == {one["id"] for one in calls[:10]}
    assert {state(noon, one) for one in calls[10:]} == {UNTOUCHED}
    execute(noon, f"DROP TRIGGER fill_disk{' ON model_calls' if noon.dialect.name == 'postgresql' else ''}")
    assert clean(noon).calls == 4


def test_an_error_at_the_first_batch_says_that_nothing_was_done(noon: Engine) -> None:
    one = processing(HOUR)
    write(noon, one)
    fill_disk_at(noon, one)
    with pytest.raises(Unreachable) as caught:
        clean(noon)
    assert caught.value.__notes__ == ["0 stale calls were failed before."]
    assert state(noon, one) == UNTOUCHED


def test_a_database_that_cannot_be_looked_at_is_not_one_without_stale_calls(engine: Engine) -> None:
    """The original logged the error and returned "0 cleaned", every five minutes for a week."""
    execute(engine, "DROP TABLE model_calls")
    with pytest.raises(Unreachable):
        look(engine)
    with pytest.raises(Unreachable):
        clean(engine)
    with pytest.raises(Unreachable), reading(engine) as connection:
        look_for_alarm(connection, NOON, POLICY, None)


# Plans

POSTGRESQL_CALLS = """
    INSERT INTO model_calls (id, model, called_at, status)
    SELECT 'old-' || n, 'gpt', timestamptz '2026-03-10 12:00+00' - n * interval '31 seconds', 'success'
    FROM generate_series(1, 5000) AS n
"""
SQLITE_CALLS = """
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 5000)
    INSERT INTO model_calls (id, model, called_at, status)
    SELECT 'old-' || n, 'gpt', strftime('%Y-%m-%d %H:%M:%S', '2026-03-10 12:00', (-31 * n) || ' seconds'), 'success'
    FROM numbers
"""


def plans_of(engine: Engine, work: Callable[[], object]) -> list[tuple[str, list[str]]]:
    """The statements on `model_calls` that are sent meanwhile, each with the lines of its plan."""
    statements: list[tuple[str, Any]] = []

    def remember(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "model_calls" in statement:
            statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", remember)
    work()
    event.remove(engine, "before_cursor_execute", remember)
    explain = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with reading(engine) as connection:
        return [
            (statement, [str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)])
            for statement, parameters in statements
        ]


@pytest.mark.parametrize("policy", [POLICY, StalePolicy(LIMIT)], ids=["by type", "one limit"])
def test_finished_calls_are_not_looked_at(noon: Engine, policy: StalePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every five minutes a scan of some million calls, to find three."""
    for name in ("FIRST_BATCH", "SMALLEST_BATCH", "LARGEST_BATCH"):
        monkeypatch.setattr(module, name, 10)
    execute(noon, POSTGRESQL_CALLS if noon.dialect.name == "postgresql" else SQLITE_CALLS)
    write(noon, *(processing(HOUR + number * MINUTE) for number in range(15)), processing(MINUTE))
    execute(noon, "ANALYZE")
    looks = plans_of(noon, lambda: look(noon, policy))
    batches = plans_of(noon, lambda: clean(noon, policy))
    selects = [(statement, plan) for statement, plan in batches if statement.startswith("SELECT")]
    assert (len(looks), len(batches), len(selects)) == (2, 4, 2)
    # The second batch goes on where the first one ended.
    assert [statement.count(">=") for statement, _ in selects] == [0, 1]
    for statement, plan in [*looks, *selects]:
        # Sent as a parameter, PostgreSQL would know it here, and no longer once the statement is prepared.
        assert "model_calls.status = 'processing'" in statement
        assert "model_calls_processing" in "\n".join(plan)
    for _, plan in [*looks, *batches]:
        for line in plan:
            assert "Seq Scan on model_calls" not in line
            assert "model_calls" not in line or "INDEX" in line.upper() or "Bitmap Heap" in line or "Update" in line


def test_the_alarm_reads_its_hour_only(noon: Engine) -> None:
    execute(noon, POSTGRESQL_CALLS if noon.dialect.name == "postgresql" else SQLITE_CALLS)
    execute(noon, "ANALYZE")
    ((_, plan),) = plans_of(noon, lambda: alarm(noon))
    assert "model_calls_called" in "\n".join(plan)
    assert "Seq Scan on model_calls" not in "\n".join(plan)


# What is told


def test_stale_calls_are_told_by_provider_model_and_type(noon: Engine) -> None:
    def several(count: int, **fields: Any) -> list[dict[str, Any]]:
        return [processing(40 * MINUTE + number * MINUTE, **fields) for number in range(count)]

    write(
        noon,
        *several(2, provider="openai", model="gpt"),
        *several(3, provider="mistral", model="large"),
        *several(3, provider="mistral", model="large", type="embedding"),
        *several(3, provider="anthropic", model="opus"),
        *several(2, provider=None, model="gpt", type=None),
        processing(125 * MINUTE, model="sora", type="video"),
        processing(115 * MINUTE, model="sora", type="video"),
        processing(MINUTE),
    )
    found = look(noon)
    assert [(group.provider, group.model, group.type, group.calls) for group in found.groups] == [
        ("anthropic", "opus", "chatCompletion", 3),
        ("mistral", "large", "chatCompletion", 3),
        ("mistral", "large", "embedding", 3),
        ("", "gpt", "", 2),
        ("openai", "gpt", "chatCompletion", 2),
        ("openai", "sora", "video", 1),
    ]
    assert [(NOON - group.oldest) / MINUTE for group in found.groups] == [42, 42, 42, 41, 41, 125]
    assert [group.limit / MINUTE for group in found.groups] == [30, 30, 5, 30, 30, 120]
    assert (found.calls, found.processing, found.oldest) == (14, 16, NOON - 125 * MINUTE)
    assert clean(noon).counts == {(group.provider, group.model, group.type): group.calls for group in found.groups}


def test_the_plan_says_what_is_failed_and_why() -> None:
    groups = (
        StaleGroup("openai", "sora", "video", 7, NOON - 3 * HOUR, 120 * MINUTE),
        StaleGroup("", "gpt", "", 1, NOON - HOUR, LIMIT),
    )
    plan = plan_stale(StaleCalls(NOON, 20, NOON - 3 * HOUR, groups))
    assert plan.scanned == 20
    assert plan.changes == (
        Change(
            "7 calls of openai sora video",
            "fail",
            "Timeout: Processing exceeded 120 minutes",
            "processing since 2026-03-10 09:00:00",
        ),
        Change("1 call of (no provider) gpt", "fail", TIMED_OUT, "processing since 2026-03-10 11:00:00"),
    )
    assert plan_stale(StaleCalls(NOON, 3, NOON, ())).changes == ()


def test_the_outcome_counts_every_call_that_was_processing() -> None:
    groups = (
        StaleGroup("openai", "gpt", "chatCompletion", 5, NOON, LIMIT),
        StaleGroup("openai", "sora", "video", 3, NOON, 120 * MINUTE),
    )
    found = StaleCalls(NOON, 20, NOON, groups)
    failed = {("openai", "gpt", "chatCompletion"): 3, ("mistral", "large", ""): 1, ("openai", "sora", "video"): 3}
    long = "Timeout: Processing exceeded 120 minutes"
    assert outcome_of(found, Cleaned(failed, NOON, (), 1, 0.1), POLICY) == Outcome(
        scanned=20, changed=7, unchanged=12, skipped=1, reasons={TIMED_OUT: 4, long: 3}
    )
    more = Cleaned(failed | {("openai", "gpt", ""): 9}, NOON, (), 1, 0.1)
    assert outcome_of(found, more, POLICY).skipped == 0


# The alarm


@pytest.mark.parametrize(
    ("calls", "failed", "cleaned", "raised"),
    [
        (20, 4, 4, True),
        (20, 3, 3, False),
        (19, 19, 19, False),
        (20, 20, 20, True),
        (0, 0, 0, False),
        (0, 0, 19, False),
        (0, 0, 20, True),
        (100, 0, 24, False),
        (100, 0, 25, True),
        (100, 20, 0, True),
        (99, 19, 20, True),
        (100, 19, 20, False),
        (100, 19, 19, False),
    ],
)
def test_a_fifth_of_twenty_calls_is_an_alarm(calls: int, failed: int, cleaned: int, raised: bool) -> None:
    older = max(0, cleaned - failed)
    assert alarm_of(calls, failed, cleaned, 0.2) == Alarm(failed + older, calls + older, raised)


@given(st.integers(1, 100), st.integers(1, 50))
def test_a_share_exactly_at_the_limit_raises_and_one_call_less_does_not(percent: int, hundreds: int) -> None:
    """0.07 * 100 is a little more than 7 in floating point: seven of a hundred raised no alarm."""
    share, calls, failed = float(f"{percent / 100:.2f}"), 100 * hundreds, percent * hundreds
    assert alarm_of(calls, failed, failed, share).raised
    assert not alarm_of(calls, failed - 1, failed - 1, share).raised


counts = st.integers(0, 200)


@given(counts, counts, counts, counts, st.floats(0.01, 1))
def test_more_calls_failed_never_end_an_alarm(others: int, failed: int, cleaned: int, more: int, share: float) -> None:
    calls = others + failed
    before, after = alarm_of(calls, failed, cleaned, share), alarm_of(calls, failed, cleaned + more, share)
    assert after.share >= before.share
    assert after.raised or not before.raised
    # More of the same calls, whether failed by this run or by the one before.
    assert alarm_of(calls + more, failed + more, cleaned + more, share).raised or not before.raised


@given(counts, counts, counts, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_lower_share_raises_whatever_a_higher_one_does(
    others: int, failed: int, cleaned: int, one: float, other: float
) -> None:
    lower, higher = sorted((one, other))
    assert alarm_of(others + failed, failed, cleaned, lower).raised or not (
        alarm_of(others + failed, failed, cleaned, higher).raised
    )


@given(counts, counts, counts, st.floats(0.01, 1))
def test_few_calls_raise_no_alarm(others: int, failed: int, cleaned: int, share: float) -> None:
    found = alarm_of(others + failed, failed, cleaned, share)
    assert 0 <= found.timed_out <= found.calls
    assert 0 <= found.share <= 1
    assert found.calls >= FEWEST_RECENT or not found.raised


def alarm(engine: Engine, cleaned: Cleaned | None = None, policy: StalePolicy = POLICY) -> Alarm:
    with reading(engine) as connection:
        return look_for_alarm(connection, NOON, policy, cleaned)


SECOND = timedelta(seconds=1)


@pytest.mark.parametrize("shift", [timedelta(0), 30 * MINUTE, 17 * MINUTE + 11 * SECOND])
def test_the_alarm_looks_at_the_calls_of_one_hour_before_the_limit_exactly(engine: Engine, shift: timedelta) -> None:
    """With whole hours instead, an outage of a quarter of an hour was a few percent."""
    policy = replace(POLICY, limit=LIMIT + shift)
    end = NOON - policy.limit
    start = end - RECENT
    inside = [start, start + SECOND, start + 30 * MINUTE, end - SECOND, end - MILLISECOND]
    outside = [start - MILLISECOND, start - SECOND, end, end + SECOND, NOON, start - HOUR]
    write(engine, *(call(moment) for moment in inside), *(call(moment) for moment in outside))
    assert alarm(engine, policy=policy) == Alarm(0, len(inside), raised=False)
    timed_out = {"status": "failed", "error_reason": TIMED_OUT}
    write(engine, *(call(moment, **timed_out) for moment in inside + outside))
    assert alarm(engine, policy=policy) == Alarm(len(inside), 2 * len(inside), raised=False)


def test_only_failed_calls_with_the_text_of_a_time_out_count_for_the_alarm(engine: Engine) -> None:
    moment = NOON - HOUR
    write(
        engine,
        call(moment, status="failed", error_reason=TIMED_OUT),
        call(moment, status="failed", error_reason="Timeout: Processing exceeded 120 minutes", type="video"),
        call(moment, status="failed", error_reason="Timeout: upstream"),
        call(moment, status="failed"),
        call(moment, status="success"),
        call(moment, status="processing"),
        call(moment, status=None, error_reason=TIMED_OUT),
    )
    assert alarm(engine) == Alarm(2, 7, raised=False)


def test_calls_failed_just_now_count_even_when_they_are_older(noon: Engine) -> None:
    """A cleaner that was down for a night failed thousands of calls, and all of the last hour were well."""
    write(noon, *(call(NOON - HOUR) for _ in range(40)))
    write(noon, *(processing(5 * HOUR) for _ in range(9)), processing(HOUR))
    cleaned = clean(noon)
    assert alarm(noon) == Alarm(1, 41, raised=False)
    assert alarm(noon, cleaned) == Alarm(10, 50, raised=True)


# Whatever calls there are

POLICIES = st.builds(
    StalePolicy,
    st.sampled_from([5, 30, 120]).map(lambda minutes: minutes * MINUTE),
    st.dictionaries(
        st.sampled_from(CALL_TYPES), st.sampled_from([1, 5, 30, 45, 120]).map(lambda minutes: minutes * MINUTE)
    ),
)
AGES = st.builds(
    lambda minutes, edge: minutes * MINUTE + edge * MILLISECOND,
    st.sampled_from([0, 1, 5, 30, 45, 120, 10_000, -60]),
    st.sampled_from([-1, 0, 0, 1]),
)
CALLS = st.lists(
    st.builds(
        processing,
        AGES,
        status=st.sampled_from(["processing"] * 4 + ["success", "failed", "", None, "on fire"]),
        type=st.sampled_from([*CALL_TYPES, None, "", "telepathy"]),
        provider=st.sampled_from([None, "", "openai"]),
        duration_seconds=st.sampled_from([None, -1.0, 0.0, 299.0, 301.0, 1800.0, 1e12, math.inf]),
        error_reason=st.sampled_from([None, "", "quota", TIMED_OUT]),
    ),
    max_size=25,
)


@given(CALLS, POLICIES, st.integers(1, 6))
@examples(60)
def test_one_clean_up_fails_what_is_stale_and_nothing_else(
    noon: Engine, calls: list[dict[str, Any]], policy: StalePolicy, batch: int
) -> None:
    erase(noon)
    write(noon, *calls)
    before = {row["id"]: row for row in rows(noon, model_calls)}

    def is_stale(one: dict[str, Any]) -> bool:
        return one["status"] == "processing" and NOON - one["called_at"] > policy.limit_of(one["type"] or "")

    stale = [one for one in calls if is_stale(one)]
    expected = Counter((one["provider"] or "", one["model"], one["type"] or "") for one in stale)
    found = look(noon, policy)
    assert {(group.provider, group.model, group.type): group.calls for group in found.groups} == expected
    assert found.processing == sum(one["status"] == "processing" for one in calls)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FIRST_BATCH", "SMALLEST_BATCH", "LARGEST_BATCH"):
            patch.setattr(module, name, batch)
        cleaned = clean(noon, policy)
    assert cleaned.counts == expected
    assert cleaned.calls == len(stale)
    after = {row["id"]: row for row in rows(noon, model_calls)}
    for one in stale:
        limit = policy.limit_of(one["type"] or "")
        took = max(one["duration_seconds"] or 0.0, limit.total_seconds())
        before[one["id"]] |= {"status": "failed", "error_reason": timeout_text(limit), "duration_seconds": took}
        before[one["id"]]["updated_at"] = after[one["id"]]["updated_at"]
    assert after == before
    assert look(noon, policy).calls == 0
    assert clean(noon, policy).calls == 0
    assert {row["id"]: row for row in rows(noon, model_calls)} == after
    with reading(noon) as connection:
        assert connection.scalar(select(func.count()).select_from(model_calls)) == len(calls)
