"""Schedule and sensors of the usage domain, evaluated through Dagster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRunStatus, RunRequest, SensorResult, SkipReason
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import Engine, delete, insert, update

from ops_pipeline.database.engine import writing
from ops_pipeline.defs.interrupted import fail_interrupted_runs
from ops_pipeline.defs.runs import failed_tries, rest_after
from ops_pipeline.defs.usage.catch_up import last_tick
from ops_pipeline.defs.usage.partitions import hour_key
from ops_pipeline.usage.aggregate import Policy, aggregate
from ops_pipeline.usage.attempts import begin_attempt
from ops_pipeline.usage.hours import HOUR, Window, floor_hour
from ops_pipeline.usage.tables import (
    daily_model_usage,
    hourly_model_usage,
    model_calls,
    monthly_model_usage,
    usage_days,
    usage_hour_attempts,
    usage_hours,
    usage_months,
)
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.usage.calls import at, call, rows, totals, write

SCHEDULE = "model_call_stats_schedule"
HOURS = "hourly_model_usage_job"
ROLL_UPS = (hourly_model_usage, daily_model_usage, monthly_model_usage)


def ranges(requests: list[RunRequest] | SkipReason) -> list[tuple[str, str]]:
    assert isinstance(requests, list), requests
    return [
        (request.tags[ASSET_PARTITION_RANGE_START_TAG], request.tags[ASSET_PARTITION_RANGE_END_TAG])
        for request in requests
    ]


def skipped(requests: list[RunRequest] | SkipReason) -> str:
    assert isinstance(requests, SkipReason), requests
    return requests.skip_message or ""


def text(sensed: SensorResult) -> str:
    return (sensed.skip_reason.skip_message if sensed.skip_reason else "") or ""


def test_the_first_tick_catches_up_from_the_first_call(engine: Engine, instance: DagsterInstance) -> None:
    """The first run of the original ignored history: its watermark started at the last hour."""
    write(engine, call(at("2026-03-10 09:30")))
    home = deployment(engine, instance)
    requests = home.tick(SCHEDULE, at("2026-03-10 12:00"))
    assert ranges(requests) == [("2026-03-10-09:00", "2026-03-10-11:00")]
    assert isinstance(requests, list) and home.run_requests(requests) == [True]
    assert skipped(home.tick(SCHEDULE, at("2026-03-10 12:00"))) == "Every hour up to 2026-03-10 12:00 is done."


def test_holes_anywhere_are_found_and_filled_by_one_run(engine: Engine, instance: DagsterInstance) -> None:
    """One failed hour of the original moved the watermark on: a hole for ever."""
    write(engine, call(at("2026-03-01 00:30")), call(at("2026-03-10 09:30")))
    home = deployment(engine, instance)
    assert home.run(HOURS, "2026-03-01-00:00", "2026-03-10-11:00").success
    with writing(engine) as connection:
        holes = [at("2026-03-01 00:00"), at("2026-03-04 07:00"), at("2026-03-10 09:00")]
        connection.execute(delete(usage_hours).where(usage_hours.c.hour.in_(holes)))
    requests = home.tick(SCHEDULE, at("2026-03-10 12:00"))
    assert ranges(requests) == [("2026-03-01-00:00", "2026-03-10-09:00")]
    assert isinstance(requests, list) and home.run_requests(requests) == [True]
    assert skipped(home.tick(SCHEDULE, at("2026-03-10 12:00")))
    assert totals(engine)["calls"] == 2


def test_long_outages_become_bounded_ranges_newest_first(engine: Engine, instance: DagsterInstance) -> None:
    write(engine, call(at("2026-03-01 00:30")))
    home = deployment(engine, instance, model_call_stats_max_range_hours=100)
    assert ranges(home.tick(SCHEDULE, at("2026-03-10 12:00"))) == [
        ("2026-03-06-08:00", "2026-03-10-11:00"),
        ("2026-03-02-04:00", "2026-03-06-07:00"),
        ("2026-03-01-00:00", "2026-03-02-03:00"),
    ]


def test_what_is_queued_or_running_is_not_asked_for_again(engine: Engine, instance: DagsterInstance) -> None:
    write(engine, call(at("2026-03-10 09:30")))
    home = deployment(engine, instance)
    create_run_for_test(
        instance,
        HOURS,
        status=DagsterRunStatus.NOT_STARTED,
        tags={
            ASSET_PARTITION_RANGE_START_TAG: "2026-03-10-09:00",
            ASSET_PARTITION_RANGE_END_TAG: "2026-03-10-10:00",
        },
    )
    assert ranges(home.tick(SCHEDULE, at("2026-03-10 12:00"))) == [("2026-03-10-11:00", "2026-03-10-11:00")]


def test_a_materialization_launched_by_hand_counts_as_running(engine: Engine, instance: DagsterInstance) -> None:
    write(engine, call(at("2026-03-10 11:30")))
    home = deployment(engine, instance)
    create_run_for_test(
        instance,
        "__ASSET_JOB",
        asset_selection=frozenset({AssetKey("hourly_model_usage")}),
        status=DagsterRunStatus.STARTED,
        tags={"dagster/partition": "2026-03-10-11:00"},
    )
    assert skipped(home.tick(SCHEDULE, at("2026-03-10 12:00"))) == "1 hour is queued or running."


def test_an_hour_that_keeps_failing_is_given_up_and_named_and_stops_no_other(
    engine: Engine, instance: DagsterInstance
) -> None:
    bad = call(at("2026-03-10 09:30"), input_tokens=2**62)
    write(engine, bad, bad | {"id": "second"}, bad | {"id": "third"}, call(at("2026-03-10 10:30")))
    home = deployment(engine, instance)
    for _ in range(3):
        requests = home.tick(SCHEDULE, at("2026-03-10 12:00"))
        assert isinstance(requests, list) and home.run_requests(requests) == [False]
    assert [row["hour"].hour for row in rows(engine, usage_hours)] == [10, 11]
    reason = skipped(home.tick(SCHEDULE, at("2026-03-10 12:00")))
    assert "1 hour failed too often" in reason and "2026-03-10 09:00" in reason
    assert "64 bits" in rows(engine, usage_hour_attempts)[0]["error"]
    with writing(engine) as connection:
        connection.execute(update(model_calls).where(model_calls.c.input_tokens > 100).values(input_tokens=5))
    assert home.run(HOURS, "2026-03-10-09:00").success
    assert "is done" in skipped(home.tick(SCHEDULE, at("2026-03-10 12:00")))


def test_without_calls_there_is_nothing_to_do(engine: Engine, instance: DagsterInstance) -> None:
    assert "is done" in skipped(deployment(engine, instance).tick(SCHEDULE, at("2026-03-10 12:00")))


def test_a_start_in_the_future_is_said_and_not_a_failure(engine: Engine, instance: DagsterInstance) -> None:
    home = deployment(engine, instance, model_call_stats_start=at("2126-01-01 00:00"))
    assert "MODEL_CALL_STATS_START is 2126-01-01 00:00" in skipped(home.tick(SCHEDULE, at("2026-03-10 12:00")))


def test_when_the_look_fails_a_run_is_launched_so_that_the_failure_is_seen(
    sqlite_engine: Engine, instance: DagsterInstance
) -> None:
    """An error in the original's planner was logged and returned as "0 hours"."""
    write(sqlite_engine, call(at("2026-03-10 09:30")))
    with writing(sqlite_engine) as connection:
        connection.exec_driver_sql("DROP TABLE usage_hours")
    home = deployment(sqlite_engine, instance)
    requests = home.tick(SCHEDULE, at("2026-03-10 12:00"))
    assert ranges(requests) == [("2026-03-10-11:00", "2026-03-10-11:00")]
    assert isinstance(requests, list) and home.run_requests(requests) == [False]


def test_the_sensor_does_what_a_missed_tick_should_have_done(engine: Engine, instance: DagsterInstance) -> None:
    first = floor_hour(datetime.now(UTC)) - 5 * HOUR
    write(engine, call(first))
    home = deployment(engine, instance)
    requests = home.sense("missed_hours_sensor").run_requests or []
    assert home.run_requests(requests) == [True]
    assert rows(engine, usage_hours)[0]["hour"] == first
    assert not home.sense("missed_hours_sensor").run_requests


@pytest.mark.parametrize(
    ("cron", "now", "due"),
    [
        ("0 * * * *", "2026-03-10 12:00:00", "2026-03-10 12:00"),
        ("0 * * * *", "2026-03-10 11:59:59", "2026-03-10 11:00"),
        ("30 6 * * *", "2026-03-10 06:29", "2026-03-09 06:30"),
    ],
)
def test_the_last_tick_is_the_latest_at_or_before_now(cron: str, now: str, due: str) -> None:
    assert last_tick(cron, at(now)) == at(due)


def test_a_call_completed_months_later_reaches_hour_day_and_month_by_itself(
    engine: Engine, instance: DagsterInstance
) -> None:
    """The original re-did 24 hours at midnight: what ended later was never counted."""
    late = call(at("2026-03-10 12:10"), status="processing", input_tokens=0, credits=0)
    write(engine, late)
    home = deployment(engine, instance)
    home.run(HOURS, "2026-03-10-12:00", "2026-03-10-23:00")
    settle_rollups(home)
    cursor = home.sense("late_model_calls_sensor").cursor
    assert rows(engine, usage_days)[0]["state"] == "provisional"
    with writing(engine) as connection:
        done = {"status": "success", "input_tokens": 1000, "credits": 7}
        connection.execute(update(model_calls).where(model_calls.c.id == late["id"]).values(**done))
    sensed = home.sense("late_model_calls_sensor", cursor)
    assert ranges(list(sensed.run_requests or [])) == [("2026-03-10-12:00", "2026-03-10-12:00")]
    assert home.run_requests(sensed.run_requests or []) == [True]
    settle_rollups(home)
    assert rows(engine, usage_months)[0]["processing"] == 0
    assert rows(engine, usage_days)[0]["state"] == "complete"
    tokens = [totals(engine, table)["input_tokens"] for table in ROLL_UPS]
    assert tokens == [1000, 1000, 1000]
    again = home.sense("late_model_calls_sensor", sensed.cursor)
    assert not again.run_requests and "No late calls" in text(again)


def settle(home: Deployment) -> None:
    """Aggregate every hour from the first call to now, and everything above."""
    requests = home.tick(SCHEDULE, floor_hour(datetime.now(UTC)))
    if isinstance(requests, list):
        assert all(home.run_requests(requests))
    settle_rollups(home)


def settle_rollups(home: Deployment) -> None:
    for _ in range(3):
        requests = [
            one for one in home.sense("usage_rollups_sensor").run_requests or [] if one.job_name != "usage_report_job"
        ]
        if not requests:
            return
        assert all(home.run_requests(requests))


def test_nothing_new_means_no_roll_up_run(engine: Engine, instance: DagsterInstance) -> None:
    write(engine, call(floor_hour(datetime.now(UTC)) - timedelta(days=2)))
    home = deployment(engine, instance, usage_report_days=0)
    settle(home)
    sensed = home.sense("usage_rollups_sensor")
    assert text(sensed) == "Every day, month and report is up to date."


def test_a_day_that_is_not_over_is_not_rolled_up(engine: Engine, instance: DagsterInstance) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    write(engine, call(today - HOUR), call(today))
    settle(deployment(engine, instance))
    assert [row["day"] for row in rows(engine, usage_days)] == [(today - HOUR).date()]


def test_partitions_of_a_killed_run_are_marked_again_and_not_computed_again(
    engine: Engine, instance: DagsterInstance
) -> None:
    """A run killed between commit and event leaves hours that are done but look missing."""
    write(engine, call(at("2026-03-10 09:30")))
    home = deployment(engine, instance)
    home.run(HOURS, "2026-03-10-09:00", "2026-03-10-11:00")
    before = rows(engine, usage_hours)
    instance.wipe_assets([AssetKey("hourly_model_usage")])
    assert home.materialized("hourly_model_usage") == []
    said = home.sense("usage_partition_status_sensor")
    assert text(said) == "Marked again: 3 of hourly_model_usage."
    assert home.materialized("hourly_model_usage") == [f"2026-03-10-{hour}:00" for hour in ("09", "10", "11")]
    assert rows(engine, usage_hours) == before
    assert "agrees" in text(home.sense("usage_partition_status_sensor"))


def test_hours_that_a_failed_range_run_left_alone_do_not_look_failed_for_long(
    engine: Engine, instance: DagsterInstance
) -> None:
    write(engine, call(at("2026-03-10 09:30")), call(at("2026-03-10 11:30")))
    home = deployment(engine, instance)
    home.run(HOURS, "2026-03-10-10:00")
    bad = [call(at("2026-03-10 11:31"), input_tokens=2**62) for _ in range(3)]
    write(engine, *bad)
    assert not home.run(HOURS, "2026-03-10-09:00", "2026-03-10-11:00", only_needed=True).success
    home.sense("usage_partition_status_sensor")
    assert home.materialized("hourly_model_usage") == ["2026-03-10-09:00", "2026-03-10-10:00"]


def test_a_job_that_cannot_succeed_is_left_alone_longer_and_longer(
    sqlite_engine: Engine, instance: DagsterInstance
) -> None:
    """A sensor asks every half minute: without a rest, a broken roll-up would fail 3,000 times a day."""
    assert [rest_after(count).total_seconds() / 60 for count in (1, 2, 3, 4, 20)] == [0, 2, 4, 8, 360]
    home = deployment(sqlite_engine, instance)
    with writing(sqlite_engine) as connection:
        row = {"state": "complete", "calls": 0, "processing": 0, "source_version": 0, "revision": 1, "anomalies": {}}
        hours = [at("2026-03-10 00:00") + hour * HOUR for hour in range(24)]
        connection.execute(
            insert(usage_hours), [row | {"hour": hour, "aggregated_at": at("2026-03-11 00:00")} for hour in hours]
        )
        connection.exec_driver_sql("DROP TABLE daily_model_usage")
    for _ in range(2):
        assert home.run_requests(home.sense("usage_rollups_sensor").run_requests or []) == [False]
    assert "The last runs of daily_model_usage_job failed" in text(home.sense("usage_rollups_sensor"))


def test_a_run_whose_process_is_gone_does_not_hold_up_its_job(engine: Engine, instance: DagsterInstance) -> None:
    """After a power cut the run looked alive for an hour, every tick said "queued or running", and all was green."""
    write(engine, call(at("2026-03-10 11:30")))
    home = deployment(engine, instance)
    tags = {ASSET_PARTITION_RANGE_START_TAG: "2026-03-10-11:00", ASSET_PARTITION_RANGE_END_TAG: "2026-03-10-11:00"}
    dead = create_run_for_test(instance, HOURS, status=DagsterRunStatus.STARTED, tags=tags)
    assert skipped(home.tick(SCHEDULE, at("2026-03-10 12:00"))) == "1 hour is queued or running."
    assert fail_interrupted_runs(instance) == 1
    run = instance.get_run_by_id(dead.run_id)
    assert run is not None and run.status == DagsterRunStatus.FAILURE
    assert ranges(home.tick(SCHEDULE, at("2026-03-10 12:00"))) == [("2026-03-10-11:00", "2026-03-10-11:00")]


def test_every_range_run_has_an_end(engine: Engine, instance: DagsterInstance) -> None:
    write(engine, call(at("2026-03-10 11:30")))
    requests = deployment(engine, instance).tick(SCHEDULE, at("2026-03-10 12:00"))
    assert isinstance(requests, list)
    assert [request.tags["dagster/max_runtime"] for request in requests] == ["900"]


def test_late_calls_overtake_a_long_catch_up(engine: Engine, instance: DagsterInstance) -> None:
    late = call(at("2026-03-10 11:30"))
    write(engine, late)
    home = deployment(engine, instance)
    catch_up = home.tick(SCHEDULE, at("2026-03-10 12:00"))
    assert isinstance(catch_up, list) and home.run_requests(catch_up) == [True]
    with writing(engine) as connection:
        connection.execute(update(model_calls).where(model_calls.c.id == late["id"]).values(input_tokens=11))
    sensed = home.sense("late_model_calls_sensor").run_requests or []
    assert int(sensed[0].tags["dagster/priority"]) > int(catch_up[0].tags["dagster/priority"])


def test_a_start_that_was_moved_later_leaves_the_older_hours_alone(engine: Engine, instance: DagsterInstance) -> None:
    """Runs for hours before the first partition died before they counted as attempts, again and again."""
    write(engine, call(at("2026-03-10 09:30")), call(at("2026-03-12 09:30")))
    older = deployment(engine, instance, usage_report_days=0)
    assert older.run(HOURS, "2026-03-10-09:00", "2026-03-12-23:00").success
    with writing(engine) as connection:
        connection.execute(update(model_calls).values(input_tokens=11))
    newer = deployment(engine, instance, usage_report_days=0, model_call_stats_start=at("2026-03-12 00:00"))
    assert ranges(list(newer.sense("late_model_calls_sensor").run_requests or [])) == [
        ("2026-03-12-09:00", "2026-03-12-09:00")
    ]
    sensed = newer.sense("usage_rollups_sensor").run_requests or []
    assert ranges(list(sensed)) == [("2026-03-12", "2026-03-12")]


def test_a_day_that_cannot_be_summed_does_not_hold_up_its_month(engine: Engine, instance: DagsterInstance) -> None:
    huge = [call(at(f"2026-03-10 {hour}:30"), input_tokens=2**62) for hour in ("09", "10", "11")]
    write(engine, *huge, call(at("2026-03-11 09:30")))
    home = deployment(engine, instance, usage_report_days=0)
    assert home.run(HOURS, "2026-03-10-09:00", "2026-03-11-23:00").success
    for _ in range(2):
        assert home.run_requests(home.sense("usage_rollups_sensor").run_requests or []) == [False]
    requests = home.sense("usage_rollups_sensor").run_requests or []
    assert [request.job_name for request in requests] == ["monthly_model_usage_job"]
    assert home.run_requests(requests) == [True]
    assert [row["state"] for row in rows(engine, usage_months)] == ["partial"]


def test_an_hour_whose_renewal_failed_keeps_its_red_mark(engine: Engine, instance: DagsterInstance) -> None:
    """Marked green again within a minute, a failure would have been seen by nobody."""
    write(engine, call(at("2026-03-10 09:30")))
    home = deployment(engine, instance)
    assert home.run(HOURS, "2026-03-10-09:00").success
    write(engine, *(call(at("2026-03-10 09:31"), input_tokens=2**62) for _ in range(3)))
    assert not home.run(HOURS, "2026-03-10-09:00").success
    home.sense("usage_partition_status_sensor")
    assert home.materialized("hourly_model_usage") == []


def test_runs_that_failed_together_are_one_try() -> None:
    """A machine died with four workers on it, and the queue rested for eight minutes."""
    together = [(100.0, 300.0), (101.0, 299.0), (150.0, 305.0), (298.0, 301.0)]
    assert [failed_tries(together[:count]) for count in range(5)] == [0, 1, 1, 1, 1]
    one_after_the_other = [(100.0, 200.0), (200.0, 300.0), (310.0, 400.0)]
    assert failed_tries(one_after_the_other) == 3
    assert failed_tries([*together, (302.0, 400.0), (303.0, 401.0)]) == 2


def test_an_hour_whose_renewal_was_killed_is_marked_as_its_numbers_are_whole(
    engine: Engine, instance: DagsterInstance
) -> None:
    """A process died after it had committed the hour and before it had said so; the next one died on the same hour."""
    write(engine, call(at("2026-03-10 09:30")))
    home = deployment(engine, instance)
    begin_attempt(engine, Window(at("2026-03-10 09:00"), at("2026-03-10 10:00")))
    home.sense("usage_partition_status_sensor")
    assert home.materialized("hourly_model_usage") == []
    list(aggregate(engine, [at("2026-03-10 09:00")], Policy()))
    begin_attempt(engine, Window(at("2026-03-10 09:00"), at("2026-03-10 10:00")))
    home.sense("usage_partition_status_sensor")
    assert home.materialized("hourly_model_usage") == ["2026-03-10-09:00"]


def test_the_next_hour_does_not_hide_what_was_odd_in_the_last(engine: Engine, instance: DagsterInstance) -> None:
    now = floor_hour(datetime.now(UTC))
    write(engine, call(now - 2 * HOUR, input_tokens=-5), call(now - HOUR))
    home = deployment(engine, instance)
    for hour in (now - 2 * HOUR, now - HOUR):
        result = home.run(HOURS, hour_key(hour))
        checks = {one.check_name: one.passed for one in result.get_asset_check_evaluations()}
        assert checks == {"totals_match_raw_calls": True, "no_absurd_values": False}
