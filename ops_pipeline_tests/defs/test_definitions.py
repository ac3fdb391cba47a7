"""The definitions load, describe themselves, and say what is wrong with the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import Definitions, JobDefinition, OpDefinition, Shape

from ops_pipeline.definitions import build_defs
from ops_pipeline.settings import SettingsError
from ops_pipeline_tests.usage.calls import at


def fresh(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment | variables
    )


def test_definitions_load_in_a_fresh_interpreter_with_every_variable_unset() -> None:
    result = fresh(
        "from ops_pipeline.definitions import defs; from dagster import Definitions;"
        "Definitions.validate_loadable(defs); print('loaded')"
    )
    assert result.stdout.strip() == "loaded", result.stderr
    assert "Warning" not in result.stderr


def test_loading_neither_connects_nor_writes_anything(tmp_path: Path) -> None:
    result = fresh(
        "from ops_pipeline.definitions import defs",
        DATABASE_URL="postgresql+psycopg://nobody:secret@127.0.0.1:1/nowhere",
        DAGSTER_HOME=str(tmp_path / "home"),
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_six_field_cron_is_refused_at_load_with_its_name_and_no_secret() -> None:
    result = fresh(
        "from ops_pipeline.definitions import defs",
        MODEL_CALL_STATS_CRON_TIME="0 0 * * * *",
        DATABASE_URL="postgresql+psycopg://nobody:hunter2@127.0.0.1:1/nowhere",
    )
    assert result.returncode != 0
    assert "MODEL_CALL_STATS_CRON_TIME: '0 0 * * * *' has 6 fields" in result.stderr
    assert "hunter2" not in result.stderr + result.stdout


def test_settings_can_be_overridden_for_tests() -> None:
    with pytest.raises(SettingsError, match="MODEL_CALL_STATS_MAX_ATTEMPTS"):
        build_defs(model_call_stats_max_attempts=0)


@pytest.fixture(scope="module")
def definitions() -> Definitions:
    return build_defs(model_call_stats_start=at("2026-03-01 00:00"))


def test_every_asset_tells_the_operator_what_it_is(definitions: Definitions) -> None:
    specs = definitions.resolve_all_asset_specs()
    assert {spec.key.to_user_string() for spec in specs} == {
        "hourly_model_usage",
        "daily_model_usage",
        "monthly_model_usage",
        "usage_report",
        "model_calls",
        "analysis_tasks",
        "model_statuses",
        "langgraph_checkpoints",
        "host_services",
        "network_filters",
        "machines",
        "gpus",
        "pipelines",
        "maintenance_archives",
    }
    groups = {"usage", "checkpoints", "services", "hypervisor", "analysis", "maintenance"}
    for spec in specs:
        assert spec.description and spec.group_name in groups and spec.owners and spec.kinds, spec.key


COSTS_MONEY = {"check_model_status_schedule", "failing_models_sensor"}
DELETES = {"maintenance_sensor"}


def test_every_schedule_sensor_and_job_has_a_description_and_starts_switched_on_unless_it_costs_money_or_deletes(
    definitions: Definitions,
) -> None:
    repository = definitions.get_repository_def()
    automations = [*repository.schedule_defs, *repository.sensor_defs]
    assert {one.name for one in automations} == {
        "model_call_stats_schedule",
        "missed_hours_sensor",
        "pending_analysis_tasks_sensor",
        "recover_analysis_tasks_schedule",
        "pipelines_sensor",
        "late_model_calls_sensor",
        "usage_rollups_sensor",
        "usage_partition_status_sensor",
        "cleanup_stale_model_calls_schedule",
        "cleanup_checkpoints_schedule",
        "check_running_services_schedule",
        "flush_firewall_schedule",
        "prune_dagster_storage_schedule",
        "alerts_sensor",
        "update_vm_status_schedule",
        "vm_events_sensor",
        "update_graphics_information_schedule",
        *COSTS_MONEY,
        *DELETES,
    }
    for one in automations:
        expected = "STOPPED" if one.name in COSTS_MONEY | DELETES else "RUNNING"
        assert one.description and one.default_status.value == expected, one.name
    for job in repository.get_all_jobs():
        if not job.name.startswith("__"):
            assert job.description and job.tags["ops_pipeline/job"] == job.name


def test_every_check_has_a_description(definitions: Definitions) -> None:
    specs = [spec for one in definitions.resolve_asset_graph().assets_defs for spec in one.check_specs]
    assert {spec.name for spec in specs} == {
        "totals_match_raw_calls",
        "results_are_whole",
        "no_absurd_values",
        "days_match_their_hours",
        "months_match_their_days",
        "calls_come_to_an_end",
        "models_answer",
        "services_are_well",
        "filters_match_the_database",
        "machines_carry_their_filters",
        "ipv6_is_no_wider_open",
        "hosts_answer",
        "machines_need_no_help",
        "machines_are_not_stuck",
        "machines_without_conflicts",
        "gpus_without_conflicts",
    }
    assert all(spec.description for spec in specs)


def test_every_op_and_every_field_of_a_run_config_is_explained_and_no_field_has_to_be_filled_in(
    definitions: Definitions,
) -> None:
    ops = {one.definition.name: one.definition for job in _jobs(definitions) for one in job.graph.node_dict.values()}
    assert all(one.description for one in ops.values())
    for name, one in ops.items():
        assert isinstance(one, OpDefinition)
        config = one.config_schema.as_field().config_type
        fields = config.fields if isinstance(config, Shape) else {}
        for field, what in fields.items():
            assert what.description and what.default_provided, f"{name}.{field}"


def test_what_ops_hand_on_has_a_name_for_people_and_none_of_python(definitions: Definitions) -> None:
    """The line between two ops said `Tuple[[Looked],datetime,[String]]`."""
    ops = [one.definition for job in _jobs(definitions) for one in job.graph.node_dict.values()]
    kinds = [put.dagster_type for one in ops for put in (*one.input_defs, *one.output_defs)]
    for kind in kinds:
        by_hand = kind.description and not kind.description.startswith("DagsterType created from a type hint")
        assert kind.display_name in {"Nothing", "Any"} or by_hand, kind.display_name


def _jobs(definitions: Definitions) -> list[JobDefinition]:
    return [job for job in definitions.get_repository_def().get_all_jobs() if not job.name.startswith("__")]
