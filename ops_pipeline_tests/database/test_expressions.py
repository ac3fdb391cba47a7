"""Each expression means the same on PostgreSQL and SQLite, and the same as in Python."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Engine, func, insert, select

from ops_pipeline.database.engine import reading, writing
from ops_pipeline.database.expressions import (
    earliest_hour,
    from_hour,
    hour_key,
    hour_start,
    latest,
    month_start,
    unreadable,
    utc_day,
    version_number,
    within_hours,
)
from ops_pipeline.usage.tables import model_calls
from ops_pipeline_tests.database.samples import (
    ask,
    ask_each,
    fill,
    on_one_database,
    samples,
    spell,
)

HOUR = timedelta(hours=1)
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
LAST_MICROSECOND = NOON + HOUR - timedelta.resolution
INSTANTS = (
    NOON,
    NOON - timedelta.resolution,
    LAST_MICROSECOND,
    NOON.replace(minute=59, second=59, microsecond=999_500),
    datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2028, 2, 29, 23, 30, tzinfo=UTC),
    datetime(2025, 12, 31, 23, 59, tzinfo=UTC),
    datetime(2026, 3, 29, 1, 30, tzinfo=timezone(timedelta(hours=2))),
    datetime(2026, 3, 10, 12, 10, tzinfo=timezone(timedelta(hours=5, minutes=45))),
)
BOUND = 2**63

instants = st.datetimes(datetime(1975, 1, 2), datetime(2199, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001


def floored(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def test_every_instant_belongs_to_its_utc_hour(sampled: Engine) -> None:
    """SQLite rounds to milliseconds: a call in the last half of one was counted in the next hour, under this one."""
    fill(sampled, "instant", INSTANTS)
    assert ask_each(sampled, hour_start(samples.c.instant)) == [floored(instant) for instant in INSTANTS]


@given(values=st.lists(instants, max_size=40))
@example(values=[LAST_MICROSECOND, LAST_MICROSECOND + timedelta.resolution])
@on_one_database
def test_grouping_by_the_hours_key_yields_each_hour_once_with_its_instants(
    sampled: Engine, values: list[datetime]
) -> None:
    fill(sampled, "instant", values)
    hour = hour_start(samples.c.instant)
    with reading(sampled) as connection:
        query = select(hour, func.count()).group_by(hour_key(samples.c.instant))
        found = sorted(tuple(row) for row in connection.execute(query))
    hours = [floored(value) for value in values]
    assert found == sorted((hour, hours.count(hour)) for hour in set(hours))


@pytest.mark.parametrize(
    "spelling",
    [
        "2026-03-10 12:59:59.999999",
        "2026-03-10T12:59:59.9999Z",
        "2026-03-10T14:59:59.999999+02:00",
        "2026-03-10T12:59:59.999999+00:00",
        "2026-03-10 12:00:00",
        "2026-03-10T12:00",
        "2026-03-10T12:00Z",
        "2026-03-10T18:15+05:45",
        "2026-03-10T08:30:00.1-03:30",
        "2026-03-10T12:00:00.123456789Z",
    ],
)
def test_any_spelling_of_an_instant_belongs_to_its_hour(sampled: Engine, spelling: str) -> None:
    spell(sampled, "instant", f"'{spelling}'")
    instant = samples.c.instant
    assert ask(sampled, hour_start(instant)) == NOON
    assert ask(sampled, within_hours(instant, NOON, NOON + HOUR))
    assert not ask(sampled, within_hours(instant, NOON + HOUR, NOON + 2 * HOUR))
    assert ask(sampled, earliest_hour(instant)) == NOON


@given(values=st.lists(instants, min_size=1, max_size=30), hours=st.integers(1, 50))
@on_one_database
def test_a_window_holds_its_start_and_not_its_end(sampled: Engine, values: list[datetime], hours: int) -> None:
    start = floored(values[0])
    end = start + hours * HOUR
    values = [*values, start, end, start - timedelta.resolution, end - timedelta.resolution]
    fill(sampled, "instant", values)
    found = ask_each(sampled, within_hours(samples.c.instant, start, end))
    assert found == [start <= value < end for value in values]


@given(values=st.lists(instants, min_size=1, max_size=30))
@on_one_database
def test_from_an_hour_on_begins_with_its_first_instant(sampled: Engine, values: list[datetime]) -> None:
    start = floored(values[0])
    values = [*values, start, start - timedelta.resolution]
    fill(sampled, "instant", values)
    assert ask_each(sampled, from_hour(samples.c.instant, start)) == [start <= value for value in values]


@pytest.mark.parametrize(
    ("spelling", "readable"),
    [
        ("2026-03-10T12:30:00.5+02:00", True),
        ("2026-03-10", True),
        ("2026-03-10T12:30:00+0200", False),
        ("20260310T123000", False),
        ("1773144000", False),
        ("soon", False),
        ("", False),
    ],
)
def test_a_text_that_sqlite_takes_for_no_time_is_found(
    sampled_sqlite: Engine, spelling: str, *, readable: bool
) -> None:
    """Such a call belongs to no hour: without a word it was in no sum."""
    spell(sampled_sqlite, "instant", f"'{spelling}'")
    assert ask_each(sampled_sqlite, unreadable(samples.c.instant)) == [not readable]


def test_no_instant_of_postgresql_is_unreadable(sampled_postgres: Engine) -> None:
    fill(sampled_postgres, "instant", INSTANTS)
    assert set(ask_each(sampled_postgres, unreadable(samples.c.instant))) == {False}


def test_bounds_in_another_zone_mean_the_same_hours(sampled: Engine) -> None:
    fill(sampled, "instant", [NOON])
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    start = NOON.astimezone(kathmandu)
    assert ask(sampled, within_hours(samples.c.instant, start, start + HOUR))


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (NOON + timedelta(minutes=30), "does not lie on a UTC hour"),
        (NOON + timedelta.resolution, "does not lie on a UTC hour"),
        (datetime(2026, 3, 10, 12, tzinfo=timezone(timedelta(hours=5, minutes=30))), "does not lie on a UTC hour"),
        (datetime(2026, 3, 10, 12), "has no time zone"),  # noqa: DTZ001
    ],
)
def test_bounds_off_the_utc_hour_or_naive_are_refused(bound: datetime, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        within_hours(samples.c.instant, bound, NOON + 5 * HOUR)
    with pytest.raises(ValueError, match=message):
        within_hours(samples.c.instant, NOON - 24 * HOUR, bound)


@pytest.mark.parametrize("what", ["window", "first"])
def test_hours_of_calls_are_looked_up_through_an_index(engine: Engine, what: str) -> None:
    """SQLAlchemy wrote "= 1" behind the window on SQLite: each aggregated day read every call there is."""
    called = model_calls.c.called_at
    query = select(earliest_hour(called))
    if what == "window":
        query = select(model_calls.c.id).where(within_hours(called, NOON, NOON + 24 * HOUR))
    rows = [{"id": str(n), "model": "m", "called_at": NOON + n * timedelta(minutes=1)} for n in range(5_000)]
    with writing(engine) as connection:
        connection.execute(insert(model_calls), rows)
        connection.exec_driver_sql("ANALYZE model_calls")
        compiled = query.compile(engine, compile_kwargs={"literal_binds": False})
        values = tuple(str(compiled.params[name])[:19] for name in compiled.positiontup or ())
        if engine.dialect.name == "sqlite":
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values).all()
            assert "SEARCH model_calls USING" in str(plan)
        else:
            plan = connection.exec_driver_sql(f"EXPLAIN {compiled}", compiled.params).all()
            assert "Seq Scan" not in str(plan)
        assert "model_calls_called" in str(plan)


def test_a_day_is_that_of_utc(sampled: Engine) -> None:
    fill(sampled, "instant", INSTANTS)
    assert ask_each(sampled, utc_day(samples.c.instant)) == [value.astimezone(UTC).date() for value in INSTANTS]


def test_a_month_starts_on_its_first_day(sampled: Engine) -> None:
    days = [date(2026, 3, 1), date(2026, 3, 31), date(2028, 2, 29), date(2025, 12, 31), date(2026, 1, 1)]
    fill(sampled, "day", days)
    assert ask_each(sampled, month_start(samples.c.day)) == [day.replace(day=1) for day in days]


def test_a_month_can_be_grouped_by_and_selected(sampled: Engine) -> None:
    fill(sampled, "day", [date(2026, 1, 31), date(2026, 2, 1), date(2026, 2, 28)])
    month = month_start(samples.c.day)
    with reading(sampled) as connection:
        found = sorted(tuple(row) for row in connection.execute(select(month, func.count()).group_by(month)))
    assert found == [(date(2026, 1, 1), 1), (date(2026, 2, 1), 2)]


@given(values=st.lists(instants, max_size=30))
@on_one_database
def test_the_first_hour_and_the_last_instant_are_found(sampled: Engine, values: list[datetime]) -> None:
    fill(sampled, "instant", values)
    assert ask(sampled, earliest_hour(samples.c.instant)) == (floored(min(values)) if values else None)
    found = ask(sampled, latest(samples.c.instant))
    # SQLite keeps milliseconds of the last instant.
    assert abs(max(values) - found) < timedelta(milliseconds=1) if values else found is None


def test_the_last_instant_is_found_whatever_the_spelling(sampled: Engine) -> None:
    """As text, 'T' comes after a space: a call of the morning was the last of the day."""
    spell(sampled, "instant", "'2026-03-10T09:00:00Z'", "'2026-03-10 11:00:00'", "'2026-03-10T12:30:00+02:00'")
    assert ask(sampled, latest(samples.c.instant)) == NOON - HOUR


def test_an_unreadable_instant_does_not_hide_the_first_and_the_last(sampled_sqlite: Engine) -> None:
    spell(sampled_sqlite, "instant", "'soon'", "'2026-03-10 12:30:00'")
    assert ask(sampled_sqlite, earliest_hour(samples.c.instant)) == NOON
    assert ask(sampled_sqlite, latest(samples.c.instant)) == NOON + HOUR / 2


@given(values=st.lists(st.datetimes(datetime(2026, 1, 1), datetime(2100, 1, 1)), min_size=2, max_size=20))  # noqa: DTZ001
@on_one_database
def test_a_version_grows_with_time_and_stays_below_64_bits_in_sum(sampled: Engine, values: list[datetime]) -> None:
    aware = [value.replace(tzinfo=UTC, microsecond=value.microsecond // 1000 * 1000) for value in values]
    fill(sampled, "instant", aware)
    versions = ask_each(sampled, version_number(samples.c.instant))
    for one, version in zip(aware, versions, strict=True):
        for other, other_version in zip(aware, versions, strict=True):
            assert (one < other) == (version < other_version)
    assert ask(sampled, func.sum(version_number(samples.c.instant))) == sum(versions)


def test_a_sum_of_versions_of_a_busy_hour_fits_64_bits_on_sqlite(sampled_sqlite: Engine) -> None:
    """Milliseconds since 1970 of 50 million calls in an hour would still fit; microseconds of 6 million would not."""
    fill(sampled_sqlite, "instant", [datetime(2075, 1, 1, tzinfo=UTC)])
    assert 5_000_000 * ask(sampled_sqlite, version_number(samples.c.instant)) < BOUND
