"""Sums are exact, the same on both databases, and an error rather than wrong where they cannot be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, insert, select

from ops_pipeline.database.engine import writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.sums import exact_sum, exact_sum_of_floats, integer_sum
from ops_pipeline_tests.database.samples import as_read, ask, fill, on_one_database, samples, spell

BOUND = 2**63

credit_amounts = st.decimals(-(10**6), 10**6, places=10, allow_nan=False, allow_infinity=False)


def assert_sums_to_pythons(engine: Engine, amounts: Sequence[Decimal]) -> None:
    fill(engine, "amount", amounts)
    found = ask(engine, exact_sum(samples.c.amount, 10))
    assert found == sum(amounts, Decimal(0))
    assert isinstance(found, Decimal)


@given(values=st.lists(credit_amounts, max_size=60), seed=st.randoms(use_true_random=False))
@on_one_database
def test_a_sum_of_credits_is_pythons_in_any_order(sampled: Engine, values: list[Decimal], seed: random.Random) -> None:
    """Float credits drifted: a month's invoice differed from the sum of its days."""
    assert_sums_to_pythons(sampled, values)
    seed.shuffle(values)
    assert_sums_to_pythons(sampled, values)


@pytest.mark.parametrize(
    "amounts",
    [
        [],
        ["0.1"] * 1_000,
        ["0.0123456789", "0.0000000001", "-0.0123456790"],
        ["-0.0000000001"],
        ["99999.9999999999", "0.0000000001"],
        ["100000", "100000.0000000001", "-100000.0000000001"],
        ["123456.0123456789", "-123456.0123456788", "654321.9876543211"],
        ["-100000.5", "-99999.4999999999", "-12345678.0000000001"],
        ["900000000.0000000001", "22337203.0000000001"],
        ["-922337202.5"],
    ],
)
def test_sums_of_small_large_and_mixed_amounts_are_exact(sampled: Engine, amounts: list[str]) -> None:
    """Above 100,000 a float no longer holds ten digits, and SQLite reads the digits themselves."""
    assert_sums_to_pythons(sampled, [Decimal(amount) for amount in amounts])


def test_null_amounts_count_as_nothing(sampled: Engine) -> None:
    fill(sampled, "amount", [None, Decimal("0.5"), None])
    assert ask(sampled, exact_sum(samples.c.amount, 10)) == Decimal("0.5")
    fill(sampled, "amount", [None])
    assert ask(sampled, exact_sum(samples.c.amount, 10)) == 0


def test_literals_of_other_programs_sum_exactly(sampled: Engine) -> None:
    spell(sampled, "amount", "0.1", "'0.0123456789'", "1e-5", "'12345678.0123456789'", "200000", "-1", "'+0.5'")
    total = Decimal("0.1") + Decimal("0.0123456789") + Decimal("0.00001") + Decimal("12345678.0123456789") + 199_999
    assert ask(sampled, exact_sum(samples.c.amount, 10)) == total + Decimal("0.5")


def test_a_sum_is_stored_as_a_plain_decimal(sampled: Engine) -> None:
    """Whoever reads the roll-up with plain SQL must see -0.05, neither -0.5 nor 5E-2."""
    fill(sampled, "amount", [Decimal("-0.05"), Decimal("0.0499999999")])
    with writing(sampled) as connection:
        total = select(10, exact_sum(samples.c.amount, 10))
        connection.execute(insert(samples).from_select(["number", "amount"], total))
    assert as_read(sampled, "CAST(amount AS TEXT)")[-1] == "-0.0000000001"


@pytest.mark.parametrize(
    "amounts",
    [
        ["922337203.6854775808"],
        ["-9223372036.9"],
        ["500000000", "500000000"],
        ["-500000000", "-500000000"],
        ["99999999999999999999"],
    ],
)
def test_a_sum_beyond_64_bits_is_an_error_on_sqlite_and_exact_on_postgresql(
    sampled: Engine, amounts: list[str]
) -> None:
    """SQLite would turn it into a float and lose the last digits in silence."""
    values = [Decimal(amount) for amount in amounts]
    if sampled.dialect.name == "postgresql":
        assert_sums_to_pythons(sampled, values)
        return
    with pytest.raises(DatabaseProblem, match=r"integer overflow .* look for absurd tokens or credits"):
        assert_sums_to_pythons(sampled, values)


def test_an_amount_in_exponents_beyond_64_bits_is_an_error_on_sqlite(sampled_sqlite: Engine) -> None:
    spell(sampled_sqlite, "amount", "1e15")
    with pytest.raises(DatabaseProblem, match="integer overflow"):
        ask(sampled_sqlite, exact_sum(samples.c.amount, 10))


@given(values=st.lists(st.floats(-(10**8), 10**8, width=32), max_size=40), seed=st.randoms(use_true_random=False))
@on_one_database
def test_a_sum_of_durations_does_not_depend_on_their_order(
    sampled: Engine, values: list[float], seed: random.Random
) -> None:
    fill(sampled, "seconds", values)
    found = ask(sampled, exact_sum_of_floats(samples.c.seconds, 6))
    seed.shuffle(values)
    fill(sampled, "seconds", values)
    assert ask(sampled, exact_sum_of_floats(samples.c.seconds, 6)) == found
    # Each value is rounded to 6 digits; ties of binary halves may go either way.
    assert abs(found - sum(map(Decimal, values), Decimal(0))) <= Decimal("0.00000051") * len(values)


def test_sums_of_durations_are_decimal_without_drift(sampled: Engine) -> None:
    fill(sampled, "seconds", [0.1] * 1_000 + [None, 0.2, -0.3, 86_400.0])
    assert ask(sampled, exact_sum_of_floats(samples.c.seconds, 6)) == Decimal("86499.9")
    assert ask(sampled, exact_sum_of_floats(samples.c.seconds, 3)) == Decimal("86499.9")
    fill(sampled, "seconds", [])
    assert ask(sampled, exact_sum_of_floats(samples.c.seconds, 6)) == 0


@given(values=st.lists(st.integers(-(2**58), 2**58), max_size=30))
@on_one_database
def test_a_sum_of_tokens_is_pythons(sampled: Engine, values: list[int]) -> None:
    fill(sampled, "tokens", values)
    found = ask(sampled, integer_sum(samples.c.tokens))
    assert found == sum(values)
    assert isinstance(found, int)


def test_a_sum_of_tokens_reaches_the_last_of_64_bits_and_ignores_null(sampled: Engine) -> None:
    fill(sampled, "tokens", [BOUND - 2, None, 1])
    assert ask(sampled, integer_sum(samples.c.tokens)) == BOUND - 1
    fill(sampled, "tokens", [-BOUND])
    assert ask(sampled, integer_sum(samples.c.tokens)) == -BOUND


@pytest.mark.parametrize("values", [[BOUND - 1, 1], [-BOUND, -1], [2**62] * 3])
def test_a_sum_of_tokens_beyond_64_bits_is_an_error(sampled: Engine, values: list[int]) -> None:
    fill(sampled, "tokens", values)
    with pytest.raises(DatabaseProblem, match="exceeds 64 bits: look for absurd tokens"):
        ask(sampled, integer_sum(samples.c.tokens))


@pytest.mark.parametrize("literals", [["9223372036854775808"], ["-9223372036854775809"], ["5e18", "5e18"]])
def test_token_literals_beyond_64_bits_are_an_error_and_not_cut_to_the_largest_integer(
    sampled_sqlite: Engine, literals: list[str]
) -> None:
    """SQLite stores such a literal as a float; its sum, cast back, was 9223372036854775807 without a word."""
    spell(sampled_sqlite, "tokens", *literals)
    with pytest.raises(DatabaseProblem, match="exceeds 64 bits: look for absurd tokens"):
        ask(sampled_sqlite, integer_sum(samples.c.tokens))
