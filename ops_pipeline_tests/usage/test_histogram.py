"""Latency histograms: how exact they are, that they merge, and that both databases fill them as Python does."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from ops_pipeline.usage.histogram import (
    GAMMA,
    LARGEST_MS,
    RELATIVE_ERROR,
    SMALLEST_MS,
    bucket_of,
    bucket_value,
    histogram,
    merge,
    quantile,
    quantiles,
)
from ops_pipeline.usage.tables import hourly_model_latency
from ops_pipeline_tests.usage.calls import NOON, call, examples, rows, run, write

FIRST, LAST = bucket_of(SMALLEST_MS), bucket_of(LARGEST_MS)
# The largest value is below its bucket's bound, and the smallest above: within, the error is what is promised.
ROUNDING = 1e-9

values = st.floats(SMALLEST_MS, LARGEST_MS)
latencies = st.lists(values, min_size=1, max_size=200)
anything = st.floats(allow_nan=True, allow_infinity=True)
fractions = st.floats(0, 1)


def nearest_rank(sample: list[float], fraction: float) -> float:
    """The ceil(fraction * n)-th smallest of n values, computed without rounding."""
    rank = max(1, math.ceil(Fraction(str(fraction)) * len(sample)))
    return sorted(sample)[rank - 1]


# How exact a quantile is


def test_the_promised_error_is_below_two_percent() -> None:
    assert RELATIVE_ERROR < 0.02


@given(values)
@examples(200)
def test_a_value_is_answered_within_the_promised_error(value: float) -> None:
    assert abs(bucket_value(bucket_of(value)) - value) <= RELATIVE_ERROR * value * (1 + ROUNDING)


@given(latencies, fractions)
@examples(200)
def test_any_quantile_of_any_latencies_is_exact_to_two_percent(sample: list[float], fraction: float) -> None:
    exact = nearest_rank(sample, fraction)
    answer = quantile(histogram(sample), fraction)
    assert answer is not None
    assert abs(answer - exact) <= 0.02 * exact


@given(st.integers(0, 2**32), st.floats(0, 15), st.floats(0.01, 3), st.integers(1, 5000))
@examples(40)
def test_the_percentiles_of_believable_latencies_are_exact_to_two_percent(
    seed: int, middle: float, spread: float, number: int
) -> None:
    drawn = np.random.default_rng(seed).lognormal(middle, spread, number)
    sample = [min(value, LARGEST_MS) for value in drawn.tolist()]
    counts = histogram(sample)
    for name, fraction in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        exact = nearest_rank(sample, fraction)
        if exact >= SMALLEST_MS:
            assert abs(quantiles(counts)[name] - exact) <= 0.02 * exact


@pytest.mark.parametrize(
    ("fraction", "number", "rank"), [(0.28, 25, 7), (0.07, 100, 7), (0.55, 100, 55), (0.9, 70, 63), (0.99, 100, 99)]
)
def test_the_rank_is_that_of_the_decimal_fraction(fraction: float, number: int, rank: int) -> None:
    """As floats, 0.28 * 25 is a little more than 7, and its ceiling 8."""
    sample = [1.5**index for index in range(number)]
    assert quantile(histogram(sample), fraction) == bucket_value(bucket_of(sample[rank - 1]))


def test_the_ends_are_the_smallest_and_the_largest_value() -> None:
    counts = histogram([1.0, 1000.0])
    assert quantile(counts, 0) == bucket_value(bucket_of(1.0))
    assert quantile(counts, 1) == bucket_value(bucket_of(1000.0))


def test_an_empty_histogram_has_no_quantiles() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({7: 0}, 0.5) is None
    assert quantiles({}) == {"p50": None, "p90": None, "p95": None, "p99": None}


@pytest.mark.parametrize("fraction", [-0.01, 1.01, 99, math.nan])
def test_a_quantile_beyond_the_ends_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile({1: 1}, fraction)


# Merging


@given(st.lists(st.lists(anything, max_size=40), max_size=8))
@examples(100)
def test_merged_histograms_are_the_histogram_of_the_union(parts: list[list[float]]) -> None:
    union = [value for part in parts for value in part]
    assert merge(histogram(part) for part in parts) == histogram(union)


@given(st.lists(anything, max_size=60), st.randoms())
@examples(50)
def test_the_order_of_values_is_irrelevant(sample: list[float], random: Random) -> None:
    shuffled = list(sample)
    random.shuffle(shuffled)
    assert histogram(shuffled) == histogram(sample)


# Absurd values are counted in the outermost buckets, and never lost


@given(anything)
@examples(200)
def test_every_value_has_a_bucket(value: float) -> None:
    assert FIRST <= bucket_of(value) <= LAST


@given(anything, anything)
@examples(200)
def test_a_larger_value_never_has_a_lower_bucket(one: float, other: float) -> None:
    if one <= other:
        assert bucket_of(one) <= bucket_of(other)


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, -1e300, -math.inf, 1e-300, SMALLEST_MS])
def test_what_is_not_positive_counts_as_the_smallest(value: float) -> None:
    assert bucket_of(value) == FIRST


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, LARGEST_MS])
def test_what_is_absurdly_long_counts_as_the_largest(value: float) -> None:
    assert bucket_of(value) == LAST


# The databases' buckets


def stored(engine: Engine) -> dict[str, Counter[int]]:
    """The buckets of each metric."""
    found: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows(engine, hourly_model_latency):
        found[row["metric"]][row["bucket"]] += row["calls"]
    return found


def timed(duration_seconds: float | None, ttfb_ms: float | None, **fields: Any) -> dict[str, Any]:
    """A call with these timings."""
    return call(duration_seconds=duration_seconds, ttfb_ms=ttfb_ms, **fields)


def test_the_database_fills_the_buckets_that_python_fills(engine: Engine) -> None:
    sample = np.random.default_rng(7).lognormal(6, 4, 1500).tolist()
    write(engine, *(timed(value / 1000, value) for value in sample))
    run(engine, NOON)
    found = stored(engine)
    assert found["ttfb"] == histogram(sample)
    assert found["duration"] == histogram(value / 1000 * 1000 for value in sample)


def test_a_value_on_a_bound_lands_on_one_side_of_it(engine: Engine) -> None:
    """Two logarithms may differ in their last bit; either bucket then holds the value to within the error."""
    bounds = range(FIRST + 1, LAST, 40)
    for bucket in bounds:
        write(engine, timed(None, GAMMA**bucket, model=f"m{bucket}"))
    run(engine, NOON)
    placed = {int(row["model"][1:]): row["bucket"] for row in rows(engine, hourly_model_latency)}
    assert set(placed) == set(bounds)
    for bucket, there in placed.items():
        assert there in {bucket, bucket + 1}
        assert abs(bucket_value(there) - GAMMA**bucket) <= 0.02 * GAMMA**bucket


@pytest.mark.parametrize(
    "value", [0.0, -5.0, -1e306, 1e-320, 1e12, 1e306, 1.7e308, math.inf, -math.inf], ids=lambda value: f"{value:g}"
)
def test_an_absurd_timing_is_counted_where_python_counts_it(engine: Engine, value: float) -> None:
    """A duration of 1e306 s is a finite number of seconds and no finite number of milliseconds."""
    write(engine, timed(value, value), timed(2.0, 300.0))
    (chunk,) = run(engine, NOON)
    assert not chunk.failures
    found = stored(engine)
    assert found["ttfb"] == histogram([value, 300.0])
    assert found["duration"] == histogram([value * 1000, 2000.0])


def test_nan_counts_as_the_longest_where_the_database_knows_nan(engine: Engine) -> None:
    """SQLite has no NaN: it keeps NULL, which is no timing at all."""
    write(engine, timed(math.nan, math.nan), timed(2.0, 300.0))
    run(engine, NOON)
    known = [math.nan] if engine.dialect.name == "postgresql" else []
    found = stored(engine)
    assert found["ttfb"] == histogram([*known, 300.0])
    assert found["duration"] == histogram([*known, 2000.0])


def test_only_timings_of_successful_calls_are_counted(engine: Engine) -> None:
    """A provider that rejects at once looked like the fastest of all, one that times out like the slowest."""
    write(
        engine,
        timed(2.0, 300.0),
        timed(None, None),
        timed(9.0, 900.0, status="failed"),
        timed(9.0, 900.0, status="processing"),
        timed(9.0, 900.0, status="weird"),
        timed(9.0, 900.0, status=None),
    )
    run(engine, NOON)
    assert stored(engine) == {"duration": histogram([2000.0]), "ttfb": histogram([300.0])}


def test_buckets_are_kept_by_provider_model_and_type(engine: Engine) -> None:
    write(
        engine,
        timed(2.0, None),
        timed(2.0, None, user_id="ben", app_id="mail"),
        timed(2.0, None, model="other"),
        timed(2.0, None, provider=None),
        timed(2.0, None, type=None),
    )
    run(engine, NOON)
    found = {(row["provider"], row["model"], row["type"]): row["calls"] for row in rows(engine, hourly_model_latency)}
    assert found == {
        ("openai", "gpt", "chatCompletion"): 2,
        ("openai", "other", "chatCompletion"): 1,
        ("", "gpt", "chatCompletion"): 1,
        ("openai", "gpt", ""): 1,
    }
