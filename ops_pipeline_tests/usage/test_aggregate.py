"""Aggregation of hours: what the rows hold, and that running again changes exactly what changed."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, delete
from sqlalchemy.exc import StatementError

from ops_pipeline.database.engine import writing
from ops_pipeline.settings import CALL_TYPES
from ops_pipeline.usage.aggregate import Policy, aggregate
from ops_pipeline.usage.hours import HOUR, floor_hour
from ops_pipeline.usage.tables import (
    CALL_STATUSES,
    COUNT_COLUMNS,
    hourly_model_latency,
    hourly_model_usage,
    usage_hour_attempts,
    usage_hours,
)
from ops_pipeline_tests.usage.calls import (
    NOON,
    arbitrary_calls,
    assert_rolled_up,
    at,
    call,
    change,
    contents,
    erase,
    examples,
    execute,
    expected_totals,
    remove,
    rows,
    run,
    totals,
    usable,
    write,
)


def results(engine: Engine, *hours: datetime, **policy: Any) -> dict[datetime, Any]:
    """Aggregate hours, none of which may fail, and return what was said of each."""
    chunks = run(engine, *hours, **policy)
    assert not [failure for chunk in chunks for failure in chunk.failures]
    return {result.hour: result for chunk in chunks for result in chunk.hours}


def done(engine: Engine) -> dict[datetime, dict[str, Any]]:
    """The rows of `usage_hours` by hour."""
    return {row["hour"]: row for row in rows(engine, usage_hours)}


# Grain and columns


def test_every_column_at_its_grain(engine: Engine) -> None:
    calls = [
        call(NOON),
        call(NOON + timedelta(minutes=59), duration_seconds=0.5, ttfb_ms=None, reasoning_tokens=7),
        call(NOON, user_id="ben", cache_read_tokens=3, cache_write_tokens=4),
        call(NOON, app_id="mail", status="failed", error_reason="500", duration_seconds=900.0, credits=Decimal(0)),
        call(NOON, provider="google", model="imagen", type="imageGeneration", images=4),
        call(NOON, provider="google", model="veo", type="video", media_seconds=8.25),
        call(NOON, provider="azure"),
        call(NOON + HOUR, status="processing", duration_seconds=None, ttfb_ms=None),
    ]
    write(engine, *calls)
    run(engine, NOON, NOON + HOUR)
    assert_rolled_up(engine, calls)
    assert len(rows(engine, hourly_model_usage)) == 7


def test_failed_and_unknown_calls_have_no_part_in_the_timings(engine: Engine) -> None:
    """A total without the failed calls says nothing of them; a mean with their time-outs says nothing of the rest."""
    calls = [call(duration_seconds=2.5, ttfb_ms=100.125)]
    calls += [call(status=status, duration_seconds=600.0, ttfb_ms=9.0) for status in ("failed", "processing", "odd")]
    write(engine, *calls)
    run(engine, NOON)
    (row,) = rows(engine, hourly_model_usage)
    assert (row["duration_seconds_sum"], row["duration_count"]) == (Decimal("2.5"), 1)
    assert (row["ttfb_ms_sum"], row["ttfb_count"]) == (Decimal("100.125"), 1)


def test_a_failed_call_counts_what_it_used(engine: Engine) -> None:
    write(engine, call(status="failed", input_tokens=70, output_tokens=3, credits=Decimal("0.5")))
    run(engine, NOON)
    (row,) = rows(engine, hourly_model_usage)
    assert (row["failed"], row["input_tokens"], row["output_tokens"], row["credits"]) == (1, 70, 3, Decimal("0.5"))


def test_every_spelling_of_no_user_and_no_app_is_one_key(engine: Engine) -> None:
    """Calls without a user were shown live and never stored: the totals of yesterday lacked them."""
    nobody = (None, "", "null")
    calls = [call(user_id=user, app_id=app) for user in nobody for app in nobody]
    write(engine, *calls)
    run(engine, NOON)
    (row,) = rows(engine, hourly_model_usage)
    assert (row["user_id"], row["app_id"], row["calls"]) == ("", "", 9)
    assert_rolled_up(engine, calls)


def test_a_writer_that_sets_only_id_model_and_time_is_counted(engine: Engine) -> None:
    execute(engine, "INSERT INTO model_calls (id, model, called_at) VALUES ('a', 'gpt', '2026-03-10 12:30:00+00:00')")
    found = results(engine, NOON)
    (row,) = rows(engine, hourly_model_usage)
    assert (row["calls"], row["processing"], row["type"], row["user_id"]) == (1, 1, "chatCompletion", "")
    assert found[NOON].state == "provisional"


def test_amounts_that_are_null_count_as_nothing(engine: Engine) -> None:
    empty = dict.fromkeys((*COUNT_COLUMNS, "media_seconds", "credits", "duration_seconds", "ttfb_ms"))
    calls = [call(**empty), call()]
    write(engine, *calls)
    assert not results(engine, NOON)[NOON].anomalies
    assert_rolled_up(engine, calls)


def test_tokens_beyond_31_bits_are_summed(engine: Engine) -> None:
    calls = [call(input_tokens=2**40), call(input_tokens=2**62 - 2**41), call(output_tokens=2**31)]
    write(engine, *calls)
    run(engine, NOON)
    assert_rolled_up(engine, calls)


def test_calls_of_one_request_are_all_counted(engine: Engine) -> None:
    """Retries and fallbacks share a request id, and each of them cost something."""
    write(engine, *(call(request_id="r", status=status) for status in ("failed", "failed", "success")))
    run(engine, NOON)
    assert totals(engine)["calls"] == 3


def test_the_result_of_an_hour_tells_its_totals(engine: Engine) -> None:
    calls = [call(), call(user_id="ben"), call(user_id="ben", status="processing"), call(model="o4", status="failed")]
    write(engine, *calls)
    (found,) = results(engine, NOON).values()
    assert (found.calls, found.processing, found.users, found.rows) == (4, 1, 2, 3)
    assert found.tokens["input_tokens"] == 40
    assert found.credits == 4 * Decimal("0.0123456789")
    assert [(total.model, total.calls, total.failed) for total in found.models] == [("gpt", 3, 0), ("o4", 1, 1)]


def test_ties_among_the_top_models_have_one_order(engine: Engine) -> None:
    write(engine, *(call(provider=f"p{number % 2}", model=f"m{number:02}") for number in range(14)))
    (found,) = results(engine, NOON).values()
    expected = [(f"p{number % 2}", f"m{number:02}") for number in range(14)]
    assert [(total.provider, total.model) for total in found.models] == sorted(expected)[:10]


# Absurd values are counted, and shown


def anomalies_of(calls: list[dict[str, Any]]) -> dict[str, int]:
    """How many calls are odd in which way."""
    amounts = (*COUNT_COLUMNS, "media_seconds", "duration_seconds", "ttfb_ms", "credits")
    timings = ("duration_seconds", "ttfb_ms", "media_seconds")
    counts = {
        "unknown_status": sum(one["status"] not in CALL_STATUSES for one in calls),
        "unknown_type": sum(one["type"] not in CALL_TYPES for one in calls),
        "negative_value": sum(any((one.get(name) or 0) < 0 for name in amounts) for one in calls),
        "longer_than_a_day": sum(86_400 < (one["duration_seconds"] or 0) <= 1e9 for one in calls),
        "unusable_duration": sum(
            any(one.get(name) is not None and not usable(one[name]) for name in timings) for one in calls
        ),
    }
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize(
    "fields",
    [
        {"status": None},
        {"status": ""},
        {"status": "on fire"},
        {"type": None},
        {"type": "telepathy"},
        {"input_tokens": -5},
        {"reasoning_tokens": -1},
        {"images": -1},
        {"credits": Decimal("-0.0000000001")},
        {"credits": Decimal(-123456)},
        {"duration_seconds": -0.5},
        {"duration_seconds": 86_400.5},
        {"duration_seconds": 1e12},
        {"duration_seconds": 1e306},
        {"duration_seconds": math.inf},
        {"duration_seconds": -math.inf},
        {"ttfb_ms": math.inf},
        {"media_seconds": -1e12},
        {"media_seconds": math.inf},
    ],
    ids=str,
)
def test_an_absurd_call_is_counted_as_such_and_not_lost(engine: Engine, fields: dict[str, Any]) -> None:
    calls = [call(), call(**fields)]
    write(engine, *calls)
    (found,) = results(engine, NOON).values()
    assert found.anomalies == anomalies_of(calls)
    assert sum(found.anomalies.values()) >= 1
    assert done(engine)[NOON]["anomalies"] == found.anomalies
    assert_rolled_up(engine, calls)


def test_a_timing_that_is_no_number_is_not_summed(engine: Engine) -> None:
    """One NaN made the mean of a whole month NaN. SQLite has none: it keeps NULL."""
    write(engine, call(), call(duration_seconds=math.nan, ttfb_ms=math.nan, media_seconds=math.nan))
    (found,) = results(engine, NOON).values()
    (row,) = rows(engine, hourly_model_usage)
    assert (row["duration_seconds_sum"], row["duration_count"]) == (Decimal(2), 1)
    assert (row["ttfb_ms_sum"], row["media_seconds"], row["calls"]) == (Decimal(300), Decimal(0), 2)
    assert found.anomalies == ({"unusable_duration": 1} if engine.dialect.name == "postgresql" else {})


def test_a_day_long_call_is_no_anomaly_and_a_longer_one_is_summed_all_the_same(engine: Engine) -> None:
    calls = [call(duration_seconds=86_400.0), call(duration_seconds=1e9)]
    write(engine, *calls)
    assert results(engine, NOON)[NOON].anomalies == {"longer_than_a_day": 1}
    assert_rolled_up(engine, calls)


def test_an_anomaly_that_was_mended_is_no_longer_counted(engine: Engine) -> None:
    odd = call(status="on fire")
    write(engine, odd)
    run(engine, NOON)
    change(engine, odd, status="success")
    assert not results(engine, NOON)[NOON].anomalies
    assert done(engine)[NOON]["anomalies"] == {}


# Times


@pytest.mark.parametrize(
    "called_at",
    [
        "2026-03-10 12:00:00",
        "2026-03-10 12:00:00.000001",
        "2026-03-10 12:59:59.999999",
        "2026-03-10 12:59:59.999500",
        "2026-03-10 12:59:59.999499",
        "2026-03-10 23:59:59.999999",
        "2026-03-11 00:00:00",
        "2026-03-31 23:59:59.999999",
        "2026-04-01 00:00:00",
        "2026-12-31 23:59:59.999999",
        "2028-02-29 23:59:59.999999",
        "2028-02-29 00:00:00",
        "2028-03-01 00:00:00",
    ],
)
def test_a_call_counts_in_the_hour_in_which_it_began(engine: Engine, called_at: str) -> None:
    """SQLite's date functions round to milliseconds: the last half of one belonged to the next hour, or to none."""
    one = call(at(called_at), duration_seconds=7200.0)
    hour = floor_hour(one["called_at"])
    others = [call(hour - HOUR), call(hour + HOUR)]
    write(engine, *others, one)
    for each in (hour - HOUR, hour, hour + HOUR):
        assert results(engine, each)[each].calls == 1
    assert_rolled_up(engine, [one, *others])
    results(engine, hour - HOUR, hour, hour + HOUR)
    assert_rolled_up(engine, [one, *others])


def test_a_night_in_which_clocks_change_has_its_24_hours(engine: Engine) -> None:
    night = [at("2026-03-28 20:00") + number * timedelta(minutes=20) for number in range(36)]
    night += [at("2026-10-24 20:00") + number * timedelta(minutes=20) for number in range(36)]
    calls = [call(moment) for moment in night]
    write(engine, *calls)
    found = results(engine, *{floor_hour(moment) for moment in night})
    assert {each.calls for each in found.values()} == {3}
    assert_rolled_up(engine, calls)


def test_the_zone_of_the_server_does_not_matter(postgres_engine: Engine) -> None:
    execute(postgres_engine, f"ALTER DATABASE {postgres_engine.url.database} SET timezone = 'Asia/Kolkata'")
    postgres_engine.dispose()
    calls = [call(NOON + number * timedelta(minutes=15)) for number in range(8)]
    write(postgres_engine, *calls)
    run(postgres_engine, NOON, NOON + HOUR)
    assert_rolled_up(postgres_engine, calls)


def test_a_time_without_a_zone_is_refused_at_the_writing(engine: Engine) -> None:
    with pytest.raises(StatementError, match="no time zone"):
        write(engine, call(datetime(2026, 3, 10, 12)))  # noqa: DTZ001


@pytest.mark.parametrize(
    "called_at",
    [
        "2026-03-10 12:00",
        "2026-03-10 12:00:00",
        "2026-03-10T12:59:59",
        "2026-03-10T12:30:00Z",
        "2026-03-10T12:30:00.123Z",
        "2026-03-10T12:59:59.999Z",
        "2026-03-10 12:59:59.9999999",
        "2026-03-10T12:59:59.999999+00:00",
        "2026-03-10T18:29:59.999999+05:30",
        "2026-03-10 17:30:00+05:30",
        "2026-03-10T08:30:00-03:30",
        "2026-03-11T00:15:00+12:00",
        "2026-03-10T00:59:59.999999-12:00",
    ],
)
def test_sqlite_reads_the_times_that_other_programs_write(sqlite_engine: Engine, called_at: str) -> None:
    """A gateway in JavaScript writes 2026-03-10T12:00:00.000Z, one in Python local time with its offset."""
    write(sqlite_engine, call(NOON - HOUR), call(NOON + HOUR))
    statement = "INSERT INTO model_calls (id, model, called_at, credits) VALUES ('odd', 'gpt', :called_at, 0.1)"
    execute(sqlite_engine, statement, called_at=called_at)
    found = [results(sqlite_engine, hour)[hour] for hour in (NOON - HOUR, NOON, NOON + HOUR)]
    assert [each.calls for each in found] == [1, 1, 1]
    assert found[1].credits == Decimal("0.1")
    (there,) = [row for row in rows(sqlite_engine, hourly_model_usage) if row["hour"] == NOON]
    assert NOON <= there["last_called_at"] <= NOON + HOUR


def test_sqlite_groups_every_spelling_of_an_hour_together(sqlite_engine: Engine) -> None:
    spellings = ("2026-03-10 12:01:02", "2026-03-10T12:01:02.5Z", "2026-03-10T13:01:02+01:00")
    for number, spelling in enumerate(spellings):
        statement = "INSERT INTO model_calls (id, model, called_at) VALUES (:id, 'gpt', :called_at)"
        execute(sqlite_engine, statement, id=str(number), called_at=spelling)
    run(sqlite_engine, NOON)
    (row,) = rows(sqlite_engine, hourly_model_usage)
    assert row["calls"] == 3
    assert row["last_called_at"] == at("2026-03-10 12:01:02.5")


def test_sqlite_keeps_the_other_calls_of_a_table_with_a_time_nobody_can_read(sqlite_engine: Engine) -> None:
    write(sqlite_engine, call())
    execute(sqlite_engine, "INSERT INTO model_calls (id, model, called_at) VALUES ('odd', 'gpt', 'yesterday')")
    assert results(sqlite_engine, NOON)[NOON].calls == 1


def test_a_call_from_the_future_waits_for_its_hour(engine: Engine) -> None:
    future = call(datetime.now(UTC) + timedelta(days=400))
    write(engine, call(), future)
    run(engine, NOON)
    assert totals(engine)["calls"] == 1
    run(engine, floor_hour(future["called_at"]))
    assert totals(engine)["calls"] == 2


# Hours and their states


def test_an_empty_hour_is_done(engine: Engine) -> None:
    found = results(engine, NOON)
    assert (found[NOON].calls, found[NOON].state, found[NOON].rows) == (0, "complete", 0)
    row = done(engine)[NOON]
    assert (row["state"], row["calls"], row["processing"]) == ("complete", 0, 0)
    assert rows(engine, hourly_model_usage) == []


def test_no_hours_are_no_work(engine: Engine) -> None:
    assert run(engine) == []


def test_an_hour_with_calls_still_processing_is_provisional_until_they_end(engine: Engine) -> None:
    """Calls that still ran at the roll-up were frozen without what they used in the end."""
    one, other = call(status="processing", output_tokens=0, duration_seconds=None), call()
    write(engine, one, other)
    assert results(engine, NOON)[NOON].state == "provisional"
    before = done(engine)[NOON]
    assert (before["state"], before["processing"]) == ("provisional", 1)
    change(engine, one, status="success", output_tokens=900, duration_seconds=31.0)
    assert results(engine, NOON)[NOON].state == "complete"
    row = done(engine)[NOON]
    assert (row["state"], row["processing"], row["revision"]) == ("complete", 0, before["revision"] + 1)
    assert_rolled_up(engine, [one, other])


def test_a_long_range_is_one_transaction_a_day_and_hours_may_come_in_any_order(engine: Engine) -> None:
    calls = [call(NOON + number * timedelta(minutes=47)) for number in range(100)]
    write(engine, *calls)
    hours = [NOON + number * HOUR for number in range(80)]
    chunks = run(engine, *hours[::-7], *hours[::2], *hours[1::2])
    assert [len(chunk.hours) for chunk in chunks] == [12, 24, 24, 20]
    assert_rolled_up(engine, calls)


def test_each_day_is_committed_before_the_next_begins(engine: Engine) -> None:
    hours = [at("2026-03-10 00:00") + number * HOUR for number in range(72)]
    working = aggregate(engine, hours, Policy())
    next(working)
    assert len(done(engine)) == 24
    next(working)
    assert len(done(engine)) == 48
    working.close()
    assert len(done(engine)) == 48
    assert rows(engine, usage_hour_attempts) == []


def test_a_user_silent_for_weeks_before_an_outage_is_not_lost(engine: Engine) -> None:
    """Catch-up asked for the users of the last seven days: after a longer outage the others were skipped."""
    calls = [call(NOON - timedelta(days=60), user_id="rare"), call(NOON, user_id="rare"), call(NOON, user_id="daily")]
    write(engine, *calls)
    run(engine, NOON - timedelta(days=60), NOON)
    assert_rolled_up(engine, calls)


# Running again


def busy_hours(engine: Engine) -> list[dict[str, Any]]:
    """Write some calls of all kinds within three hours."""
    calls = [
        call(
            NOON + number * timedelta(minutes=7),
            user_id=f"u{number % 3}",
            model=f"m{number % 2}",
            status=CALL_STATUSES[number % 3],
            duration_seconds=number / 8,
            media_seconds=number / 4,
            credits=Decimal(number) / 7,
        )
        for number in range(25)
    ]
    # As the database rounds it.
    for one in calls:
        one["credits"] = round(one["credits"], 10)
    write(engine, *calls)
    return calls


THREE = (NOON, NOON + HOUR, NOON + 2 * HOUR)


def test_running_twice_changes_nothing(engine: Engine) -> None:
    busy_hours(engine)
    first = run(engine, *THREE)
    before = contents(engine)
    second = run(engine, *THREE)
    assert contents(engine) == before
    assert [chunk.replaced.anything for chunk in first] == [True]
    assert [chunk.replaced.anything for chunk in second] == [False]
    assert [chunk.hours for chunk in first] == [chunk.hours for chunk in second]


def test_only_rows_that_differ_are_written(engine: Engine) -> None:
    calls = busy_hours(engine)
    run(engine, *THREE)
    change(engine, calls[0], input_tokens=4711)
    (chunk,) = run(engine, *THREE)
    assert (chunk.replaced.written, chunk.replaced.deleted) == (1, 0)
    assert_rolled_up(engine, calls)


def test_a_rewritten_call_that_says_the_same_leaves_the_revision(engine: Engine) -> None:
    """Days and months follow revisions: they need not be made again when a writer only touches its rows."""
    calls = busy_hours(engine)
    run(engine, *THREE)
    before, known = contents(engine, hourly_model_usage, hourly_model_latency), done(engine)
    change(engine, calls[0], error_reason="none")
    run(engine, *THREE)
    assert contents(engine, hourly_model_usage, hourly_model_latency) == before
    for hour, row in done(engine).items():
        assert row["revision"] == known[hour]["revision"]
        assert (row["source_version"] == known[hour]["source_version"]) == (hour != NOON)


def test_a_replaced_period_is_exactly_the_hours_asked_for(engine: Engine) -> None:
    calls = busy_hours(engine)
    run(engine, *THREE)
    for one in (calls[0], calls[10], calls[20]):
        change(engine, one, input_tokens=4711)
    before = contents(engine, hourly_model_usage)
    run(engine, THREE[1])
    after = contents(engine, hourly_model_usage)
    same = [row for row in after["hourly_model_usage"] if row["hour"] != THREE[1]]
    assert same == [row for row in before["hourly_model_usage"] if row["hour"] != THREE[1]]
    assert after != before


def test_rows_whose_calls_vanished_vanish(engine: Engine) -> None:
    calls = busy_hours(engine)
    run(engine, *THREE)
    gone = [one for one in calls if one["user_id"] == "u1" and one["model"] == "m1"]
    left = [one for one in calls if one not in gone]
    remove(engine, *gone)
    (chunk,) = run(engine, *THREE)
    assert chunk.replaced.deleted
    assert_rolled_up(engine, left)


def test_a_call_that_moved_to_another_hour_is_counted_once(engine: Engine) -> None:
    calls = busy_hours(engine)
    run(engine, *THREE)
    change(engine, calls[0], called_at=NOON + 2 * HOUR + timedelta(minutes=3))
    run(engine, *THREE)
    assert_rolled_up(engine, calls)


def test_an_erased_user_vanishes_from_the_hours(engine: Engine) -> None:
    calls = busy_hours(engine)
    run(engine, *THREE)
    for one in calls:
        if one["user_id"] == "u1":
            change(engine, one, user_id="")
    run(engine, *THREE)
    assert "u1" not in {row["user_id"] for row in rows(engine, hourly_model_usage)}
    assert_rolled_up(engine, calls)


@pytest.mark.parametrize("lost", [THREE, THREE[:1]], ids=["all", "one"])
def test_hours_whose_record_was_lost_are_replaced_and_not_added(engine: Engine, lost: tuple[datetime, ...]) -> None:
    """After a restore of single tables the roll-up had rows of hours that nobody knew to be done."""
    calls = busy_hours(engine)
    run(engine, *THREE)
    before = contents(engine, hourly_model_usage, hourly_model_latency)
    with writing(engine) as connection:
        connection.execute(delete(usage_hours).where(usage_hours.c.hour.in_(lost)))
    run(engine, *THREE)
    assert contents(engine, hourly_model_usage, hourly_model_latency) == before
    assert len(done(engine)) == 3
    assert_rolled_up(engine, calls)


def test_rows_of_the_roll_up_that_were_lost_or_altered_are_mended(engine: Engine) -> None:
    calls = busy_hours(engine)
    run(engine, *THREE)
    execute(engine, "DELETE FROM hourly_model_usage WHERE user_id = 'u0'")
    execute(engine, "UPDATE hourly_model_usage SET credits = '1.5' WHERE user_id = 'u2'")
    execute(engine, "DELETE FROM hourly_model_latency WHERE metric = 'ttfb'")
    run(engine, *THREE)
    assert_rolled_up(engine, calls)


# Whatever the calls, and whatever the order


@given(arbitrary_calls(NOON, 30), st.randoms(), st.data())
@examples(12)
def test_roll_ups_hold_exactly_the_calls_in_any_order_of_aggregation(
    engine: Engine, calls: list[dict[str, Any]], random: Random, data: st.DataObject
) -> None:
    """Sums of floats depend on their order; these must not, and no call may be lost or counted twice."""
    erase(engine)
    write(engine, *calls)
    hours = [NOON + number * HOUR for number in range(30)]
    random.shuffle(hours)
    said: dict[datetime, Any] = {}
    while hours:
        size = data.draw(st.integers(4, 30))
        part, hours = hours[:size], hours[size:]
        said |= results(engine, *part)
    assert_rolled_up(engine, calls)
    assert totals(engine) == expected_totals(calls)
    for hour, result in said.items():
        within = [one for one in calls if floor_hour(one["called_at"]) == hour]
        assert result.anomalies == anomalies_of(within)
        assert (result.calls, result.processing) == (
            len(within),
            sum(one["status"] == "processing" for one in within),
        )
    again = contents(engine)
    run(engine, *said)
    assert contents(engine) == again


@given(arbitrary_calls(NOON, 5), arbitrary_calls(NOON, 5), st.randoms())
@examples(12)
def test_aggregating_again_after_any_change_is_like_aggregating_for_the_first_time(
    engine: Engine, before: list[dict[str, Any]], added: list[dict[str, Any]], random: Random
) -> None:
    erase(engine)
    hours = [NOON + number * HOUR for number in range(5)]
    write(engine, *before)
    results(engine, *hours)
    gone = random.sample(before, len(before) // 3)
    kept = [one for one in before if one not in gone]
    remove(engine, *gone)
    for one in kept[::2]:
        change(engine, one, **{name: value for name, value in call().items() if name not in {"id", "called_at"}})
    write(engine, *added)
    results(engine, *hours, allow_shrink=True)
    assert_rolled_up(engine, kept + added)
