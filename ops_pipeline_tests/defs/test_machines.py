"""The job, schedule, sensor and checks of machines, run through Dagster over fleets of the test driver."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import AssetCheckKey, AssetKey, AssetSelection, DagsterInstance, DagsterRunStatus, RunRequest, SkipReason
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import Engine, update

from ops_pipeline.database.engine import writing
from ops_pipeline.defs.hypervisor import machine_ticks
from ops_pipeline.defs.hypervisor.machines import JOB
from ops_pipeline.hypervisor.machines.news import NO_HOSTS
from ops_pipeline.hypervisor.tables import hypervisor_hosts, machines
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.defs.test_services import failure
from ops_pipeline_tests.hypervisor.libvirt_servers import TestDomain
from ops_pipeline_tests.hypervisor.scenes import add_host, add_machines, fleet, passed, rows_of, scene, statuses
from ops_pipeline_tests.usage.calls import execute, rows

SCHEDULE = f"{JOB}_schedule"
SENSOR = "vm_events_sensor"
NOWHERE = "qemu+unix:///system?socket=/nowhere"
OFF, PAUSED = 5, 3


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of the fleet."""
    path = tmp_path / "fleet.xml"
    fleet(path, [TestDomain("a"), TestDomain("b")])
    return path


@pytest.fixture
def home(engine: Engine, instance: DagsterInstance, file: Path) -> Deployment:
    add_machines(engine, {"id": "a", "status": "running"}, {"id": "b", "status": "running"})
    return deployment(engine, instance, libvirt_uri=f"test://{file}")


@pytest.fixture
def small(sqlite_engine: Engine, instance: DagsterInstance, file: Path) -> Deployment:
    """The same on one kind of database only."""
    add_machines(sqlite_engine, {"id": "a", "status": "running"}, {"id": "b", "status": "running"})
    return deployment(sqlite_engine, instance, libvirt_uri=f"test://{file}")


def tick(home: Deployment) -> list[RunRequest] | str:
    found = home.tick(SCHEDULE, datetime(2026, 3, 10, 0, 1, tzinfo=UTC))
    return str(found.skip_message) if isinstance(found, SkipReason) else found


def launched(home: Deployment) -> list[bool]:
    """Tick, and do what was asked for."""
    requests = tick(home)
    assert isinstance(requests, list), requests
    return home.run_requests(requests, JOB)


def skipped(home: Deployment) -> str:
    """What the sensor says."""
    reason = home.sense(SENSOR).skip_reason
    assert reason is not None
    return str(reason.skip_message)


def checks(home: Deployment) -> list[AssetCheckKey]:
    keys = home.definitions.resolve_asset_graph().asset_check_keys
    return [key for key in keys if key.asset_key == AssetKey("machines")]


def evaluations(home: Deployment) -> dict[str, bool]:
    """The last result of each check."""
    records = home.instance.event_log_storage.get_latest_asset_check_execution_by_key(checks(home))
    return {key.name: record.status.value == "SUCCEEDED" for key, record in records.items()}


def test_a_run_writes_what_differs_and_tells_it(home: Deployment, file: Path) -> None:
    fleet(file, [TestDomain("a", OFF), TestDomain("b"), TestDomain("stranger")])
    result = home.run_job(JOB)
    assert result.success
    assert statuses(home.engine) == {"a": "stopped", "b": "running"}
    (outcome,) = rows(home.engine, job_outcomes)
    assert (outcome["job"], outcome["status"], outcome["scanned"], outcome["changed"]) == (JOB, "success", 2, 1)
    assert outcome["details"]["findings"] == [
        "unknown_domain: stranger on local: the platform has no machine for this domain"
    ]
    (shown,) = result.asset_materializations_for_node("apply_machines")
    assert "| a | stopped | running | its domain is shutoff |" in str(shown.metadata["changes"].value)
    assert "stranger" in str(shown.metadata["needs_a_person"].value)
    assert (shown.metadata["machines"].value, shown.metadata["changed"].value) == (2, 1)
    assert evaluations(home) == {
        "hosts_answer": True,
        "machines_need_no_help": True,
        "machines_are_not_stuck": True,
        "machines_without_conflicts": False,
    }


def test_a_dry_run_shows_the_plan_and_writes_nothing(small: Deployment, file: Path) -> None:
    fleet(file, [TestDomain("a", OFF), TestDomain("b")])
    before = rows_of(small.engine)
    result = small.run_job(JOB, plan_machines={"dry_run": True})
    assert result.success
    (plan,) = [
        event.step_output_data.metadata["plan"].value
        for event in result.all_events
        if event.event_type_value == "STEP_OUTPUT" and event.step_key == "plan_machines"
    ]
    assert "| a | stopped | running |" in str(plan)
    assert rows_of(small.engine) == before
    assert rows(small.engine, job_outcomes) == rows(small.engine, hypervisor_hosts) == []
    assert result.get_asset_materialization_events() == []


def test_a_run_goes_on_with_the_other_hosts_and_then_fails_naming_the_one(small: Deployment, file: Path) -> None:
    add_host(small.engine, "good", f"test://{file}")
    add_host(small.engine, "bad", NOWHERE)
    with writing(small.engine) as connection:
        connection.execute(update(machines).where(machines.c.id == "a").values(host_id="good", status="off"))
        connection.execute(update(machines).where(machines.c.id == "b").values(host_id="bad", status="off"))
    said = failure(small.run_job(JOB))
    assert "1 host: bad: qemu+unix:///system?socket=/nowhere: nothing answers" in said
    assert "The machines of the other hosts were done." in said
    assert statuses(small.engine) == {"a": "running", "b": "off"}
    (outcome,) = rows(small.engine, job_outcomes)
    assert (outcome["status"], outcome["failed"], list(outcome["details"]["hosts"])) == ("failed", 1, ["bad"])
    assert not evaluations(small)["hosts_answer"]


def test_a_refused_plan_fails_and_a_raised_limit_lets_it_pass(small: Deployment, file: Path) -> None:
    names = [f"vm{number}" for number in range(10)]
    add_machines(small.engine, *({"id": name, "status": "running"} for name in names))
    fleet(file, [*(TestDomain(name, OFF) for name in names), TestDomain("a"), TestDomain("b")])
    before = statuses(small.engine)
    assert "10 of its 12 machines that are up would go down in one look" in failure(small.run_job(JOB))
    assert statuses(small.engine) == before
    assert "max_down_share lies between 0 and 1" in failure(small.run_job(JOB, plan_machines={"max_down_share": 2}))
    assert small.run_job(JOB, plan_machines={"max_down_share": 1}).success
    assert statuses(small.engine) == {"a": "running", "b": "running"} | dict.fromkeys(names, "stopped")


def test_without_a_host_a_run_says_what_to_set(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    home = deployment(sqlite_engine, instance)
    assert NO_HOSTS in failure(home.run_job(JOB))
    assert tick(home) == NO_HOSTS
    assert home.sense(SENSOR).skip_reason == SkipReason(NO_HOSTS)


def test_the_schedule_skips_with_counts_once_all_is_told(small: Deployment, file: Path) -> None:
    assert launched(small) == [True]
    assert tick(small) == "2 machines on 1 host in sync."
    fleet(file, [TestDomain("a"), TestDomain("b", PAUSED)])
    assert launched(small) == [True]
    assert statuses(small.engine) == {"a": "running", "b": "suspended"}
    assert tick(small) == "2 machines on 1 host in sync."


def test_a_new_finding_is_told_by_a_run_and_then_stays_quiet(small: Deployment, file: Path) -> None:
    launched(small)
    fleet(file, [TestDomain("a"), TestDomain("b"), TestDomain("stranger")])
    assert launched(small) == [True]
    assert tick(small) == "2 machines on 1 host in sync, 1 unknown domain."
    fleet(file, [TestDomain("a"), TestDomain("b")])
    assert launched(small) == [True]
    assert evaluations(small)["machines_without_conflicts"]


def test_looks_that_miss_a_domain_are_counted_by_ticks_too(small: Deployment, file: Path) -> None:
    launched(small)
    fleet(file, [TestDomain("a")])
    found = []
    for _ in range(2):
        found.append(tick(small))
        assert rows_of(small.engine)["b"]["missing_looks"] == len(found)
    assert found == ["2 machines on 1 host in sync."] * 2
    assert launched(small) == [True]
    assert statuses(small.engine)["b"] == "stopped"
    assert not evaluations(small)["machines_need_no_help"]


def test_a_host_that_went_away_is_told_at_once_and_then_less_and_less_often(
    sqlite_engine: Engine, instance: DagsterInstance, file: Path
) -> None:
    home = deployment(sqlite_engine, instance, libvirt_uri=f"test://{file}")
    launched(home)
    text = file.read_text()
    file.unlink()
    assert launched(home) == [False]
    assert launched(home) == [False]
    said = tick(home)
    assert isinstance(said, str) and said.startswith("1 host: local: test://")
    file.write_text(text)
    assert launched(home) == [True]
    assert evaluations(home)["hosts_answer"]


@pytest.mark.parametrize("status", [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED])
def test_while_a_run_is_on_its_way_nothing_is_looked_at(small: Deployment, status: DagsterRunStatus) -> None:
    run = create_run_for_test(small.instance, JOB, status=status)
    busy = f"{JOB} is {status.value.lower()} (run {run.run_id[:8]})."
    assert tick(small) == busy
    assert small.sense(SENSOR).skip_reason == SkipReason(busy)


def test_when_the_database_fails_a_run_is_launched_so_that_it_is_seen(small: Deployment) -> None:
    execute(small.engine, "DROP TABLE machines")
    assert launched(small) == [False]


def test_the_sensor_writes_a_few_changes_itself_and_shows_them(home: Deployment, file: Path) -> None:
    """A run takes longer to start than a change made outside the platform may stay unknown."""
    launched(home)
    assert skipped(home) == "2 machines on 1 host in sync."
    fleet(file, [TestDomain("a", OFF), TestDomain("b")])
    assert skipped(home) == "1 machine changed, 0 by others meanwhile: a: running -> stopped."
    assert statuses(home.engine) == {"a": "stopped", "b": "running"}
    outcome = rows(home.engine, job_outcomes)[-1]
    assert (outcome["job"], outcome["changed"], outcome["status"]) == (SENSOR, 1, "success")
    observed = home.instance.fetch_observations(AssetKey("machines"), limit=1).records[0].asset_observation
    assert observed is not None
    assert "| a | stopped | running |" in str(observed.metadata["changes"].value)
    assert skipped(home) == "2 machines on 1 host in sync."
    assert tick(home) == "2 machines on 1 host in sync."


def test_the_sensor_leaves_many_changes_to_a_run(small: Deployment, file: Path) -> None:
    names = [f"vm{number}" for number in range(101)]
    add_machines(small.engine, *({"id": name, "status": "off"} for name in names))
    fleet(file, [TestDomain(name) for name in ("a", "b", *names)])
    before = rows_of(small.engine)
    requests = small.sense(SENSOR).run_requests or []
    assert (len(requests), rows_of(small.engine)) == (1, before)
    assert small.run_requests(requests, JOB) == [True]
    assert set(statuses(small.engine).values()) == {"running"}


def test_the_sensor_believes_no_more_than_the_job(small: Deployment, file: Path) -> None:
    names = [f"vm{number}" for number in range(10)]
    add_machines(small.engine, *({"id": name, "status": "running"} for name in names))
    fleet(file, [*(TestDomain(name, OFF) for name in names), TestDomain("a"), TestDomain("b")])
    before = rows_of(small.engine)
    skipped(small)
    file.unlink()
    skipped(small)
    assert rows_of(small.engine) == before
    assert rows(small.engine, hypervisor_hosts) == []


def test_the_sensor_leaves_a_host_that_is_known_not_to_answer_to_the_schedule(small: Deployment, file: Path) -> None:
    add_host(small.engine, "good", f"test://{file}", state="up")
    add_host(small.engine, "bad", NOWHERE, state="unreachable", reason="nothing answers")
    with writing(small.engine) as connection:
        connection.execute(update(machines).values(host_id="good", status="off"))
    hosts = rows(small.engine, hypervisor_hosts)
    assert skipped(small).startswith("2 machines changed")
    assert rows(small.engine, hypervisor_hosts) == hosts


def test_a_tick_ends_in_time_and_leaves_hosts_that_it_did_not_reach_to_a_run(
    small: Deployment, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster gives up a tick after a minute; more hosts that hang than are asked at once took longer."""
    monkeypatch.setattr(machine_ticks, "TICK_SECONDS", 1)
    os.mkfifo(tmp_path / "hangs")
    add_host(small.engine, "good", f"test://{file}", state="up")
    add_host(small.engine, "slow", f"test://{tmp_path / 'hangs'}", state="up")
    with writing(small.engine) as connection:
        connection.execute(update(machines).where(machines.c.id == "a").values(host_id="good"))
        connection.execute(update(machines).where(machines.c.id == "b").values(host_id="slow"))
    hosts = rows(small.engine, hypervisor_hosts)
    assert len(tick(small)) == 1
    assert (rows(small.engine, hypervisor_hosts), statuses(small.engine)["b"]) == (hosts, "running")
    made, _ = passed(replace(scene(small.engine, ""), total_seconds=1))
    assert made.problems["slow"].startswith("not looked at: other hosts that do not answer took the time of all")
    (row,) = [row for row in rows(small.engine, hypervisor_hosts) if row["id"] == "slow"]
    assert (row["state"], row["reason"]) == ("up", "")


def test_the_checks_can_be_run_by_hand_and_write_nothing(small: Deployment, file: Path) -> None:
    fleet(file, [TestDomain("a", OFF), TestDomain("b"), TestDomain("stranger")])
    before = rows_of(small.engine)
    graph = small.definitions.resolve_asset_graph()
    job = small.definitions.resolve_implicit_global_asset_job_def()
    wanted = AssetSelection.checks(*checks(small)).resolve_checks(graph)
    result = job.get_subset(asset_selection=set(), asset_check_selection=wanted).execute_in_process(
        instance=small.instance
    )
    found = {one.check_name: one.passed for one in result.get_asset_check_evaluations()}
    assert found == {
        "hosts_answer": True,
        "machines_need_no_help": True,
        "machines_are_not_stuck": True,
        "machines_without_conflicts": False,
    }
    assert rows_of(small.engine) == before
