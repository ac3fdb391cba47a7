"""The table of models: latency, uptime and order, from the results of probes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, insert

from ops_pipeline.database.engine import reading, writing
from ops_pipeline.usage.probes.answers import AVAILABLE, LIMITED, NOT_TESTED, UNAVAILABLE, Answer
from ops_pipeline.usage.probes.figures import DAY, WEEK, ModelRow, model_rows, percentiles
from ops_pipeline.usage.probes.states import Status
from ops_pipeline.usage.probes.store import BY_TRAFFIC, PROBE_PURPOSE, SENT, VERIFICATION, complete, reserve, retire
from ops_pipeline.usage.probes.targets import Key, ProbesFile, Target
from ops_pipeline.usage.tables import model_probe_results, model_statuses
from ops_pipeline_tests.usage.calls import NOON, examples

HOUR = timedelta(hours=1)
GPT: Key = ("openai", "gpt", "chatCompletion")


def result(before: timedelta, state: str = AVAILABLE, **fields: Any) -> dict[str, Any]:
    """A row of `model_probe_results` so long before noon, of a probe that found this state."""
    key = dict(zip(("provider", "model", "type"), fields.pop("key", GPT), strict=True))
    return {
        "probed_at": NOON - before,
        "purpose": PROBE_PURPOSE,
        "result": state,
        "state": state,
        "response_time_ms": None,
        "credits": Decimal(0),
        "run_id": "run",
    } | (key | fields)


def keep(engine: Engine, *results: dict[str, Any]) -> None:
    with writing(engine) as connection:
        connection.execute(insert(model_probe_results), list(results))


def table(engine: Engine, *keys: Key, now: datetime = NOON) -> list[ModelRow]:
    with reading(engine) as connection:
        return model_rows(connection, keys or (GPT,), now)


def uptimes(engine: Engine, key: Key = GPT, now: datetime = NOON) -> tuple[float | None, float | None]:
    """Uptime of the last day and of the last week."""
    (row,) = table(engine, key, now=now)
    return row.uptime_day, row.uptime_week


# Percentiles


def test_percentiles_of_nothing_and_of_one_value() -> None:
    assert percentiles([]) == (None, None)
    assert percentiles([7.5]) == (7.5, 7.5)


def test_percentiles_of_two_values_lie_between_them() -> None:
    assert percentiles([200.0, 100.0]) == pytest.approx((150, 195))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
@examples(200)
def test_percentiles_are_interpolated_linearly(values: list[float]) -> None:
    expected = (float(np.percentile(values, 50)), float(np.percentile(values, 95)))
    assert percentiles(values) == pytest.approx(expected, abs=1e-6)


# Latency


def latency(engine: Engine) -> tuple[float | None, float | None]:
    (row,) = table(engine)
    return row.p50_ms, row.p95_ms


def test_latency_is_the_one_of_successful_probes_of_a_week(engine: Engine) -> None:
    times = [float(number * 10) for number in range(1, 21)]
    keep(engine, *(result(number * HOUR, response_time_ms=time) for number, time in enumerate(times, start=1)))
    keep(
        engine,
        result(WEEK, response_time_ms=5000.0, purpose=VERIFICATION),
        result(WEEK + HOUR, response_time_ms=90_000.0),
    )
    counted = [*times, 5000.0]
    assert latency(engine) == pytest.approx((np.percentile(counted, 50), np.percentile(counted, 95)))


@pytest.mark.parametrize(
    "uncounted",
    [
        {"result": UNAVAILABLE},
        {"result": LIMITED},
        {"result": SENT},
        {"purpose": BY_TRAFFIC},
        {"response_time_ms": None},
        {"provider": "azure"},
        {"type": "embedding"},
    ],
    ids=str,
)
def test_no_other_row_counts_for_latency(engine: Engine, uncounted: dict[str, Any]) -> None:
    """A refusal comes faster than any answer: the median of a limited model was the best of all."""
    keep(engine, result(HOUR, response_time_ms=100.0), result(2 * HOUR, response_time_ms=1.0) | uncounted)
    assert latency(engine) == (100.0, 100.0)


# Uptime


def test_a_model_never_probed_has_no_figures(engine: Engine) -> None:
    assert table(engine) == [ModelRow(GPT, Status(), None, None, None, None)]


def test_uptime_counts_from_the_last_state_before_the_time_looked_at(engine: Engine) -> None:
    """A state that was last confirmed eight days ago is still the state: its model had no uptime."""
    keep(engine, result(30 * DAY, UNAVAILABLE), result(8 * DAY, AVAILABLE))
    assert uptimes(engine) == (1, 1)
    keep(engine, result(6 * HOUR, UNAVAILABLE))
    assert uptimes(engine) == pytest.approx((0.75, 1 - 6 / (7 * 24)))
    keep(engine, result(3 * HOUR, LIMITED))
    assert uptimes(engine) == pytest.approx((0.875, 1 - 3 / (7 * 24)))


def test_the_first_probe_begins_the_known_time(engine: Engine) -> None:
    keep(engine, result(4 * HOUR, UNAVAILABLE), result(HOUR, AVAILABLE))
    assert uptimes(engine) == (0.25, 0.25)


def test_what_was_before_the_last_day_counts_for_the_week_only(engine: Engine) -> None:
    keep(engine, result(4 * DAY, UNAVAILABLE), result(2 * DAY, AVAILABLE), result(HOUR, AVAILABLE))
    assert uptimes(engine) == (1, 0.5)


def test_the_state_counts_and_not_the_single_result(engine: Engine) -> None:
    keep(engine, result(2 * HOUR), result(HOUR, AVAILABLE, result=UNAVAILABLE))
    assert uptimes(engine) == (1, 1)


def test_real_calls_count_for_uptime(engine: Engine) -> None:
    keep(engine, result(2 * HOUR, UNAVAILABLE), result(HOUR, purpose=BY_TRAFFIC))
    assert uptimes(engine) == (0.5, 0.5)


@pytest.mark.parametrize("before", [9 * DAY, 8 * DAY, 90 * timedelta(minutes=1), timedelta(0)])
def test_a_probe_that_was_sent_and_never_answered_changes_no_uptime(engine: Engine, before: timedelta) -> None:
    """A killed run's rows carry no state, and the model was unknown from then on."""
    keep(engine, result(9 * DAY), result(8 * DAY), result(HOUR), result(before, NOT_TESTED, result=SENT))
    assert uptimes(engine) == (1, 1)


def test_the_time_after_a_model_was_taken_from_the_list_does_not_count(engine: Engine) -> None:
    gone = result(2 * HOUR, NOT_TESTED, purpose=BY_TRAFFIC)
    keep(engine, result(4 * HOUR, UNAVAILABLE), result(3 * HOUR), gone)
    assert uptimes(engine) == (0.5, 0.5)
    keep(engine, result(HOUR))
    assert uptimes(engine) == pytest.approx((2 / 3, 2 / 3))
    assert uptimes(engine, now=NOON + 30 * HOUR) == pytest.approx((1, 32 / 33))


def test_models_do_not_share_their_history(engine: Engine) -> None:
    others: Sequence[Key] = [("azure", "gpt", "chatCompletion"), ("openai", "gpt", "embedding")]
    keep(
        engine,
        result(10 * DAY, UNAVAILABLE),
        *(result(9 * DAY, key=key) for key in others),
        *(result(HOUR, key=key) for key in others),
    )
    assert uptimes(engine) == (0, 0)
    assert [uptimes(engine, key) for key in others] == [(1, 1), (1, 1)]


# The table


def test_models_that_are_not_available_come_first_and_then_by_name(engine: Engine) -> None:
    states = {"a": AVAILABLE, "b": UNAVAILABLE, "c": LIMITED, "d": AVAILABLE, "e": NOT_TESTED, "unlisted": UNAVAILABLE}
    key = {"provider": "p", "type": "embedding"}
    with writing(engine) as connection:
        connection.execute(
            insert(model_statuses), [{"model": name, "state": state} | key for name, state in states.items()]
        )
    keys = [("p", name, "embedding") for name in ("never", "d", "e", "c", "b", "a")]
    found = table(engine, *keys)
    assert [row.key[1] for row in found] == ["b", "c", "e", "never", "a", "d"]
    assert [row.status.state for row in found] == [UNAVAILABLE, LIMITED, NOT_TESTED, NOT_TESTED, AVAILABLE, AVAILABLE]
    assert table(engine, *reversed(keys)) == found


def test_the_table_shows_what_a_check_has_written(engine: Engine) -> None:
    one = Target(provider="openai", base_url="https://h", model="gpt", verify=0)
    file = ProbesFile(models=(one,))

    def probe(answer: Answer) -> datetime:
        (row,) = reserve(engine, file, [one], PROBE_PURPOSE, "run")
        assert row is not None
        (transition,) = complete(engine, [(row, one, answer)])
        assert transition.after.checked_at is not None
        return transition.after.checked_at

    probe(Answer(AVAILABLE, http_status=200, response_time_ms=40.0))
    last = probe(Answer(AVAILABLE, http_status=200, response_time_ms=60.0))
    (row,) = table(engine, one.key, now=last + HOUR)
    assert (row.status.state, row.p50_ms, row.uptime_day, row.uptime_week) == (AVAILABLE, 50.0, 1, 1)
    last = probe(Answer(UNAVAILABLE, "Timeout", response_time_ms=None))
    (row,) = table(engine, one.key, now=last + HOUR)
    assert (row.status.state, row.status.error_code, row.p50_ms) == (UNAVAILABLE, "Timeout", 50.0)
    assert row.uptime_day == pytest.approx(0, abs=0.01)
    retire(engine, ProbesFile(models=(one.model_copy(update={"model": "other"}),)), "run")
    (row,) = table(engine, one.key, now=last + 30 * HOUR)
    assert (row.status.state, row.uptime_day) == (NOT_TESTED, None)
