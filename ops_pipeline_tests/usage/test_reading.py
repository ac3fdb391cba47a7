"""What readers are told: every sum exact, on both databases, and what is still missing."""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, bindparam, event, text

from ops_pipeline.database.types import UtcDateTime
from ops_pipeline.usage.histogram import histogram, merge, quantiles
from ops_pipeline.usage.reading import (
    GROUPINGS,
    QUANTILE_SQL,
    Period,
    Quantiles,
    UsageQuestionError,
    latency,
    parse_period,
    usage,
)
from ops_pipeline_tests.usage.roll_up_rows import (
    HOUR,
    NOON,
    insert_hours,
    insert_latency,
    insert_usage,
    usage_row,
)

LATER = NOON + timedelta(days=200)


def berlin(start: str, end: str | None = None) -> Period:
    return parse_period(start, end or start, "Europe/Berlin", LATER)


def random_rows(hours: Iterable[datetime], seed: int = 7) -> list[dict[str, Any]]:
    """Rows over several users, apps and models, with credits that no float holds."""
    generator = random.Random(seed)  # noqa: S311
    rows = []
    for hour in hours:
        for user in ("ada", "bob", ""):
            calls = generator.randint(1, 9)
            rows.append(
                usage_row(
                    hour,
                    user_id=user,
                    app_id=generator.choice(("chat", "", "búsqueda")),
                    provider=generator.choice(("openai", "anthropic")),
                    model=generator.choice(("gpt-5", "claude", "grok")),
                    type=generator.choice(("chatCompletion", "embedding")),
                    calls=calls,
                    succeeded=calls - 1,
                    failed=1,
                    input_tokens=generator.randint(0, 2**40),
                    output_tokens=generator.randint(0, 10**6),
                    reasoning_tokens=3,
                    credits=Decimal(generator.randint(0, 10**13)).scaleb(-10),
                    media_seconds=Decimal(generator.randint(0, 10**8)).scaleb(-6),
                    duration_seconds_sum=Decimal(generator.randint(0, 10**8)).scaleb(-6),
                    duration_count=calls - 1,
                )
            )
    return rows


@pytest.mark.parametrize("by", GROUPINGS)
def test_every_grouping_adds_up_to_the_rows_exactly(engine: Engine, by: Any):
    rows = random_rows(NOON + HOUR * index for index in range(30))
    insert_usage(engine, *rows)
    answer = usage(engine, berlin("2026-11-21", "2026-11-22"), by, now=LATER)
    for name in ("calls", "succeeded", "failed", "input_tokens", "output_tokens", "reasoning_tokens"):
        assert sum(getattr(row, name) for row in answer.rows) == sum(row[name] for row in rows)
        assert getattr(answer.total, name) == sum(row[name] for row in rows)
    for name in ("credits", "media_seconds", "duration_seconds_sum"):
        assert sum(getattr(row, name) for row in answer.rows) == sum(row[name] for row in rows)
        assert getattr(answer.total, name) == sum(row[name] for row in rows)


@pytest.mark.parametrize(("by", "column"), [("user", "user_id"), ("app", "app_id"), ("model", "model")])
def test_each_key_has_the_sums_of_its_own_rows(engine: Engine, by: Any, column: str):
    rows = random_rows(NOON + HOUR * index for index in range(5))
    insert_usage(engine, *rows)
    answer = usage(engine, berlin("2026-11-21"), by, now=LATER)
    for row in answer.rows:
        mine = [one for one in rows if one[column] == row.key]
        assert (row.calls, row.credits) == (sum(r["calls"] for r in mine), sum(r["credits"] for r in mine))
        assert row.input_tokens == sum(r["input_tokens"] for r in mine)
    assert {row.key for row in answer.rows} == {row[column] for row in rows}


def test_rows_come_by_credits_and_equal_credits_by_key(engine: Engine):
    for model, amount in (("b", "0.1"), ("a", "0.1"), ("c", "0.1000000001"), ("", "0")):
        insert_usage(engine, usage_row(NOON, model=model, credits=Decimal(amount)))
    answer = usage(engine, berlin("2026-11-21"), "model", now=LATER)
    assert [row.key for row in answer.rows] == ["c", "a", "b", ""]
    assert f"{answer.total.credits:f}" == "0.3000000001"


def test_amounts_beyond_the_digits_of_a_float_stay_exact(engine: Engine):
    insert_usage(
        engine,
        usage_row(NOON, user_id="a", credits=Decimal("123456789.0123456789"), input_tokens=2**61),
        usage_row(NOON, user_id="b", credits=Decimal("0.0000000001"), input_tokens=1),
    )
    total = usage(engine, berlin("2026-11-21"), "user", now=LATER).total
    assert (f"{total.credits:f}", total.input_tokens) == ("123456789.0123456790", 2**61 + 1)


def test_the_bounds_of_the_period_are_kept(engine: Engine):
    period = berlin("2026-11-21")
    insert_usage(
        engine, *(usage_row(hour) for hour in (period.start - HOUR, period.start, period.end - HOUR, period.end))
    )
    assert usage(engine, period, "model", now=LATER).total.calls == 2


def test_a_local_day_takes_the_late_utc_hours_of_the_day_before(engine: Engine):
    insert_usage(engine, usage_row(datetime(2026, 11, 21, 22, tzinfo=UTC), calls=3))
    insert_usage(engine, usage_row(datetime(2026, 11, 21, 23, tzinfo=UTC), calls=5))
    days = usage(engine, berlin("2026-11-20", "2026-11-22"), "day", now=LATER).rows
    assert [(row.key, row.calls) for row in days] == [("2026-11-20", 0), ("2026-11-21", 3), ("2026-11-22", 5)]


def test_the_doubled_hour_gives_two_rows_with_different_labels(engine: Engine):
    insert_usage(engine, usage_row(datetime(2026, 10, 25, 0, tzinfo=UTC), calls=3))
    insert_usage(engine, usage_row(datetime(2026, 10, 25, 1, tzinfo=UTC), calls=5))
    rows = usage(engine, berlin("2026-10-25"), "hour", now=LATER).rows
    assert len(rows) == len({row.key for row in rows}) == 25
    assert {row.key: row.calls for row in rows if row.calls} == {
        "2026-10-25 02:00+02:00": 3,
        "2026-10-25 02:00+01:00": 5,
    }
    days = usage(engine, berlin("2026-10-25"), "day", now=LATER).rows
    assert [(row.key, row.calls) for row in days] == [("2026-10-25", 8)]


def test_the_skipped_hour_has_no_row(engine: Engine):
    keys = [row.key for row in usage(engine, berlin("2026-03-29"), "hour", now=LATER).rows]
    assert len(keys) == 23
    assert keys[1:3] == ["2026-03-29 01:00+01:00", "2026-03-29 03:00+02:00"]


def test_a_period_without_calls_is_zero_filled_over_time_and_empty_otherwise(engine: Engine):
    period = berlin("2026-11-01", "2026-11-30")
    days = usage(engine, period, "day", now=LATER)
    assert [row.key for row in days.rows] == [f"2026-11-{day:02}" for day in range(1, 31)]
    assert {(row.calls, f"{row.credits:f}") for row in days.rows} == {(0, "0.0000000000")}
    assert len(usage(engine, period, "hour", now=LATER).rows) == 30 * 24
    empty = usage(engine, period, "model", now=LATER)
    assert (empty.rows, empty.total.calls, empty.total.mean_duration_seconds) == ((), 0, None)


def test_the_mean_duration_is_that_of_measured_calls_only(engine: Engine):
    insert_usage(engine, usage_row(NOON, model="a", calls=9, duration_seconds_sum=Decimal(10), duration_count=3))
    insert_usage(engine, usage_row(NOON, model="b", calls=9))
    rows = {row.key: row for row in usage(engine, berlin("2026-11-21"), "model", now=LATER).rows}
    assert rows["a"].mean_duration_seconds == Decimal("3.333333")
    assert rows["b"].mean_duration_seconds is None


def test_hours_not_rolled_up_and_provisional_ones_are_told(engine: Engine):
    start = datetime(2026, 11, 21, tzinfo=UTC)
    period = parse_period("2026-11-21", "2026-11-21", "UTC", LATER)
    insert_hours(engine, *(start + HOUR * index for index in range(8)), start - HOUR, period.end)
    insert_hours(engine, start + HOUR * 8, state="provisional")

    def told(now: datetime) -> tuple[int, int, bool]:
        answer = usage(engine, period, "model", now=now)
        return answer.hours_missing, answer.hours_provisional, answer.final

    assert told(start + HOUR * 9) == (0, 1, False)
    assert told(start + HOUR * 9 + timedelta(seconds=1)) == (1, 1, False)
    assert told(LATER) == (15, 1, False)
    assert told(start - HOUR) == (0, 1, False)


def test_hours_that_have_not_begun_are_not_missing(engine: Engine):
    start = datetime(2026, 11, 21, tzinfo=UTC)
    insert_hours(engine, start)
    answer = usage(engine, parse_period("2026-11-21", None, "UTC", NOON), "day", now=start + HOUR)
    assert answer.final


def test_the_databases_clock_decides_what_is_missing_unless_told_otherwise(engine: Engine):
    past = parse_period("2020-01-01", "2020-01-01", "UTC", NOON)
    assert usage(engine, past, "day").hours_missing == 24
    future = Period(datetime(2990, 1, 1, tzinfo=UTC), datetime(2990, 1, 2, tzinfo=UTC), past.zone)
    assert usage(engine, future, "day").hours_missing == 0


def test_readers_write_nothing_and_leave_raw_calls_alone(engine: Engine):
    """A dashboard that filled holes while it was read once moved the watermark, and hours were lost for good."""
    statements: list[str] = []

    def listen(*arguments: Any) -> None:
        statements.append(arguments[2])

    event.listen(engine, "before_cursor_execute", listen)
    for by in GROUPINGS:
        usage(engine, berlin("2026-11-21"), by)
    latency(engine, berlin("2026-11-21"))
    event.remove(engine, "before_cursor_execute", listen)
    selects = [one for one in statements if not one.startswith("BEGIN")]
    assert len(selects) > len(GROUPINGS)
    assert all(one.startswith("SELECT") and "model_calls" not in one for one in selects)


def test_an_unknown_grouping_is_refused_with_the_choices(engine: Engine):
    with pytest.raises(UsageQuestionError, match=r"'month'.*model, user"):
        usage(engine, berlin("2026-11-21"), "month")  # ty: ignore[invalid-argument-type]
    with pytest.raises(UsageQuestionError, match=r"'user_id'.*provider, model, type"):
        latency(engine, berlin("2026-11-21"), ["user_id"])  # ty: ignore[invalid-argument-type]


def test_latency_merges_the_hours_of_a_key(engine: Engine):
    generator = random.Random(3)  # noqa: S311
    hours = [[generator.lognormvariate(7, 1) for _ in range(50)] for _ in range(4)]
    for index, values in enumerate(hours):
        insert_latency(engine, NOON + HOUR * index, values)
    insert_latency(engine, NOON, [5, 6], provider="xai", model="grok")
    insert_latency(engine, NOON - timedelta(days=3), [1e9])
    rows = latency(engine, berlin("2026-11-21"))
    assert [row.key for row in rows] == [("openai", "gpt-5", "chatCompletion"), ("xai", "grok", "chatCompletion")]
    assert rows[0].duration == Quantiles(200, **quantiles(merge(histogram(values) for values in hours)))
    assert rows[0].ttfb == Quantiles(0, None, None, None, None)


def test_latency_by_fewer_keys_merges_more(engine: Engine):
    insert_latency(engine, NOON, [10, 20], model="a")
    insert_latency(engine, NOON, [1000], model="b", provider="xai")
    insert_latency(engine, NOON, [30], model="a", type="embedding")
    insert_latency(engine, NOON, [7], model="a", metric="ttfb")
    period = berlin("2026-11-21")
    assert [(row.key, row.duration.calls) for row in latency(engine, period, ["model"])] == [(("a",), 3), (("b",), 1)]
    assert [row.key for row in latency(engine, period, ["type", "provider"])] == [
        ("chatCompletion", "openai"),
        ("chatCompletion", "xai"),
        ("embedding", "openai"),
    ]
    (whole,) = latency(engine, period, [])
    assert whole.duration == Quantiles(4, **quantiles(histogram([10, 20, 1000, 30])))
    assert whole.ttfb == Quantiles(1, **quantiles(histogram([7])))
    assert latency(engine, berlin("2026-11-19"), []) == ()


def test_the_sql_for_readers_gives_the_same_quantiles_as_the_function(engine: Engine):
    generator = random.Random(5)  # noqa: S311
    for index, count in enumerate((1, 2, 3, 10, 19, 20, 21, 99, 100, 101, 1000)):
        for hour in (NOON, NOON + HOUR):
            values = [generator.lognormvariate(generator.choice((2, 9)), 1) for _ in range(count)]
            insert_latency(engine, hour, values, model=f"m{index:02}", provider="p" * (index % 2))
            insert_latency(engine, hour, [2 * value for value in values], model=f"m{index:02}", metric="ttfb")
    insert_latency(engine, NOON - HOUR, [1e11], model="m00")
    insert_latency(engine, NOON + HOUR * 2, [1e11], model="m00")
    period = Period(NOON, NOON + HOUR * 2, berlin("2026-11-21").zone)
    instants = [bindparam(name, type_=UtcDateTime()) for name in ("start", "end")]
    question = text(QUANTILE_SQL).bindparams(*instants)
    for metric in ("duration", "ttfb"):
        with engine.connect() as connection:
            found = connection.execute(question, {"start": period.start, "end": period.end, "metric": metric}).all()
        expected = {
            row.key: measured
            for row in latency(engine, period, ["provider", "model"])
            if (measured := getattr(row, metric)).calls
        }
        assert [(row.provider, row.model) for row in found] == sorted(expected)
        for row in found:
            one = expected[row.provider, row.model]
            assert row.calls == one.calls
            assert tuple(row[3:]) == pytest.approx((one.p50, one.p90, one.p95, one.p99), rel=1e-12)
