"""Model status in the database: a budget that holds, results, states, and what real calls say."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, insert

from ops_pipeline.database.engine import connect, database_now, reading, writing
from ops_pipeline.usage.probes.answers import (
    AVAILABLE,
    INCONCLUSIVE,
    LIMITED,
    NOT_TESTED,
    UNAVAILABLE,
    Answer,
    cleaned,
    read_answer,
)
from ops_pipeline.usage.probes.states import Status, Traffic
from ops_pipeline.usage.probes.store import (
    BY_TRAFFIC,
    PROBE_PURPOSE,
    SENT,
    VERIFICATION,
    Transition,
    complete,
    complete_by_traffic,
    read_statuses,
    read_traffic,
    reserve,
    retire,
    spent_on,
)
from ops_pipeline.usage.probes.targets import Key, ProbesFile, Target
from ops_pipeline.usage.tables import model_probe_results, model_statuses
from ops_pipeline_tests.usage.calls import at, call, change, erase, examples, remove, rows, write

MILLISECOND = timedelta(milliseconds=1)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
DOWN = Answer(UNAVAILABLE, "Timeout", "no answer", None)
LIMIT = Answer(LIMITED, "Rate Limit Exceeded", "slow down", 429, 5.0)
UP = Answer(AVAILABLE, "", "", 200, 12.5, 8, 1)


def target(model: str = "gpt", credits: str = "0", **fields: Any) -> Target:
    usual: dict[str, Any] = {"provider": "openai", "base_url": "https://h", "model": model}
    usual["expected_credits"] = Decimal(credits)
    return Target(**usual | fields)


def listed(*targets: Target, **limits: Any) -> ProbesFile:
    return ProbesFile(models=targets or (target(),), **limits)


def reserved(engine: Engine, file: ProbesFile, *targets: Target) -> list[bool]:
    """Whether the budget reached each target."""
    return [row is not None for row in reserve(engine, file, targets, PROBE_PURPOSE, "run")]


def spent(engine: Engine, now: datetime | None = None) -> tuple[int, Decimal]:
    with reading(engine) as connection:
        return spent_on(connection, now or database_now(connection))


def statuses(engine: Engine) -> dict[Key, Status]:
    with reading(engine) as connection:
        return read_statuses(connection)


def clock(engine: Engine) -> datetime:
    with reading(engine) as connection:
        return database_now(connection)


def probed(engine: Engine, probed_at: datetime, credits: str = "1", purpose: str = PROBE_PURPOSE) -> None:
    """Insert the result of a probe at any time."""
    with writing(engine) as connection:
        connection.execute(
            insert(model_probe_results).values(
                probed_at=probed_at,
                provider="openai",
                model="gpt",
                type="chatCompletion",
                purpose=purpose,
                result=AVAILABLE,
                state=AVAILABLE,
                credits=Decimal(credits),
                run_id="earlier",
            )
        )


def answered(engine: Engine, *answers: tuple[Target, Answer]) -> list[Transition]:
    """Probe, and complete all of it in one transaction."""
    targets = [one for one, _ in answers]
    ids = reserve(engine, listed(*targets[:1]), targets, PROBE_PURPOSE, "run")
    return complete(
        engine, [(row, one, answer) for row, (one, answer) in zip(ids, answers, strict=True) if row is not None]
    )


# The budget


def test_a_reservation_is_a_row_that_was_sent(engine: Engine) -> None:
    before = clock(engine)
    one = target("llama/3", "0.0000000001", provider="Ärger 🙂", type="embedding")
    (row,) = reserve(engine, listed(one), [one], VERIFICATION, "run-7")
    (found,) = rows(engine, model_probe_results)
    assert before <= found.pop("probed_at") <= clock(engine)
    assert found == {
        "id": row,
        "provider": "Ärger 🙂",
        "model": "llama/3",
        "type": "embedding",
        "purpose": VERIFICATION,
        "result": SENT,
        "state": NOT_TESTED,
        "error_code": "",
        "error_message": "",
        "http_status": None,
        "response_time_ms": None,
        "input_tokens": 0,
        "output_tokens": 0,
        "credits": Decimal("0.0000000001"),
        "run_id": "run-7",
    }
    assert statuses(engine) == {}


def test_no_more_probes_are_reserved_than_the_day_allows(engine: Engine) -> None:
    file = listed(probes_per_day=5)
    assert reserved(engine, file, *[target()] * 3) == [True] * 3
    assert reserved(engine, file, *[target()] * 3) == [True, True, False]
    assert reserved(engine, file, target()) == [False]
    assert spent(engine) == (5, 0)
    assert len(rows(engine, model_probe_results)) == 5
    assert reserved(engine, listed(probes_per_day=6), target(), target()) == [True, False]


def test_no_more_credits_are_reserved_than_the_day_allows_to_the_last_digit(engine: Engine) -> None:
    """Three times 0.1 is more than 0.3 in binary fractions."""
    file = listed(credits_per_day=Decimal("0.3"))
    assert reserved(engine, file, *[target(credits="0.1")] * 4) == [True, True, True, False]
    assert spent(engine) == (3, Decimal("0.3"))
    assert reserved(engine, file, target(credits="0.0000000001"), target()) == [False, True]


def test_what_a_small_budget_leaves_goes_to_cheaper_models(engine: Engine) -> None:
    """One model for images at the head of the list kept all others from being probed."""
    dear, cheap, free = target("dear", "2"), target("cheap", "0.4"), target("free")
    file = listed(credits_per_day=Decimal(1), probes_per_day=4)
    targets = [dear, cheap, dear, cheap, cheap, free, free]
    assert reserved(engine, file, *targets) == [False, True, False, True, False, True, True]
    assert spent(engine) == (4, Decimal("0.8"))
    assert reserved(engine, file, free) == [False]


@pytest.mark.parametrize("limits", [{"probes_per_day": 0}, {"credits_per_day": Decimal(0)}])
def test_a_budget_of_nothing_sends_nothing_that_costs(engine: Engine, limits: dict[str, Any]) -> None:
    assert reserved(engine, listed(**limits), target(credits="0.0000000001")) == [False]
    assert reserved(engine, listed(**limits), target()) == [limits.get("probes_per_day") != 0]


def test_nothing_to_send_reserves_nothing(engine: Engine) -> None:
    assert reserve(engine, listed(), [], PROBE_PURPOSE, "run") == []
    assert complete(engine, []) == []
    assert complete_by_traffic(engine, [], "run") == []
    assert (rows(engine, model_probe_results), statuses(engine)) == ([], {})


def test_the_budget_is_the_one_of_the_utc_day(engine: Engine) -> None:
    midnight = at("2026-03-10 00:00")
    for moment in (midnight - MILLISECOND, midnight, midnight + 5 * HOUR, midnight + 24 * HOUR - MILLISECOND):
        probed(engine, moment, "0.5")
    assert spent(engine, midnight - MILLISECOND) == (4, 2)
    assert spent(engine, midnight) == (3, Decimal("1.5"))
    assert spent(engine, midnight + 24 * HOUR - MILLISECOND) == (3, Decimal("1.5"))
    assert spent(engine, midnight + 24 * HOUR) == (0, 0)


def test_yesterdays_probes_do_not_count_today(engine: Engine) -> None:
    today = clock(engine).replace(hour=0, minute=0, second=0, microsecond=0)
    for _ in range(3):
        probed(engine, today - MILLISECOND, "5")
    probed(engine, today, "0.25")
    file = listed(probes_per_day=3, credits_per_day=Decimal("0.5"))
    assert reserved(engine, file, *[target(credits="0.125")] * 4) == [True, True, False, False]


def test_what_real_calls_showed_costs_no_budget(engine: Engine) -> None:
    one = target(credits="1")
    complete_by_traffic(engine, [one] * 5, "run")
    answered(engine, (one, UP))
    retire(engine, listed(target("other")), "run")
    assert spent(engine) == (1, 1)


def test_a_killed_run_has_spent_what_it_reserved(engine: Engine) -> None:
    """A process that was killed each time before it wrote its results had no limit at all."""
    file = listed(probes_per_day=4, credits_per_day=Decimal(1))
    for _ in range(3):
        killed = connect(engine.url.render_as_string(hide_password=False))
        reserve(killed, file, [target(credits="0.25")] * 2, PROBE_PURPOSE, "killed")
        killed.dispose()
    assert [row["result"] for row in rows(engine, model_probe_results)] == [SENT] * 4
    assert reserved(engine, file, target()) == [False]
    assert spent(engine) == (4, 1)


def test_several_runs_at_once_stay_within_the_budget(engine: Engine) -> None:
    """Two checks at once both saw a budget that was free."""
    file = listed(probes_per_day=17, credits_per_day=Decimal("1.5"))
    barrier, ids, problems = threading.Barrier(4), [], []

    def work() -> None:
        try:
            barrier.wait()
            for _ in range(4):
                ids.extend(reserve(engine, file, [target(credits="0.1"), target("free")], PROBE_PURPOSE, "run"))
        except Exception as error:  # noqa: BLE001 - told by the test
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    found = [row for row in ids if row is not None]
    assert len(ids) == 32
    assert len(found) == len(set(found)) == 17
    probes, credits = spent(engine)
    assert probes == 17
    assert credits <= Decimal("1.5")


@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5), max_size=5),
    st.integers(0, 12),
    st.integers(0, 30),
)
@examples(25)
def test_every_probe_that_the_budget_reaches_is_reserved_and_no_other(
    sqlite_engine: Engine, rounds: list[list[int]], probes: int, credits: int
) -> None:
    unit = Decimal("0.0000000003")
    file = listed(probes_per_day=probes, credits_per_day=credits * unit)
    erase(sqlite_engine)
    count = total = 0
    for prices in rounds:
        expected = []
        for price in prices:
            fits = count < probes and total + price <= credits
            count, total = count + fits, total + price * fits
            expected.append(fits)
        assert reserved(sqlite_engine, file, *[target(credits=f"{price * unit:f}") for price in prices]) == expected
    assert spent(sqlite_engine) == (count, total * unit)


# Results and states


def test_an_answer_is_written_to_its_row_and_to_the_state(engine: Engine) -> None:
    one = target(credits="0.5")
    before = clock(engine)
    (transition,) = answered(engine, (one, UP))
    status = statuses(engine)[one.key]
    assert transition == Transition(one.key, Status(), status)
    assert transition.flipped
    assert status.checked_at is not None
    assert before <= status.checked_at <= clock(engine)
    assert status == Status(AVAILABLE, "", "", 12.5, status.checked_at, status.checked_at)
    (row,) = rows(engine, model_probe_results)
    assert (row["result"], row["state"], row["http_status"], row["response_time_ms"]) == (
        AVAILABLE,
        AVAILABLE,
        200,
        12.5,
    )
    assert (row["input_tokens"], row["output_tokens"], row["credits"]) == (8, 1, Decimal("0.5"))
    assert (row["purpose"], row["run_id"], row["error_code"], row["error_message"]) == (PROBE_PURPOSE, "run", "", "")


def test_a_failure_is_written_with_its_error_and_the_state_that_stays(engine: Engine) -> None:
    one = target()
    (first,) = answered(engine, (one, UP))
    (second,) = answered(engine, (one, DOWN))
    assert not second.flipped
    assert second.before == first.after
    status = statuses(engine)[one.key]
    assert status == second.after
    assert (status.state, status.candidate, status.agreeing) == (AVAILABLE, UNAVAILABLE, 1)
    assert (status.error_code, status.error_message, status.response_time_ms) == ("Timeout", "no answer", None)
    assert status.changed_at == first.after.changed_at
    row = rows(engine, model_probe_results)[-1]
    assert (row["result"], row["state"], row["error_code"]) == (UNAVAILABLE, AVAILABLE, "Timeout")


def test_several_answers_of_a_model_at_once_count_in_their_order(engine: Engine) -> None:
    one, other = target(), target("other")
    answers = [(one, UP), (one, DOWN), (other, LIMIT), (one, DOWN), (one, DOWN), (other, UP)]
    transitions = answered(engine, *answers)
    assert [transition.key for transition in transitions] == [answer[0].key for answer in answers]
    states = [(transition.before.state, transition.after.state) for transition in transitions]
    assert states == [
        (NOT_TESTED, AVAILABLE),
        (AVAILABLE, AVAILABLE),
        (NOT_TESTED, NOT_TESTED),
        (AVAILABLE, AVAILABLE),
        (AVAILABLE, UNAVAILABLE),
        (NOT_TESTED, AVAILABLE),
    ]
    assert [row["state"] for row in rows(engine, model_probe_results)] == [after for _, after in states]
    assert {key: status.state for key, status in statuses(engine).items()} == {
        one.key: UNAVAILABLE,
        other.key: AVAILABLE,
    }
    assert statuses(engine)[one.key] == transitions[4].after


def test_the_same_model_for_two_types_and_of_two_providers_has_states_of_its_own(engine: Engine) -> None:
    chat, embedding, other = target(), target(type="embedding"), target(provider="azure")
    answered(engine, (chat, UP), (embedding, LIMIT), (embedding, LIMIT), (embedding, LIMIT), (other, DOWN))
    assert {key: status.state for key, status in statuses(engine).items()} == {
        chat.key: AVAILABLE,
        embedding.key: LIMITED,
        other.key: NOT_TESTED,
    }


@pytest.mark.parametrize(
    ("answers", "state", "available"),
    [
        ([UP], AVAILABLE, True),
        ([LIMIT] * 3, LIMITED, True),
        ([DOWN] * 3, UNAVAILABLE, False),
        ([DOWN], NOT_TESTED, None),
        ([Answer(INCONCLUSIVE, "Invalid Argument")], NOT_TESTED, None),
    ],
)
def test_others_read_from_the_table_whether_a_model_can_be_used(
    engine: Engine, answers: Sequence[Answer], state: str, available: bool | None
) -> None:
    answered(engine, *((target(), answer) for answer in answers))
    (row,) = rows(engine, model_statuses)
    assert (row["state"], row["available"]) == (state, available)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "zero \\u0000, half a pair \\ud800, \\u202e"}}',
        b"\x00\xff\xed\xa0\x80",
        b'{"error": {"message": "\'; DROP TABLE model_statuses; -- %s :x"}}',
        '{"error": "Ärger 🙂"}'.encode(),
    ],
)
def test_whatever_a_provider_says_can_be_written(engine: Engine, body: bytes) -> None:
    """A zero in one message, which PostgreSQL refuses, undid the results of all other models."""
    answer = cleaned(read_answer("chatCompletion", 500, body), [])
    answered(engine, (target(), answer), (target("other"), UP))
    assert rows(engine, model_probe_results)[0]["error_message"] == answer.error_message
    assert statuses(engine)[target().key].error_message == answer.error_message
    assert statuses(engine)[target("other").key].state == AVAILABLE


def test_runs_at_once_advance_a_state_one_after_the_other(engine: Engine) -> None:
    """Both read one failure and wrote a second: the third never came."""
    one = target(verify=7)
    answered(engine, (one, UP))
    ids = reserve(engine, listed(one), [one] * 8, PROBE_PURPOSE, "run")
    barrier, problems = threading.Barrier(4), []

    def work(mine: Sequence[int | None]) -> None:
        try:
            barrier.wait()
            for row in mine:
                assert row is not None
                complete(engine, [(row, one, DOWN)])
        except Exception as error:  # noqa: BLE001 - told by the test
            problems.append(error)

    threads = [threading.Thread(target=work, args=(ids[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert statuses(engine)[one.key].state == UNAVAILABLE
    assert sorted(row["state"] for row in rows(engine, model_probe_results)) == [AVAILABLE] * 8 + [UNAVAILABLE]


def test_real_calls_set_the_state_and_leave_a_row(engine: Engine) -> None:
    one, other = target(), target(type="embedding")
    (first, second) = complete_by_traffic(engine, [one, other], "run-7")
    assert (first.flipped, second.flipped) == (True, True)
    assert statuses(engine) == {one.key: first.after, other.key: second.after}
    for row in rows(engine, model_probe_results):
        assert (row["purpose"], row["result"], row["state"]) == (BY_TRAFFIC, AVAILABLE, AVAILABLE)
        assert (row["credits"], row["run_id"], row["response_time_ms"]) == (0, "run-7", None)
    (again,) = complete_by_traffic(engine, [one], "run-8")
    assert not again.flipped
    assert again.after.changed_at == first.after.changed_at
    assert again.after.checked_at is not None
    assert first.after.checked_at is not None
    assert again.after.checked_at >= first.after.checked_at


def test_a_model_that_is_no_longer_listed_has_no_state(engine: Engine) -> None:
    """A model that was taken from the list while it was down stood there as unavailable for a year."""
    gone, chat, embedding = target("gone"), target(), target(type="embedding")
    answered(engine, *[(gone, DOWN)] * 3, (chat, UP), (embedding, UP))
    before = statuses(engine)
    (transition,) = retire(engine, listed(chat, embedding), "run-9")
    after = statuses(engine)
    assert transition == Transition(gone.key, before[gone.key], after[gone.key])
    assert {key: after[key] for key in (chat.key, embedding.key)} == {
        key: before[key] for key in (chat.key, embedding.key)
    }
    retired = after[gone.key]
    assert (retired.state, retired.available, retired.error_code) == (NOT_TESTED, None, "")
    assert retired.error_message == "no longer in MODEL_PROBES_FILE"
    assert retired.checked_at == before[gone.key].checked_at
    assert retired.changed_at is not None
    row = rows(engine, model_probe_results)[-1]
    assert (row["model"], row["purpose"], row["result"], row["state"]) == ("gone", BY_TRAFFIC, NOT_TESTED, NOT_TESTED)
    assert (row["error_message"], row["run_id"], row["credits"]) == (retired.error_message, "run-9", 0)

    assert retire(engine, listed(chat, embedding), "run-10") == []
    assert statuses(engine) == after
    assert len(rows(engine, model_probe_results)) == 6

    (transition,) = retire(engine, listed(chat), "run-11")
    assert transition.key == embedding.key


def test_a_model_that_is_listed_again_starts_anew(engine: Engine) -> None:
    gone = target("gone")
    answered(engine, *[(gone, DOWN)] * 3)
    retire(engine, listed(), "run")
    (transition,) = answered(engine, (gone, UP))
    assert (transition.before.state, transition.after.state) == (NOT_TESTED, AVAILABLE)


# What real calls say


def traffic(engine: Engine, now: datetime, minutes: int = 15) -> dict[Key, Traffic]:
    with reading(engine) as connection:
        return read_traffic(connection, listed(traffic_minutes=minutes), now)


def test_calls_that_ended_are_counted_by_provider_model_and_type(engine: Engine) -> None:
    now = clock(engine)
    several = [
        call(now),
        call(now, status="failed"),
        call(now, type="embedding"),
        call(now, provider="azure"),
        call(now, model="gpt-2", status="failed"),
        call(now, provider=None),
        call(now, provider=None, type=None, status="failed"),
        call(now, provider="", type=""),
    ]
    write(engine, *several, *(call(now, status=status) for status in ("processing", None, "", "on fire")))
    assert traffic(engine, now) == {
        ("openai", "gpt", "chatCompletion"): Traffic(1, 1),
        ("openai", "gpt", "embedding"): Traffic(1, 0),
        ("azure", "gpt", "chatCompletion"): Traffic(1, 0),
        ("openai", "gpt-2", "chatCompletion"): Traffic(0, 1),
        ("", "gpt", "chatCompletion"): Traffic(1, 0),
        ("", "gpt", ""): Traffic(1, 1),
    }


def test_no_calls_are_no_traffic(engine: Engine) -> None:
    assert traffic(engine, clock(engine)) == {}


def test_a_call_counts_when_it_ends_and_then_for_some_minutes(engine: Engine) -> None:
    now = clock(engine)
    slow = call(now - 3 * HOUR, status="processing")
    write(engine, slow)
    assert traffic(engine, clock(engine)) == {}
    change(engine, slow, status="success")
    ended = clock(engine)
    counted = {target().key: Traffic(1, 0)}
    for minutes in (1, 15, 60):
        assert traffic(engine, ended, minutes) == counted
        assert traffic(engine, ended + minutes * MINUTE - 20 * timedelta(seconds=1), minutes) == counted
        assert traffic(engine, ended + minutes * MINUTE + timedelta(seconds=1), minutes) == {}
    remove(engine, slow)
    assert traffic(engine, ended) == {}


def test_old_calls_that_were_corrected_just_now_say_nothing(engine: Engine) -> None:
    """A correction of last year's prices touched a million calls, and proved models that were gone."""
    now = clock(engine)
    old = [call(now - hours * HOUR) for hours in (26, 24 * 365)]
    write(engine, *old, call(now - 23 * HOUR), call(now + 2 * HOUR))
    for one in old:
        change(engine, one, input_tokens=7)
    assert traffic(engine, clock(engine)) == {target().key: Traffic(1, 0)}


def test_calls_prove_the_model_that_they_were_made_to_and_no_other_type_of_it(engine: Engine) -> None:
    now = clock(engine)
    write(engine, *(call(now) for _ in range(3)), *(call(now, type="embedding", status="failed") for _ in range(2)))
    found = traffic(engine, now)
    assert found[target().key] == Traffic(3, 0)
    assert found[target(type="embedding").key] == Traffic(0, 2)
