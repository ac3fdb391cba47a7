"""Instants are aware UTC and decimals exact on both databases, whoever wrote them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, Text, bindparam, literal, select
from sqlalchemy.exc import SQLAlchemyError, StatementError

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.database.expressions import AnyOf
from ops_pipeline.database.types import TextList, instant_text, parse_instant, require_aware
from ops_pipeline_tests.database.samples import as_read, ask, ask_each, fill, on_one_database, samples, spell

HALF_PAST = datetime(2026, 3, 10, 12, 30, tzinfo=UTC)
SPELLINGS = {
    "2026-03-10 12:30:00": HALF_PAST,
    "2026-03-10T12:30:00": HALF_PAST,
    "2026-03-10T12:30:00Z": HALF_PAST,
    "2026-03-10 12:30:00+00:00": HALF_PAST,
    "2026-03-10T14:30:00+02:00": HALF_PAST,
    "2026-03-10T18:15:00+05:45": HALF_PAST,
    "2026-03-10 09:00:00-03:30": HALF_PAST,
    "2026-03-11T02:30:00+14:00": HALF_PAST,
    "2026-03-10 12:30:00.5": HALF_PAST + timedelta(milliseconds=500),
    "2026-03-10T12:30:00.123Z": HALF_PAST + timedelta(milliseconds=123),
    "2026-03-10T14:30:00.123456+02:00": HALF_PAST + timedelta(microseconds=123_456),
    "2026-03-10 12:30": HALF_PAST,
}
LITERALS = {
    "0.1": "0.1",
    "'0.0123456789'": "0.0123456789",
    "1e-5": "0.00001",
    "'12345678.0123456789'": "12345678.0123456789",
    "3": "3",
    "-0.5": "-0.5",
    "'-12345678.0123456789'": "-12345678.0123456789",
    "0.3": "0.3",
    "99999999.99": "99999999.99",
}

instants = st.datetimes(datetime(1970, 1, 2), datetime(2199, 12, 30), timezones=st.timezones())  # noqa: DTZ001
amounts = st.decimals(-(10**20) + 1, 10**20 - 1, places=10, allow_nan=False, allow_infinity=False)


def test_a_naive_datetime_is_refused_with_advice(sampled: Engine) -> None:
    """A host in Berlin wrote local times without a zone, and every call landed in the wrong hour."""
    naive = datetime(2026, 3, 10, 12, 30)  # noqa: DTZ001
    with pytest.raises(StatementError, match="has no time zone; give an aware datetime, for example with tzinfo=UTC"):
        fill(sampled, "instant", [naive])
    with pytest.raises(StatementError, match="has no time zone"):
        ask(sampled, samples.c.instant >= naive)
    assert ask_each(sampled, samples.c.instant) == []


def test_a_zone_without_an_offset_counts_as_naive() -> None:
    class Nowhere(tzinfo):
        def utcoffset(self, _moment: datetime | None) -> None:
            """Know no offset."""

    with pytest.raises(ValueError, match="has no time zone"):
        require_aware(datetime(2026, 3, 10, tzinfo=Nowhere()))


@pytest.mark.parametrize(("spelling", "meant"), SPELLINGS.items(), ids=SPELLINGS)
def test_iso_8601_text_of_other_programs_is_read_as_aware_utc(sampled: Engine, spelling: str, meant: datetime) -> None:
    spell(sampled, "instant", f"'{spelling}'")
    (found,) = ask_each(sampled, samples.c.instant)
    assert found == meant
    assert found.tzinfo is UTC


def test_the_databases_own_clock_functions_are_read_as_aware_utc(sampled: Engine) -> None:
    spell(sampled, "instant", "CURRENT_TIMESTAMP")
    (found,) = ask_each(sampled, samples.c.instant)
    assert found.tzinfo is UTC
    assert abs(found - datetime.now(UTC)) < timedelta(minutes=1)


def test_the_databases_clock_is_aware_and_goes_on_within_a_transaction(engine: Engine) -> None:
    with reading(engine) as connection:
        first, second = database_now(connection), database_now(connection)
    assert first.tzinfo is UTC
    assert abs(first - datetime.now(UTC)) < timedelta(minutes=1)
    assert second >= first


@given(values=st.lists(instants, max_size=30))
@on_one_database
def test_any_instant_comes_back_as_it_was_and_sorts_like_time(sampled: Engine, values: list[datetime]) -> None:
    fill(sampled, "instant", values)
    # Python holds no local time that a change of clocks skipped for equal to anything, so compare in UTC.
    in_utc = [value.astimezone(UTC) for value in values]
    assert ask_each(sampled, samples.c.instant) == in_utc
    with reading(sampled) as connection:
        in_order = list(connection.scalars(select(samples.c.instant).order_by(samples.c.instant)))
    assert in_order == sorted(in_utc)
    assert all(value.tzinfo is UTC for value in in_order)


@given(values=st.lists(instants, min_size=1, max_size=30))
@on_one_database
def test_instants_compare_in_the_database_as_in_python(sampled: Engine, values: list[datetime]) -> None:
    fill(sampled, "instant", values)
    pivot, *_ = in_utc = [value.astimezone(UTC) for value in values]
    assert ask_each(sampled, samples.c.instant < values[0]) == [value < pivot for value in in_utc]
    assert ask_each(sampled, samples.c.instant == values[0]) == [value == pivot for value in in_utc]


def test_sqlite_text_is_what_its_own_date_functions_write(sampled_sqlite: Engine) -> None:
    """Other spellings sort differently: 'T' comes after every space, so a day's rows fell out of ranges."""
    zone = timezone(timedelta(hours=2))
    fill(sampled_sqlite, "instant", [HALF_PAST.astimezone(zone), HALF_PAST + timedelta(milliseconds=5)])
    assert as_read(sampled_sqlite, "instant") == ["2026-03-10 12:30:00", "2026-03-10 12:30:00.005000"]
    assert as_read(sampled_sqlite, "datetime(instant) = substr(instant, 1, 19)") == [1, 1]


def test_text_that_is_no_time_is_an_error_that_shows_it(sampled_sqlite: Engine) -> None:
    spell(sampled_sqlite, "instant", "'yesterday'")
    with pytest.raises(ValueError, match="yesterday"):
        ask_each(sampled_sqlite, samples.c.instant)


def test_parsing_and_writing_text_are_inverse() -> None:
    assert parse_instant(" 2026-03-10T14:30+02:00 ") == HALF_PAST
    assert parse_instant(instant_text(HALF_PAST)) == HALF_PAST


@pytest.mark.parametrize("column", ["instant", "amount"])
def test_null_stays_null(sampled: Engine, column: str) -> None:
    fill(sampled, column, [None])
    assert ask_each(sampled, samples.c[column]) == [None]


@given(values=st.lists(amounts, max_size=30))
@on_one_database
def test_any_decimal_comes_back_exact_to_ten_digits(sampled: Engine, values: list[Decimal]) -> None:
    """Beyond 28 digits in all, Python's default context refused to round what numeric(30, 10) holds."""
    fill(sampled, "amount", values)
    assert ask_each(sampled, samples.c.amount) == values


@given(value=st.decimals(-(10**9), 10**9, allow_nan=False, allow_infinity=False))
@on_one_database
def test_more_digits_are_rounded_half_to_even(sampled: Engine, value: Decimal) -> None:
    fill(sampled, "amount", [value])
    assert ask_each(sampled, samples.c.amount) == [value.quantize(Decimal("1e-10"), ROUND_HALF_EVEN)]


@pytest.mark.parametrize(("literal", "meant"), LITERALS.items(), ids=LITERALS)
def test_plain_literals_of_other_programs_are_read_exactly(sampled: Engine, literal: str, meant: str) -> None:
    spell(sampled, "amount", literal)
    assert ask_each(sampled, samples.c.amount) == [Decimal(meant)]


def test_readers_with_plain_sql_see_plain_decimals(sampled: Engine) -> None:
    """A dashboard summed '1E-7' and units of 1e-10 as if they were credits."""
    fill(sampled, "amount", [Decimal("1E-7"), Decimal("12345678.0123456789"), Decimal(3), Decimal("1E+3")])
    plain = ["0.0000001000", "12345678.0123456789", "3.0000000000", "1000.0000000000"]
    assert as_read(sampled, "CAST(amount AS TEXT)") == plain


def test_integers_are_taken_as_decimals(sampled: Engine) -> None:
    fill(sampled, "amount", [5])
    assert ask_each(sampled, samples.c.amount) == [Decimal(5)]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e20", "-123456789012345678901"])
def test_what_numeric_30_10_cannot_hold_is_refused(sampled: Engine, value: str) -> None:
    """A NaN was stored as text by SQLite, summed as 0, and as NaN by PostgreSQL."""
    with pytest.raises(SQLAlchemyError, match="is no decimal number of 20 digits before the point"):
        fill(sampled, "amount", [Decimal(value)])
    assert ask_each(sampled, samples.c.amount) == []


def test_text_that_is_no_number_is_an_error_that_shows_it(sampled_sqlite: Engine) -> None:
    spell(sampled_sqlite, "amount", "'twelve'")
    with pytest.raises(ValueError, match="'twelve' stands where a decimal number is expected"):
        ask_each(sampled_sqlite, samples.c.amount)


@pytest.mark.parametrize(
    "text", ["a", "", "NULL", 'with "quotes"', "back\\slash", "{curly, comma}", "new\nline", "ä'%s"]
)
def test_a_list_of_texts_holds_each_as_it_is(sampled: Engine, text: str) -> None:
    asked = AnyOf(literal(text, Text()), bindparam("texts", type_=TextList()))
    with reading(sampled) as connection:
        assert connection.execute(select(asked), {"texts": ["other", text]}).scalar_one()
        assert not connection.execute(select(asked), {"texts": ["other", f"{text}x"]}).scalar_one()
        assert not connection.execute(select(asked), {"texts": []}).scalar_one()
