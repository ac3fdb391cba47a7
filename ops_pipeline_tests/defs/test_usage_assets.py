"""The usage assets, run through Dagster."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, ExecuteInProcessResult
from sqlalchemy import Engine, delete, update

from ops_pipeline.database.engine import writing
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline.usage.tables import (
    daily_model_usage,
    hourly_model_usage,
    model_calls,
    monthly_model_usage,
    usage_days,
    usage_hours,
    usage_months,
)
from ops_pipeline_tests.defs.deployment import deployment
from ops_pipeline_tests.usage.calls import at, call, rows, totals, write

HOURS = "hourly_model_usage_job"
DAYS = "daily_model_usage_job"
MONTHS = "monthly_model_usage_job"


def check(result: ExecuteInProcessResult, name: str) -> bool:
    return next(one.passed for one in result.get_asset_check_evaluations() if one.check_name == name)


def metadata(instance: DagsterInstance, asset: str, partition: str) -> dict[str, object]:
    event = next(
        record.asset_materialization
        for record in instance.fetch_materializations(AssetKey(asset), limit=100).records
        if record.partition_key == partition
    )
    assert event is not None
    return {name: value.value for name, value in event.metadata.items()}


def test_a_range_is_one_run_and_marks_each_of_its_hours(engine: Engine, instance: DagsterInstance) -> None:
    write(engine, call(at("2026-03-10 12:10")), call(at("2026-03-10 14:59:59"), model="haiku", user_id="ben"))
    home = deployment(engine, instance)
    result = home.run(HOURS, "2026-03-10-12:00", "2026-03-10-15:00")
    assert result.success
    assert home.materialized("hourly_model_usage") == [f"2026-03-10-{hour}:00" for hour in (12, 13, 14, 15)]
    assert [row["calls"] for row in rows(engine, usage_hours)] == [1, 0, 1, 0]
    assert check(result, "totals_match_raw_calls") and check(result, "no_absurd_values")


def test_each_materialization_carries_plottable_numbers_and_the_top_models(
    engine: Engine, instance: DagsterInstance
) -> None:
    write(
        engine,
        call(at("2026-03-10 12:10"), user_id="ben|jr", model="a|b"),
        call(at("2026-03-10 12:20"), status="processing"),
    )
    deployment(engine, instance).run(HOURS, "2026-03-10-12:00")
    found = metadata(instance, "hourly_model_usage", "2026-03-10-12:00")
    assert (found["calls"], found["users"], found["provisional_calls"], found["tokens"]) == (2, 2, 1, 30)
    assert found["credits"] == pytest.approx(0.0246913578)
    assert found["state"] == "provisional"
    assert found["rows"] == 2 and isinstance(found["duration_seconds"], float)
    assert "a\\|b" in str(found["top_models"])


def test_days_and_months_follow_and_a_day_with_a_hole_is_not_marked(engine: Engine, instance: DagsterInstance) -> None:
    write(engine, call(at("2026-03-09 23:59:59.999999")), call(at("2026-03-10 00:00")))
    home = deployment(engine, instance)
    home.run(HOURS, "2026-03-09-23:00", "2026-03-10-22:00")
    result = home.run(DAYS, "2026-03-09", "2026-03-10")
    assert result.success and check(result, "days_match_their_hours")
    assert home.materialized("daily_model_usage") == ["2026-03-09"]
    assert [row["state"] for row in rows(engine, usage_days)] == ["complete", "partial"]
    assert home.run(MONTHS, "2026-03-01").success
    assert rows(engine, usage_months)[0]["state"] == "partial"
    assert home.materialized("monthly_model_usage") == []
    assert totals(engine, monthly_model_usage) == totals(engine, daily_model_usage) == totals(engine)


def test_a_dry_run_shows_its_plan_and_keeps_nothing(engine: Engine, instance: DagsterInstance) -> None:
    write(engine, call(at("2026-03-10 12:10")))
    home = deployment(engine, instance)
    result = home.run(HOURS, "2026-03-10-00:00", "2026-03-10-23:00", dry_run=True)
    assert result.success
    assert home.materialized("hourly_model_usage") == []
    assert rows(engine, hourly_model_usage) == [] == rows(engine, job_outcomes)
    plan = result.get_asset_observation_events()[0].asset_observation_data.asset_observation.metadata["plan"].value
    assert "| 2026-03-10 00:00 to 2026-03-10 23:00 | 1 | 3 | 0 |" in str(plan)


def test_a_refused_hour_fails_the_run_with_its_reason_while_the_others_are_done(
    engine: Engine, instance: DagsterInstance
) -> None:
    """A retention job pruned raw calls; the next backfill made a good month almost empty."""
    write(engine, *(call(at("2026-03-10 12:10")) for _ in range(5)), call(at("2026-03-10 13:10")))
    home = deployment(engine, instance)
    home.run(HOURS, "2026-03-10-12:00")
    before = rows(engine, hourly_model_usage)
    with writing(engine) as connection:
        connection.execute(delete(model_calls).where(model_calls.c.called_at < at("2026-03-10 13:00")))
    result = home.run(HOURS, "2026-03-10-12:00", "2026-03-10-14:00")
    assert not result.success
    failure = result.failure_data_for_node("hourly_model_usage")
    assert failure is not None
    assert "Only 0 of the 5 calls counted before are left" in str(failure.error)
    assert [row for row in rows(engine, hourly_model_usage) if row["hour"].hour == 12] == before
    assert [row["hour"].hour for row in rows(engine, usage_hours)] == [12, 13, 14]
    assert rows(engine, job_outcomes)[-1]["status"] == "failed"
    assert home.run(HOURS, "2026-03-10-12:00", allow_shrink=True).success
    assert totals(engine)["calls"] == 1


def test_absurd_values_are_counted_shown_and_kept(engine: Engine, instance: DagsterInstance) -> None:
    write(
        engine,
        call(at("2026-03-10 12:10"), status="exploded", type="telepathy", input_tokens=-7),
        call(at("2026-03-10 12:11"), duration_seconds=90_000.0),
        call(at("2126-03-10 12:11")),
    )
    result = deployment(engine, instance).run(HOURS, "2026-03-10-12:00")
    assert result.success and not check(result, "no_absurd_values")
    evaluation = next(one for one in result.get_asset_check_evaluations() if one.check_name == "no_absurd_values")
    counts = {name: value.value for name, value in evaluation.metadata.items()}
    assert "| 2026-03-10 12:00 | unknown_type | 1 |" in str(counts.pop("odd_hours"))
    assert counts == {
        "unknown_status": 1,
        "unknown_type": 1,
        "negative_value": 1,
        "longer_than_a_day": 1,
        "unusable_duration": 0,
        "future_calls": 1,
    }
    assert totals(engine)["calls"] == 2


def test_only_needed_leaves_alone_what_is_done_and_unchanged(engine: Engine, instance: DagsterInstance) -> None:
    late = call(at("2026-03-10 12:10"), status="processing")
    write(engine, late, call(at("2026-03-10 13:10")))
    home = deployment(engine, instance)
    home.run(HOURS, "2026-03-10-12:00", "2026-03-10-13:00")
    before = {row["hour"].hour: row["aggregated_at"] for row in rows(engine, usage_hours)}
    with writing(engine) as connection:
        connection.execute(update(model_calls).where(model_calls.c.id == late["id"]).values(status="success"))
    assert home.run(HOURS, "2026-03-10-11:00", "2026-03-10-13:00", only_needed=True).success
    after = {row["hour"].hour: row["aggregated_at"] for row in rows(engine, usage_hours)}
    assert after[13] == before[13] and after[12] > before[12] and 11 in after


def test_a_missing_table_fails_the_run_with_what_to_do(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    with writing(sqlite_engine) as connection:
        connection.exec_driver_sql("DROP TABLE model_calls")
    result = deployment(sqlite_engine, instance).run(HOURS, "2026-03-10-12:00")
    failure = result.failure_data_for_node("hourly_model_usage")
    assert not result.success and failure is not None
    assert "ops-pipeline migrate" in str(failure.error)


def test_the_report_shows_a_picture_and_is_remembered(
    engine: Engine, instance: DagsterInstance, tmp_path: Path
) -> None:
    write(engine, call(at("2026-03-10 12:10"), model="<b>bold</b>"))
    home = deployment(engine, instance, reports_dir=tmp_path / "reports")
    home.run(HOURS, "2026-03-10-00:00", "2026-03-10-23:00")
    home.run(DAYS, "2026-03-10")
    assert home.run("usage_report_job", "2026-03-10").success
    found = metadata(instance, "usage_report", "2026-03-10")
    encoded = str(found["report"]).split("base64,")[1].rstrip(")")
    assert base64.b64decode(encoded).startswith(b"\x89PNG")
    assert "<b>bold</b>" not in Path(str(found["page"])).read_text()
    day = rows(engine, usage_days)[0]
    assert day["reported_revision"] == day["revision"]
