"""Days and months: exact sums of their hours, made again whenever one of those changes, and only then."""

from __future__ import annotations

from collections import defaultdict
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from sqlalchemy import Engine, Table, delete

from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.database.errors import DatabaseProblem, Unreachable
from ops_pipeline.usage.aggregate import RollUpMismatch
from ops_pipeline.usage.hours import DAY, HOUR, day_start, floor_hour
from ops_pipeline.usage.late import LateCursor, LatePolicy, look_for_late_calls
from ops_pipeline.usage.rollups import (
    Due,
    PeriodResult,
    day_revision,
    days_of_month,
    hours_of_day,
    mark_reported,
    read_due,
    roll_up_day,
    roll_up_month,
    state_of,
)
from ops_pipeline.usage.tables import (
    DIMENSIONS,
    daily_model_usage,
    hourly_model_usage,
    monthly_model_usage,
    usage_days,
    usage_hours,
    usage_months,
)
from ops_pipeline_tests.usage.calls import (
    arbitrary_calls,
    at,
    call,
    change,
    contents,
    erase,
    examples,
    execute,
    expected_totals,
    meddle,
    remove,
    rows,
    run,
    totals,
    write,
)
from ops_pipeline_tests.usage.test_aggregate_races import in_threads

FIRST = date(2026, 2, 27)
ORIGIN = day_start(FIRST)
TODAY = date(2026, 3, 20)
FEBRUARY, MARCH = date(2026, 2, 1), date(2026, 3, 1)
ROLL_UPS = (daily_model_usage, monthly_model_usage, usage_days, usage_months)


def due(engine: Engine, **facts: Any) -> Due:
    """What is out of date."""
    given: dict[str, Any] = {"today": TODAY, "waiting": (), "report_days": 0} | facts
    with reading(engine) as connection:
        return read_due(connection, **given)


def settle(engine: Engine, origin: datetime = ORIGIN, today: date = TODAY) -> list[date]:
    """Roll up whatever is due until nothing is, as the sensor does; returns what was rolled up, in order."""
    made: list[date] = []
    for _ in range(4):
        found = due(engine, today=today)
        if not (found.days or found.months):
            return made
        for day in found.days:
            roll_up_day(engine, day, origin)
        for month in found.months:
            roll_up_month(engine, month, origin)
        made += [*found.days, *found.months]
    raise AssertionError("the roll-ups never come to rest")


def hours_from(start: datetime, number: int) -> list[datetime]:
    """So many hours."""
    return [start + index * HOUR for index in range(number)]


def summed(engine: Engine, source: Table, target: Table) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What the target must hold: the rows of the source by period and dimensions, summed in Python."""
    period = target.primary_key.columns[0].name
    measures = [column.name for column in target.columns if not column.primary_key and column.name != "last_called_at"]
    groups: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(lambda: defaultdict(Decimal))
    for row in rows(engine, source):
        first = row["hour"].date() if period == "day" else row["day"].replace(day=1)
        group = groups[first, *(row[name] for name in DIMENSIONS)]
        for name in measures:
            group[name] += row[name]
        group["last_called_at"] = max(group.get("last_called_at") or row["last_called_at"], row["last_called_at"])
    return groups


def assert_sums(engine: Engine, source: Table, target: Table) -> None:
    """Every column of every row of the target is the sum of the source's, and there is no other row."""
    expected = summed(engine, source, target)
    keys = [column.name for column in target.primary_key]
    found = {tuple(row.pop(name) for name in keys): row for row in rows(engine, target)}
    assert found == {key: dict(group) for key, group in expected.items()}


def assert_settled(engine: Engine, calls: list[dict[str, Any]]) -> None:
    """Hours, days and months all add up to the calls."""
    assert_sums(engine, hourly_model_usage, daily_model_usage)
    assert_sums(engine, daily_model_usage, monthly_model_usage)
    expected = expected_totals(calls)
    for table in (hourly_model_usage, daily_model_usage, monthly_model_usage):
        assert totals(engine, table) == expected


def states(engine: Engine, table: Table = usage_days) -> dict[date, str]:
    """The states of days or months."""
    return {next(iter(row.values())): row["state"] for row in rows(engine, table)}


# The rules


@pytest.mark.parametrize(
    ("parts", "expected", "processing", "state"),
    [
        (24, 24, 0, "complete"),
        (24, 24, 1, "provisional"),
        (23, 24, 0, "partial"),
        (23, 24, 5, "partial"),
        (24, 12, 0, "complete"),
        (0, 0, 0, "complete"),
    ],
)
def test_the_state_of_a_period(parts: int, expected: int, processing: int, state: str) -> None:
    assert state_of(parts, expected, processing) == state


@pytest.mark.parametrize(
    ("origin", "hours"),
    [
        ("2026-03-10 00:00", 24),
        ("2026-03-09 23:00", 24),
        ("2026-03-10 01:00", 23),
        ("2026-03-10 23:00", 1),
        ("2026-03-11 00:00", 0),
        ("2027-01-01 00:00", 0),
    ],
)
def test_a_day_has_the_hours_since_the_first_metered_one(origin: str, hours: int) -> None:
    assert hours_of_day(date(2026, 3, 10), at(origin)) == hours


@pytest.mark.parametrize(
    ("month", "origin", "days"),
    [
        (date(2026, 2, 1), "2025-01-01 00:00", 28),
        (date(2028, 2, 1), "2025-01-01 00:00", 29),
        (date(2026, 12, 1), "2025-01-01 00:00", 31),
        (date(2026, 2, 1), "2026-02-27 13:00", 2),
        (date(2026, 2, 1), "2026-02-28 23:00", 1),
        (date(2026, 2, 1), "2026-03-01 00:00", 0),
    ],
)
def test_a_month_has_the_days_since_the_first_metered_one(month: date, origin: str, days: int) -> None:
    assert days_of_month(month, at(origin)) == days


# Sums


def test_days_are_their_hours_and_months_their_days(engine: Engine) -> None:
    calls = [
        call(
            ORIGIN + number * timedelta(minutes=71),
            user_id=f"u{number % 3}",
            status=("success", "failed", "processing")[number % 3],
            media_seconds=number / 8,
            credits=Decimal(number).scaleb(-10),
        )
        for number in range(90)
    ]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 24 * 5))
    assert settle(engine) == [*(FIRST + number * DAY for number in range(5)), FEBRUARY, MARCH]
    assert_settled(engine, calls)


@pytest.mark.parametrize(
    ("moment", "day", "month"),
    [
        ("2026-02-28 23:59:59.999999", date(2026, 2, 28), FEBRUARY),
        ("2026-03-01 00:00", date(2026, 3, 1), MARCH),
        ("2028-02-29 23:59:59.999999", date(2028, 2, 29), date(2028, 2, 1)),
        ("2028-02-29 00:00", date(2028, 2, 29), date(2028, 2, 1)),
        ("2027-12-31 23:59:59", date(2027, 12, 31), date(2027, 12, 1)),
    ],
)
def test_a_call_counts_in_the_utc_day_and_month_in_which_it_began(
    engine: Engine, moment: str, day: date, month: date
) -> None:
    one = call(at(moment), duration_seconds=7200.0)
    write(engine, one)
    run(engine, floor_hour(one["called_at"]))
    settle(engine, today=date(2030, 1, 1))
    assert [row["day"] for row in rows(engine, daily_model_usage)] == [day]
    assert [row["month"] for row in rows(engine, monthly_model_usage)] == [month]


def test_days_do_not_depend_on_the_zone_of_the_server(postgres_engine: Engine) -> None:
    execute(postgres_engine, f"ALTER DATABASE {postgres_engine.url.database} SET timezone = 'America/Los_Angeles'")
    postgres_engine.dispose()
    calls = [call(ORIGIN + number * timedelta(minutes=30)) for number in range(96)]
    write(postgres_engine, *calls)
    run(postgres_engine, *hours_from(ORIGIN, 48))
    settle(postgres_engine)
    assert [row["calls"] for row in rows(postgres_engine, daily_model_usage)] == [48, 48]
    assert_settled(postgres_engine, calls)


@given(arbitrary_calls(ORIGIN + 18 * HOUR, 60, most=20))
@examples(10)
def test_months_days_and_hours_all_sum_to_the_calls(engine: Engine, calls: list[dict[str, Any]]) -> None:
    """Whatever the calls are, over the end of a month."""
    erase(engine)
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN + 18 * HOUR, 60))
    settle(engine, ORIGIN + 18 * HOUR)
    assert_settled(engine, calls)
    before = contents(engine, *ROLL_UPS)
    for row in rows(engine, usage_days):
        again = roll_up_day(engine, row["day"], ORIGIN + 18 * HOUR)
        assert (again.written, again.deleted) == (0, 0)
    for month in (FEBRUARY, MARCH):
        again = roll_up_month(engine, month, ORIGIN + 18 * HOUR)
        assert (again.written, again.deleted) == (0, 0)
    assert contents(engine, *ROLL_UPS) == before


def test_the_result_of_a_period_tells_its_totals(engine: Engine) -> None:
    calls = [call(ORIGIN), call(ORIGIN + HOUR, user_id="ben", status="processing")]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 24))
    found = roll_up_day(engine, FIRST, ORIGIN)
    assert found == PeriodResult(
        first=FIRST,
        state="provisional",
        parts=24,
        expected=24,
        calls=2,
        processing=1,
        tokens=found.tokens,
        credits=2 * Decimal("0.0123456789"),
        rows=2,
        written=2,
        deleted=0,
    )
    assert found.tokens["input_tokens"] == 20
    month = roll_up_month(engine, FEBRUARY, ORIGIN)
    assert (month.state, month.parts, month.expected, month.calls, month.processing) == ("partial", 1, 2, 2, 1)


# States


def test_a_day_without_calls_is_complete(engine: Engine) -> None:
    run(engine, *hours_from(ORIGIN, 24))
    settle(engine)
    assert states(engine) == {FIRST: "complete"}
    assert rows(engine, daily_model_usage) == []


def test_a_day_that_lacks_an_hour_is_partial_until_the_hour_is_there(engine: Engine) -> None:
    """A day with a hole was shown as any other, and its dip explained by the weather."""
    hours = hours_from(ORIGIN, 48)
    calls = [call(hour) for hour in hours]
    write(engine, *calls)
    run(engine, *hours[:7], *hours[8:])
    settle(engine)
    assert states(engine) == {FIRST: "partial", FIRST + DAY: "complete"}
    assert states(engine, usage_months) == {FEBRUARY: "partial"}
    assert totals(engine, daily_model_usage)["calls"] == 47
    run(engine, hours[7])
    assert settle(engine) == [FIRST, FEBRUARY]
    assert states(engine) == {FIRST: "complete", FIRST + DAY: "complete"}
    assert states(engine, usage_months) == {FEBRUARY: "complete"}
    assert_settled(engine, calls)


def test_the_first_day_is_complete_although_it_began_at_noon(engine: Engine) -> None:
    origin = ORIGIN + 12 * HOUR
    write(engine, call(origin))
    run(engine, *hours_from(origin, 36))
    settle(engine, origin)
    assert states(engine) == {FIRST: "complete", FIRST + DAY: "complete"}
    assert states(engine, usage_months) == {FEBRUARY: "complete"}


def test_a_day_is_provisional_until_its_calls_have_ended(engine: Engine) -> None:
    one = call(ORIGIN, status="processing")
    write(engine, one)
    run(engine, *hours_from(ORIGIN, 48))
    settle(engine)
    assert states(engine) == {FIRST: "provisional", FIRST + DAY: "complete"}
    assert states(engine, usage_months) == {FEBRUARY: "provisional"}
    change(engine, one, status="success", output_tokens=800)
    run(engine, ORIGIN)
    settle(engine)
    assert states(engine) == {FIRST: "complete", FIRST + DAY: "complete"}
    assert states(engine, usage_months) == {FEBRUARY: "complete"}
    assert_settled(engine, [one])


def test_the_running_month_is_partial_and_can_be_read(engine: Engine) -> None:
    calls = [call(day_start(MARCH) + number * DAY) for number in range(5)]
    write(engine, *calls)
    run(engine, *hours_from(day_start(MARCH), 24 * 5))
    settle(engine, day_start(MARCH), today=date(2026, 3, 6))
    assert states(engine, usage_months) == {MARCH: "partial"}
    assert totals(engine, monthly_model_usage)["calls"] == 5


# What is due


def test_the_current_day_is_not_rolled_up(engine: Engine) -> None:
    run(engine, *hours_from(ORIGIN, 30))
    assert due(engine, today=FIRST + DAY) == Due((FIRST,), (), ())
    assert due(engine, today=FIRST).days == ()
    assert due(engine, today=FIRST + 2 * DAY).days == (FIRST, FIRST + DAY)


def test_a_day_waits_for_the_hours_still_to_be_aggregated(engine: Engine) -> None:
    run(engine, *hours_from(ORIGIN, 40))
    waiting = tuple(hours_from(ORIGIN + 40 * HOUR, 8))
    assert due(engine, waiting=waiting).days == (FIRST,)
    assert due(engine).days == (FIRST, FIRST + DAY)


def test_a_month_waits_for_its_days(engine: Engine) -> None:
    run(engine, *hours_from(ORIGIN, 72))
    assert due(engine) == Due((FIRST, FIRST + DAY, MARCH), (), ())
    roll_up_day(engine, FIRST, ORIGIN)
    roll_up_day(engine, MARCH, ORIGIN)
    assert due(engine) == Due((FIRST + DAY,), (MARCH,), ())
    roll_up_day(engine, FIRST + DAY, ORIGIN)
    assert due(engine) == Due((), (FEBRUARY, MARCH), ())
    roll_up_month(engine, FEBRUARY, ORIGIN)
    roll_up_month(engine, MARCH, ORIGIN)
    assert due(engine) == Due((), (), ())


def test_a_month_does_not_wait_for_days_that_rest_after_a_failure(engine: Engine) -> None:
    run(engine, *hours_from(ORIGIN, 48))
    roll_up_day(engine, FIRST, ORIGIN)
    assert due(engine) == Due((FIRST + DAY,), (), ())
    assert due(engine, days_rest=True) == Due((FIRST + DAY,), (FEBRUARY,), ())


def test_days_and_months_before_the_first_partition_are_left_as_they_are(engine: Engine) -> None:
    """Hours stay when the start is set to a later day; Dagster knows no partition for their day any more."""
    run(engine, *hours_from(ORIGIN, 24 * 4))
    assert due(engine, start=FIRST + DAY).days == (FIRST + DAY, MARCH, MARCH + DAY)
    assert due(engine, start=MARCH + DAY).days == (MARCH + DAY,)
    for number in range(4):
        roll_up_day(engine, FIRST + number * DAY, ORIGIN)
    assert due(engine, start=FIRST + DAY).months == (FEBRUARY, MARCH)
    assert due(engine, start=MARCH).months == (MARCH,)
    assert due(engine, start=MARCH + DAY).months == (MARCH,)
    assert due(engine, start=MARCH + DAY, report_days=99).reports == (MARCH + DAY,)


def test_an_hour_made_again_without_a_change_makes_nothing_due(engine: Engine) -> None:
    calls = [call(hour) for hour in hours_from(ORIGIN, 24)]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 24))
    settle(engine)
    before = contents(engine, *ROLL_UPS)
    run(engine, *hours_from(ORIGIN, 24))
    change(engine, calls[3], error_reason="of no consequence")
    run(engine, calls[3]["called_at"])
    assert settle(engine) == []
    assert contents(engine, *ROLL_UPS) == before


def test_an_empty_database_has_nothing_due(engine: Engine) -> None:
    assert due(engine, report_days=7) == Due((), (), ())


def test_a_change_whose_hour_was_counted_anew_is_due(engine: Engine) -> None:
    """Somebody deleted a row of `usage_hours` so that the hour be made again; its day kept the old numbers."""
    calls = [call(ORIGIN), call(ORIGIN + HOUR)]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 24))
    settle(engine)
    execute(engine, "UPDATE usage_hours SET revision = revision - 60")
    execute(engine, "UPDATE usage_days SET revision = revision - 60 * 24")
    execute(engine, "UPDATE usage_months SET revision = revision - 60 * 24")
    assert settle(engine) == []
    with writing(engine) as connection:
        connection.execute(delete(usage_hours).where(usage_hours.c.hour == ORIGIN))
    change(engine, calls[0], input_tokens=4711)
    run(engine, ORIGIN)
    assert settle(engine) == [FIRST, FEBRUARY]
    assert_settled(engine, calls)


# Late changes


@pytest.mark.parametrize("age", [timedelta(hours=30), timedelta(days=40), timedelta(days=400)], ids=str)
def test_a_completion_after_any_time_reaches_hour_day_and_month(engine: Engine, age: timedelta) -> None:
    """Nothing linked a changed call to its hour, its day and its month."""
    called_at = day_start(TODAY) - age
    old, new = call(called_at, status="processing", output_tokens=0), call(day_start(TODAY) - HOUR)
    write(engine, old, new)
    for one in (old, new):
        run(engine, *hours_from(day_start(one["called_at"].date()), 24))
    origin = day_start(called_at.date())
    settle(engine, origin)
    policy = LatePolicy(overlap=timedelta(minutes=5), sweep_every=timedelta(days=1), sweep_hours=24)
    with reading(engine) as connection:
        cursor = look_for_late_calls(connection, LateCursor(), policy).cursor

    change(engine, old, status="success", output_tokens=900, credits=Decimal("1.5"))
    with reading(engine) as connection:
        late = look_for_late_calls(connection, cursor, policy)
    assert set(late.stale) == {floor_hour(called_at)}
    run(engine, *late.stale)
    assert settle(engine, origin) == [called_at.date(), called_at.date().replace(day=1)]
    assert_settled(engine, [old, new])
    assert states(engine)[called_at.date()] == "complete"


def test_a_call_that_moved_from_one_month_to_the_other_is_counted_once(engine: Engine) -> None:
    calls = [call(ORIGIN), call(ORIGIN + 30 * HOUR), call(day_start(MARCH))]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 72))
    settle(engine)
    change(engine, calls[1], called_at=day_start(MARCH) + HOUR)
    run(engine, ORIGIN + 30 * HOUR, day_start(MARCH) + HOUR, allow_shrink=True)
    assert settle(engine) == [FIRST + DAY, MARCH, FEBRUARY, MARCH]
    assert_settled(engine, calls)


def test_deleted_calls_vanish_from_days_and_months(engine: Engine) -> None:
    calls = [call(ORIGIN, user_id="gone"), call(ORIGIN), call(ORIGIN)]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 24))
    settle(engine)
    remove(engine, calls[0])
    run(engine, ORIGIN)
    assert settle(engine) == [FIRST, FEBRUARY]
    assert_settled(engine, calls[1:])


def test_an_erased_user_is_in_no_roll_up(engine: Engine) -> None:
    calls = [call(hour, user_id=user, app_id=user) for hour in hours_from(ORIGIN, 40) for user in ("anna", "ben")]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 48))
    settle(engine)
    execute(engine, "UPDATE model_calls SET user_id = NULL, app_id = NULL WHERE user_id = 'anna'")
    for one in calls:
        if one["user_id"] == "anna":
            one.update(user_id=None, app_id=None)
    run(engine, *hours_from(ORIGIN, 48))
    settle(engine)
    for table in (hourly_model_usage, daily_model_usage, monthly_model_usage):
        assert {(row["user_id"], row["app_id"]) for row in rows(engine, table)} == {("", ""), ("ben", "ben")}
    assert_settled(engine, calls)


# What may go wrong


def test_a_dry_run_reports_and_keeps_nothing(engine: Engine) -> None:
    calls = [call(ORIGIN), call(ORIGIN + HOUR, user_id="ben")]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 24))
    planned = roll_up_day(engine, FIRST, ORIGIN, dry_run=True)
    assert not any(contents(engine, *ROLL_UPS).values())
    assert roll_up_day(engine, FIRST, ORIGIN) == planned
    planned = roll_up_month(engine, FEBRUARY, ORIGIN, dry_run=True)
    assert rows(engine, usage_months) == []
    assert roll_up_month(engine, FEBRUARY, ORIGIN) == planned
    before = contents(engine, *ROLL_UPS)
    change(engine, calls[0], input_tokens=99)
    run(engine, ORIGIN)
    planned = roll_up_day(engine, FIRST, ORIGIN, dry_run=True)
    assert (planned.written, planned.tokens["input_tokens"]) == (1, 109)
    assert contents(engine, *ROLL_UPS) == before


def test_a_day_whose_sum_exceeds_64_bits_fails_and_keeps_its_numbers(engine: Engine) -> None:
    calls = [call(hour, input_tokens=2**62) for hour in (ORIGIN, ORIGIN + HOUR)]
    write(engine, calls[0])
    run(engine, *hours_from(ORIGIN, 24))
    settle(engine)
    before = contents(engine, *ROLL_UPS)
    write(engine, calls[1])
    run(engine, ORIGIN + HOUR)
    with pytest.raises(DatabaseProblem, match="exceeds 64 bits"):
        roll_up_day(engine, FIRST, ORIGIN)
    assert contents(engine, *ROLL_UPS) == before
    assert due(engine).days == (FIRST,)


def test_a_day_that_does_not_add_up_is_not_kept(engine: Engine) -> None:
    write(engine, call(ORIGIN))
    run(engine, *hours_from(ORIGIN, 24))
    if engine.dialect.name == "postgresql":
        execute(
            engine,
            "CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
        )
        execute(
            engine,
            "CREATE TRIGGER drop_row BEFORE INSERT ON daily_model_usage FOR EACH ROW EXECUTE FUNCTION drop_row()",
        )
    else:
        execute(
            engine,
            "CREATE TRIGGER drop_row AFTER INSERT ON daily_model_usage"
            " BEGIN DELETE FROM daily_model_usage WHERE day = NEW.day; END",
        )
    message = "daily_model_usage of 2026-02-27 has calls 0, but hourly_model_usage 1"
    with pytest.raises(RollUpMismatch, match=message):
        roll_up_day(engine, FIRST, ORIGIN)
    assert not any(contents(engine, *ROLL_UPS).values())


def test_a_missing_table_is_said(engine: Engine) -> None:
    execute(engine, "DROP TABLE daily_model_usage")
    with pytest.raises(Unreachable, match="ops-pipeline migrate"):
        roll_up_day(engine, FIRST, ORIGIN)


def test_rows_of_a_roll_up_that_were_altered_are_mended_by_its_next_run(engine: Engine) -> None:
    calls = [call(ORIGIN), call(ORIGIN + HOUR, user_id="ben")]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 24))
    settle(engine)
    execute(engine, "UPDATE daily_model_usage SET calls = 999 WHERE user_id = 'anna'")
    execute(engine, "DELETE FROM daily_model_usage WHERE user_id = 'ben'")
    execute(engine, "UPDATE monthly_model_usage SET user_id = 'nobody' WHERE user_id = 'anna'")
    roll_up_day(engine, FIRST, ORIGIN)
    roll_up_month(engine, FEBRUARY, ORIGIN)
    assert_settled(engine, calls)


def test_two_runs_of_the_same_periods_at_once_are_like_one(engine: Engine) -> None:
    calls = [call(hour, user_id=f"u{number % 7}") for number, hour in enumerate(hours_from(ORIGIN, 120))]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 120))
    days = [FIRST + number * DAY for number in range(5)]
    others = [connect(engine.url.render_as_string(hide_password=False)) for _ in range(3)]

    def work(own: Engine) -> None:
        for day in days:
            roll_up_day(own, day, ORIGIN)
        for month in (FEBRUARY, MARCH):
            roll_up_month(own, month, ORIGIN)

    assert in_threads(*(lambda own=own: work(own) for own in others)) == []
    assert_settled(engine, calls)
    assert due(engine) == Due((), (), ())
    for own in others:
        own.dispose()


def test_an_hour_that_changes_during_the_roll_up_of_its_day_makes_it_due_again(engine: Engine) -> None:
    calls = [call(ORIGIN), call(ORIGIN + HOUR)]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 24))
    change(engine, calls[1], input_tokens=777)
    other = connect(engine.url.render_as_string(hide_password=False))
    thread = meddle(engine, "INTO usage_days", lambda: run(other, ORIGIN + HOUR))
    assert roll_up_day(engine, FIRST, ORIGIN).tokens["input_tokens"] == 20
    thread.join()
    assert due(engine).days == (FIRST,)
    settle(engine)
    assert_settled(engine, calls)
    other.dispose()


# Reports


def test_a_report_is_due_when_its_day_changed_since(engine: Engine) -> None:
    calls = [call(hour) for hour in hours_from(ORIGIN, 72)]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 71))
    assert due(engine, report_days=60).reports == ()
    settle(engine)
    # The last day lacks an hour, and the reports of days long past are made only when asked for.
    assert due(engine, report_days=60).reports == (FIRST, FIRST + DAY)
    assert due(engine, report_days=(TODAY - FIRST).days - 1).reports == (FIRST + DAY,)
    assert due(engine, report_days=0).reports == ()

    revision = day_revision(engine, FIRST)
    assert revision is not None
    mark_reported(engine, FIRST, revision)
    assert due(engine, report_days=60).reports == (FIRST + DAY,)
    for one in (calls[0], calls[30]):
        change(engine, one, input_tokens=5)
        run(engine, one["called_at"])
    # First the days, then their reports.
    assert due(engine, report_days=60).reports == ()
    settle(engine)
    assert due(engine, report_days=60).reports == (FIRST, FIRST + DAY)


def test_a_day_that_changed_while_its_report_was_made_stays_due(engine: Engine) -> None:
    calls = [call(ORIGIN)]
    write(engine, *calls)
    run(engine, *hours_from(ORIGIN, 24))
    settle(engine)
    shown = day_revision(engine, FIRST)
    assert shown is not None
    change(engine, calls[0], input_tokens=5)
    run(engine, ORIGIN)
    settle(engine)
    mark_reported(engine, FIRST, shown)
    assert due(engine, report_days=60).reports == (FIRST,)


def test_a_day_never_rolled_up_has_no_revision(engine: Engine) -> None:
    assert day_revision(engine, FIRST) is None
