"""What an aggregation refuses, what it does when an hour fails, and that a dry run keeps nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, event

from ops_pipeline.database import retry
from ops_pipeline.database.engine import connect, writing
from ops_pipeline.database.errors import Conflict, DatabaseProblem, Unreachable
from ops_pipeline.usage import aggregate as module
from ops_pipeline.usage.aggregate import ChunkResult, HourFailure, Policy, aggregate, refusal
from ops_pipeline.usage.hours import HOUR
from ops_pipeline.usage.tables import (
    hourly_model_latency,
    hourly_model_usage,
    usage_hour_attempts,
    usage_hours,
)
from ops_pipeline_tests.usage.calls import (
    NOON,
    assert_rolled_up,
    at,
    call,
    change,
    contents,
    execute,
    remove,
    rows,
    run,
    totals,
    write,
)

MIDNIGHT = at("2026-03-10 00:00")
DAY = [MIDNIGHT + number * HOUR for number in range(24)]


def day_of_calls(engine: Engine, each: int = 2) -> list[dict[str, Any]]:
    """Write some calls in every hour of a day."""
    calls = [call(hour + timedelta(minutes=minute)) for hour in DAY for minute in range(each)]
    write(engine, *calls)
    return calls


def failures(chunks: list[ChunkResult]) -> list[HourFailure]:
    """The hours that failed."""
    return [failure for chunk in chunks for failure in chunk.failures]


def succeeded(chunks: list[ChunkResult]) -> list[datetime]:
    """The hours that were done."""
    return [result.hour for chunk in chunks for result in chunk.hours]


def attempts(engine: Engine) -> dict[datetime, int]:
    """Failed attempts by hour."""
    return {row["hour"]: row["attempts"] for row in rows(engine, usage_hour_attempts)}


# Fewer calls than before: pruned, or corrected?


def test_an_hour_that_lost_most_of_its_calls_keeps_its_numbers(engine: Engine) -> None:
    """Raw calls are pruned after some weeks; an hour made again from what is left would lose what was billed."""
    calls = [call() for _ in range(10)]
    write(engine, *calls)
    run(engine, NOON)
    before = contents(engine, hourly_model_usage, hourly_model_latency, usage_hours)
    remove(engine, *calls[:6])
    (failure,) = failures(run(engine, NOON))
    assert failure.hour == NOON
    assert "Only 4 of the 10 calls" in failure.error
    assert "allow_shrink" in failure.error
    assert not failure.mismatch
    assert contents(engine, hourly_model_usage, hourly_model_latency, usage_hours) == before
    assert attempts(engine) == {NOON: 1}


@pytest.mark.parametrize(("before", "left", "refused"), [(10, 5, False), (10, 4, True), (3, 2, False), (3, 1, True)])
def test_exactly_half_of_the_calls_is_a_correction(engine: Engine, before: int, left: int, refused: bool) -> None:
    calls = [call() for _ in range(before)]
    write(engine, *calls)
    run(engine, NOON)
    remove(engine, *calls[left:])
    assert bool(failures(run(engine, NOON))) == refused
    assert totals(engine)["calls"] == (before if refused else left)


def test_an_hour_of_which_every_call_was_deleted_is_emptied_only_when_told_to(engine: Engine) -> None:
    calls = [call(), call(user_id="ben")]
    write(engine, *calls)
    run(engine, NOON)
    remove(engine, *calls)
    (failure,) = failures(run(engine, NOON))
    assert "Only 0 of the 2 calls" in failure.error
    assert totals(engine)["calls"] == 2
    (before,) = rows(engine, usage_hours)
    (chunk,) = run(engine, NOON, allow_shrink=True)
    assert chunk.replaced.deleted == 4
    assert not failures([chunk])
    assert rows(engine, hourly_model_usage) == rows(engine, hourly_model_latency) == []
    (row,) = rows(engine, usage_hours)
    assert (row["calls"], row["state"], row["revision"]) == (0, "complete", before["revision"] + 1)
    assert attempts(engine) == {}


def test_an_hour_whose_record_was_lost_is_not_made_from_fewer_calls(engine: Engine) -> None:
    """Without its row in `usage_hours` the guard knows no earlier count, but the roll-up itself still has one."""
    calls = [call() for _ in range(10)]
    write(engine, *calls)
    run(engine, NOON)
    execute(engine, "DELETE FROM usage_hours")
    remove(engine, *calls[:6])
    (failure,) = failures(run(engine, NOON))
    assert "Only 4 of the 10 calls" in failure.error
    assert totals(engine)["calls"] == 10


def test_an_hour_before_the_pruning_is_never_made_again(engine: Engine) -> None:
    calls = [call(NOON), call(NOON + HOUR)]
    write(engine, *calls)
    run(engine, NOON, NOON + HOUR)
    for one in calls:
        change(engine, one, input_tokens=999)
    (failure,) = failures(run(engine, NOON, NOON + HOUR, pruned_before=NOON + HOUR))
    assert failure.hour == NOON
    assert "all before 2026-03-10 13:00, see MODEL_CALLS_PRUNED_BEFORE" in failure.error
    assert [row["input_tokens"] for row in rows(engine, hourly_model_usage)] == [10, 999]
    assert not failures(run(engine, NOON, NOON + HOUR, pruned_before=NOON + HOUR, allow_shrink=True))
    assert_rolled_up(engine, calls)


def test_a_refused_hour_does_not_hold_up_its_neighbours(engine: Engine) -> None:
    calls = day_of_calls(engine, each=3)
    run(engine, *DAY)
    gone = [one for one in calls if one["called_at"].hour in {3, 11, 12} and one["called_at"].minute]
    changed = next(one for one in calls if one["called_at"].hour == 20)
    remove(engine, *gone)
    change(engine, changed, input_tokens=77)
    chunks = run(engine, *DAY)
    assert {failure.hour.hour for failure in failures(chunks)} == {3, 11, 12}
    assert len(succeeded(chunks)) == 21
    # Those refused keep what they had, the others have what there is now.
    assert_rolled_up(engine, calls)


@pytest.mark.parametrize(
    ("before", "now", "policy", "refused"),
    [
        (None, None, Policy(), False),
        (None, 5, Policy(), False),
        (0, None, Policy(), False),
        (1, None, Policy(), True),
        (1, None, Policy(allow_shrink=True), False),
        (5, 50, Policy(), False),
        (5, 50, Policy(pruned_before=NOON), False),
        (5, 50, Policy(pruned_before=NOON + HOUR), True),
        (None, 50, Policy(pruned_before=NOON + HOUR), True),
        (5, 50, Policy(pruned_before=NOON + HOUR, allow_shrink=True), False),
    ],
)
def test_the_guard_is_a_rule_of_its_own(before: int | None, now: int | None, policy: Policy, refused: bool) -> None:
    known = None if before is None else {"calls": before}
    facts = None if now is None else {"calls": now}
    assert bool(refusal(NOON, known, facts, policy)) == refused


# An hour that fails


def overflow_tokens(engine: Engine, hour: datetime) -> list[dict[str, Any]]:
    """Two calls whose tokens together exceed 64 bits."""
    odd = [call(hour, input_tokens=2**62) for _ in range(2)]
    write(engine, *odd)
    return odd


def overflow_literal(engine: Engine, hour: datetime) -> list[dict[str, Any]]:
    """Credits, or on PostgreSQL tokens, of absurd size, written by a program of somebody else."""
    if engine.dialect.name == "postgresql":
        return overflow_tokens(engine, hour)
    odd = call(hour, credits=Decimal(999_999_999))
    write(engine, odd)
    return [odd]


@pytest.mark.parametrize("overflow", [overflow_tokens, overflow_literal])
def test_an_hour_whose_sums_exceed_64_bits_fails_alone(
    engine: Engine, overflow: Callable[[Engine, datetime], list[dict[str, Any]]]
) -> None:
    """One absurd call made the aggregation of a whole day fail, every hour, until somebody looked."""
    calls = day_of_calls(engine)
    odd = overflow(engine, DAY[7])
    chunks = run(engine, *DAY)
    (failure,) = failures(chunks)
    assert failure.hour == DAY[7]
    assert "exceeds 64 bits: look for absurd tokens or credits in the calls of that hour" in failure.error
    assert sorted(succeeded(chunks)) == [hour for hour in DAY if hour != DAY[7]]
    assert_rolled_up(engine, [one for one in calls if one["called_at"].hour != 7])
    (row,) = rows(engine, usage_hour_attempts)
    assert (row["hour"], row["attempts"]) == (DAY[7], 1)
    assert "64 bits" in row["error"]

    chunks = run(engine, *DAY)
    assert [len(chunk.window) for chunk in chunks] == [7, 1, 16]
    assert attempts(engine) == {DAY[7]: 2}

    for one in odd:
        change(engine, one, input_tokens=1, credits=Decimal(1))
    assert not failures(run(engine, *DAY))
    assert attempts(engine) == {}
    assert_rolled_up(engine, calls + odd)


def test_several_failing_hours_are_each_isolated(engine: Engine) -> None:
    calls = day_of_calls(engine)
    for number in (0, 7, 8, 23):
        overflow_tokens(engine, DAY[number])
    chunks = run(engine, *DAY)
    assert [failure.hour.hour for failure in failures(chunks)] == [0, 7, 8, 23]
    assert len(chunks) == 1
    assert succeeded(chunks) == [hour for hour in DAY if hour.hour not in {0, 7, 8, 23}]
    assert_rolled_up(engine, [one for one in calls if one["called_at"].hour not in {0, 7, 8, 23}])
    assert attempts(engine) == dict.fromkeys((DAY[0], DAY[7], DAY[8], DAY[23]), 1)


def test_an_hour_done_before_keeps_its_numbers_when_it_fails_now(engine: Engine) -> None:
    calls = day_of_calls(engine)
    run(engine, *DAY)
    before = contents(engine, hourly_model_usage, hourly_model_latency, usage_hours)
    overflow_tokens(engine, DAY[7])
    assert len(failures(run(engine, DAY[7]))) == 1
    assert contents(engine, hourly_model_usage, hourly_model_latency, usage_hours) == before
    assert_rolled_up(engine, calls)


def test_a_key_too_long_for_the_index_fails_its_hour_with_a_line_that_says_so(postgres_engine: Engine) -> None:
    """A prompt had been written into the user's column."""
    calls = day_of_calls(postgres_engine)
    write(postgres_engine, call(DAY[5], user_id="".join(chr(33 + (number * number) % 8191) for number in range(4000))))
    (failure,) = failures(run(postgres_engine, *DAY))
    assert failure.hour == DAY[5]
    assert "index row" in failure.error
    assert "\n" not in failure.error
    assert_rolled_up(postgres_engine, [one for one in calls if one["called_at"].hour != 5])


def test_credits_that_are_no_number_fail_their_hour_with_a_clear_message(postgres_engine: Engine) -> None:
    """PostgreSQL's numeric knows NaN, and a sum with it is NaN: equal to nothing, itself included."""
    day_of_calls(postgres_engine)
    execute(postgres_engine, "UPDATE model_calls SET credits = 'NaN' WHERE called_at = '2026-03-10 05:00+00'")
    (failure,) = failures(run(postgres_engine, *DAY))
    assert failure.hour == DAY[5]
    assert "credits" in failure.error
    assert "NaN" in failure.error


def test_a_roll_up_that_does_not_add_up_is_not_kept(engine: Engine) -> None:
    """A trigger of somebody's that drops rows, or a defect of this program: the check must notice either."""
    calls = day_of_calls(engine)
    drop = "DELETE FROM hourly_model_usage WHERE hour = NEW.hour"
    if engine.dialect.name == "postgresql":
        execute(
            engine,
            "CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF extract(hour FROM NEW.hour) = 3 THEN RETURN NULL; END IF; RETURN NEW; END $$",
        )
        execute(
            engine,
            "CREATE TRIGGER drop_row BEFORE INSERT ON hourly_model_usage FOR EACH ROW EXECUTE FUNCTION drop_row()",
        )
    else:
        execute(
            engine,
            "CREATE TRIGGER drop_row AFTER INSERT ON hourly_model_usage"
            f" WHEN strftime('%H', NEW.hour) = '03' BEGIN {drop}; END",
        )
    (failure,) = failures(run(engine, *DAY))
    assert (failure.hour, failure.mismatch) == (DAY[3], True)
    assert failure.error == "2026-03-10 03:00: the roll-up has calls 0, the raw calls 2"
    assert DAY[3] not in {row["hour"] for row in rows(engine, hourly_model_latency)}
    assert len(rows(engine, usage_hours)) == 23
    assert totals(engine)["calls"] == len(calls) - 2


@pytest.mark.parametrize("hour", [NOON + timedelta(minutes=30), NOON.replace(tzinfo=None)], ids=str)
def test_what_is_no_whole_utc_hour_is_refused_before_anything_is_done(engine: Engine, hour: datetime) -> None:
    write(engine, call())
    with pytest.raises(ValueError, match=r"no range of whole UTC hours|no time zone"):
        run(engine, hour)
    assert not any(contents(engine).values())


# The database fails


def test_a_missing_table_stops_the_run_and_blames_no_hour(engine: Engine) -> None:
    day_of_calls(engine)
    working = aggregate(engine, [hour + delta for delta in (timedelta(0), timedelta(days=1)) for hour in DAY], Policy())
    assert len(next(working).hours) == 24
    execute(engine, "DROP TABLE hourly_model_latency")
    with pytest.raises(Unreachable, match="ops-pipeline migrate"):
        next(working)
    assert len(rows(engine, usage_hours)) == 24
    assert attempts(engine) == {}


def test_a_broken_environment_does_not_use_up_the_attempts_of_hours(engine: Engine) -> None:
    """A disk was full for an hour, and the hours that had tried to be done in it waited for a person ever after."""
    odd = overflow_tokens(engine, DAY[7])
    assert len(failures(run(engine, *DAY))) == 1
    execute(engine, "ALTER TABLE hourly_model_latency RENAME TO elsewhere")
    for _ in range(3):
        with pytest.raises(Unreachable):
            run(engine, *DAY)
        assert attempts(engine) == {DAY[7]: 1}
    execute(engine, "ALTER TABLE elsewhere RENAME TO hourly_model_latency")
    assert [failure.hour for failure in failures(run(engine, *DAY))] == [DAY[7]]
    assert attempts(engine) == {DAY[7]: 2}
    remove(engine, *odd)
    assert not failures(run(engine, *DAY))
    assert attempts(engine) == {}


def test_a_lost_connection_stops_the_run_and_the_next_one_goes_on(postgres_engine: Engine) -> None:
    calls = day_of_calls(postgres_engine)
    seen: list[str] = []

    @event.listens_for(postgres_engine, "before_cursor_execute")
    def terminate(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "hourly_model_latency" in statement and not seen:
            seen.append(statement)
            with connect(postgres_engine.url.render_as_string(hide_password=False)).connect() as other:
                pid = connection.connection.driver_connection.info.backend_pid
                other.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")

    with pytest.raises(Unreachable):
        run(postgres_engine, *DAY)
    assert rows(postgres_engine, usage_hours) == rows(postgres_engine, hourly_model_usage) == []
    assert attempts(postgres_engine) == {}
    assert not failures(run(postgres_engine, *DAY))
    assert_rolled_up(postgres_engine, calls)


def test_a_transaction_that_lost_a_conflict_is_tried_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = day_of_calls(engine)
    real, tries = module._rewrite, []

    def unlucky(*arguments: Any) -> ChunkResult:
        tries.append(1)
        if len(tries) < 3:
            raise Conflict("another transaction")
        return real(*arguments)

    monkeypatch.setattr(module, "_rewrite", unlucky)
    assert not failures(run(engine, *DAY))
    assert len(tries) == 3
    assert_rolled_up(engine, calls)


def test_a_lock_that_somebody_holds_for_hours_is_waited_for_a_few_times_and_not_per_hour(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halving a day finds a bad hour. It does not find a lock: it waited 30 s five times for each of 47 windows."""
    day_of_calls(sqlite_engine)
    tries = []

    def unlucky(*_: Any) -> ChunkResult:
        tries.append(1)
        raise Conflict("database is locked")

    monkeypatch.setattr(module, "_rewrite", unlucky)
    monkeypatch.setattr(retry, "CONFLICT_ATTEMPTS", 2)
    assert {failure.error for failure in failures(run(sqlite_engine, *DAY))} == {"database is locked"}
    assert len(tries) == 2
    assert attempts(sqlite_engine) == dict.fromkeys(DAY, 1)


def test_any_other_trouble_with_the_database_is_the_hours_own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    day_of_calls(engine)
    real = module._rewrite

    def troubled(engine: Engine, window: Any, policy: Policy) -> ChunkResult:
        if DAY[9] in window:
            raise DatabaseProblem("this hour is cursed")
        return real(engine, window, policy)

    monkeypatch.setattr(module, "_rewrite", troubled)
    (failure,) = failures(run(engine, *DAY))
    assert (failure.hour, failure.error) == (DAY[9], "this hour is cursed")
    assert len(rows(engine, usage_hours)) == 23


# Dry run


def test_a_dry_run_reports_what_a_run_would_do_and_keeps_nothing(engine: Engine) -> None:
    calls = day_of_calls(engine)
    planned = run(engine, *DAY, dry_run=True)
    assert not any(contents(engine).values())
    made = run(engine, *DAY)
    assert [(chunk.hours, chunk.replaced) for chunk in planned] == [(chunk.hours, chunk.replaced) for chunk in made]

    change(engine, calls[0], input_tokens=4711)
    remove(engine, calls[1])
    overflow_tokens(engine, DAY[7])
    before = contents(engine)
    planned = run(engine, *DAY, dry_run=True)
    assert contents(engine) == before
    made = run(engine, *DAY)
    for one, other in zip(planned, made, strict=True):
        assert (one.hours, one.replaced, one.failures) == (other.hours, other.replaced, other.failures)
    assert contents(engine) != before


def test_a_dry_run_counts_no_attempt(engine: Engine) -> None:
    overflow_tokens(engine, NOON)
    assert len(failures(run(engine, NOON, dry_run=True))) == 1
    assert attempts(engine) == {}
    run(engine, NOON)
    run(engine, NOON, dry_run=True)
    assert attempts(engine) == {NOON: 1}


def test_a_dry_run_shows_what_would_be_refused(engine: Engine) -> None:
    calls = [call() for _ in range(4)]
    write(engine, *calls)
    run(engine, NOON)
    remove(engine, *calls[1:])
    assert len(failures(run(engine, NOON, dry_run=True))) == 1
    (chunk,) = run(engine, NOON, dry_run=True, allow_shrink=True)
    assert (chunk.hours[0].calls, chunk.replaced.written) == (1, 3)
    assert totals(engine)["calls"] == 4


def test_an_attempt_that_is_not_finished_leaves_a_trace(engine: Engine) -> None:
    """A process that was killed while it worked at an hour must not be asked for the same for ever."""
    module.begin_attempt(engine, module.Window(DAY[0], DAY[2]))
    module.begin_attempt(engine, module.Window(DAY[1], DAY[3]))
    assert attempts(engine) == {DAY[0]: 1, DAY[1]: 2, DAY[2]: 1}
    assert [len(chunk.window) for chunk in run(engine, *DAY[:5])] == [1, 1, 1, 2]
    assert attempts(engine) == {}


def test_a_write_lock_held_for_a_moment_is_waited_for(sqlite_engine: Engine) -> None:
    day_of_calls(sqlite_engine)
    event.listen(sqlite_engine, "connect", lambda raw, _: raw.execute("PRAGMA busy_timeout = 5"))
    sqlite_engine.dispose()
    holder = connect(str(sqlite_engine.url))
    with writing(holder):
        with pytest.raises(Conflict, match="locked"):
            run(sqlite_engine, *DAY)
        assert rows(sqlite_engine, usage_hours) == []
    assert not failures(run(sqlite_engine, *DAY))
