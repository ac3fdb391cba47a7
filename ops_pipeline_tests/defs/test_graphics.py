"""The job, schedule and check of GPUs, run through Dagster against hosts of libvirt's test driver."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    DagsterInstance,
    ExecuteInProcessResult,
    RunRequest,
    SkipReason,
)
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import Engine, delete

from ops_pipeline.database.engine import writing
from ops_pipeline.defs.hypervisor.firewall_shown import NOTHING_TO_LOOK_AT
from ops_pipeline.defs.hypervisor.graphics import CHECK, GPUS, JOB
from ops_pipeline.hypervisor.tables import gpus, hypervisor_hosts, machines
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.hypervisor.graphics.samples import (
    HOST,
    A,
    B,
    C,
    add_host,
    add_machine,
    assigned,
    give,
    gpu_states,
    gpu_xml,
    guest,
    hostdev_xml,
    node,
)
from ops_pipeline_tests.usage.calls import execute, rows

SCHEDULE = f"{JOB}_schedule"


def make_host(engine: Engine, folder: Path) -> Path:
    """The host `kvm1` with two GPUs, one of them in the machine `web`."""
    path = folder / "kvm1.xml"
    path.write_text(node(guest("web", hostdev_xml(A)), devices=[gpu_xml(A), gpu_xml(B)]))
    add_host(engine, HOST, path)
    add_machine(engine, "web")
    give(engine, "web")
    return path


def patient(engine: Engine, instance: DagsterInstance) -> Deployment:
    """A deployment whose hosts may take longer: a late look is a problem, and a problem launches a run."""
    return deployment(engine, instance, hypervisor_deadline_seconds=45)


@pytest.fixture
def home(engine: Engine, instance: DagsterInstance, tmp_path: Path) -> Deployment:
    """A deployment with one host."""
    make_host(engine, tmp_path)
    return patient(engine, instance)


@pytest.fixture
def small(sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path) -> Deployment:
    """The same on SQLite only, for what has nothing to do with the database."""
    make_host(sqlite_engine, tmp_path)
    return patient(sqlite_engine, instance)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of the host of both."""
    return tmp_path / "kvm1.xml"


def tick(home: Deployment) -> list[RunRequest] | SkipReason:
    return home.tick(SCHEDULE, datetime.now(UTC))


def skipped(home: Deployment) -> str:
    requests = tick(home)
    if not isinstance(requests, SkipReason):
        # A request does not say what is due.
        pytest.fail(f"a run was launched: {shown(home.run_job(JOB, apply_gpus={'dry_run': True}), 'plan_gpus')}")
    return requests.skip_message or ""


def launched(home: Deployment) -> list[bool]:
    requests = tick(home)
    assert isinstance(requests, list), requests
    return home.run_requests(requests, JOB)


def shown(result: ExecuteInProcessResult, op: str) -> dict[str, Any]:
    """What an op shows."""
    (metadata,) = [
        event.step_output_data.metadata
        for event in result.all_events
        if event.event_type_value == "STEP_OUTPUT" and event.step_key == op
    ]
    return {name: value.value for name, value in metadata.items()}


def failure(result: ExecuteInProcessResult) -> str:
    assert not result.success
    return " ".join(
        str(event.step_failure_data.error) for event in result.all_events if event.event_type_value == "STEP_FAILURE"
    )


def test_a_run_takes_the_inventory_and_shows_it(home: Deployment) -> None:
    result = home.run_job(JOB)
    assert result.success
    assert gpu_states(home.engine) == {f"{HOST} {A}": "assigned", f"{HOST} {B}": "available"}
    (event,) = result.get_asset_materialization_events()
    table = {name: value.value for name, value in event.materialization.metadata.items()}
    assert (table["gpus_detected"], table["gpus_assigned"], table["gpus_available"], table["conflicts"]) == (2, 1, 1, 0)
    assert f"| {HOST} | {A} | NVIDIA Corporation GA100 [A100 PCIe 80GB] |" in str(table[GPUS])
    assert "| assigned | of web |" in str(table[GPUS])
    (check,) = result.get_asset_check_evaluations()
    assert (check.asset_key, check.check_name, check.passed) == (AssetKey(GPUS), CHECK, True)
    (outcome,) = rows(home.engine, job_outcomes)
    assert (outcome["job"], outcome["status"], outcome["scanned"], outcome["changed"]) == (JOB, "success", 2, 2)
    assert shown(result, "observe_gpus")["domains"] == 1


def test_the_schedule_launches_what_is_due_and_then_skips_with_the_counts(home: Deployment) -> None:
    assert launched(home) == [True]
    assert skipped(home) == "2 GPUs on 1 host in sync: 1 assigned, 1 available."
    assert len(rows(home.engine, job_outcomes)) == 1


def test_a_dry_run_shows_the_plan_and_writes_nothing(small: Deployment) -> None:
    result = small.run_job(JOB, apply_gpus={"dry_run": True})
    assert result.success
    assert f"| {HOST} {A} | add |" in str(shown(result, "plan_gpus")["plan"])
    assert (rows(small.engine, gpus), rows(small.engine, job_outcomes)) == ([], [])
    assert result.get_asset_materialization_events() == [] == result.get_asset_check_evaluations()


def test_conflicts_fail_the_check_as_an_error_and_the_run_goes_on(small: Deployment, file: Path) -> None:
    file.write_text(node(guest("web", hostdev_xml(A)), guest("stranger", hostdev_xml(A)), devices=[gpu_xml(A)]))
    result = small.run_job(JOB)
    assert result.success
    (check,) = result.get_asset_check_evaluations()
    assert (check.passed, check.severity) == (False, AssetCheckSeverity.ERROR)
    assert "2 conflicts. The first: kvm1 0000:01:00.0 stranger and web have it" in (check.description or "")
    # What only a person can settle launches a run each time, so that it is not forgotten.
    assert launched(small) == [True]
    assert assigned(small.engine) == {(A, "web")}


def checked(home: Deployment) -> ExecuteInProcessResult:
    """Run the check by itself, as its button in the UI does."""
    job = home.definitions.resolve_implicit_global_asset_job_def()
    subset = job.get_subset(asset_selection=set(), asset_check_selection={AssetCheckKey(AssetKey(GPUS), CHECK)})
    return subset.execute_in_process(instance=home.instance, raise_on_error=False)


def test_the_check_can_be_run_by_itself(small: Deployment, file: Path) -> None:
    (well,) = checked(small).get_asset_check_evaluations()
    assert (well.passed, well.description) == (True, "No conflicts.")
    file.write_text(node(guest("web"), devices=[gpu_xml(A)]))
    (odd,) = checked(small).get_asset_check_evaluations()
    assert not odd.passed
    assert f"{HOST} {A} it was given to web, whose domain does not have it" in (odd.description or "")
    assert rows(small.engine, gpus) == []
    file.unlink()
    assert "1 host was left alone" in failure(checked(small))


def test_an_unreachable_host_fails_the_run_that_did_the_others(small: Deployment, tmp_path: Path) -> None:
    add_host(small.engine, "kvm2", tmp_path / "nothing.xml")
    result = small.run_job(JOB)
    assert "1 host was left alone. kvm2: test:///" in failure(result)
    assert len(gpu_states(small.engine)) == 2
    (outcome,) = rows(small.engine, job_outcomes)
    assert (outcome["status"], outcome["failed"], outcome["changed"]) == ("failed", 1, 2)
    hosts = {row["id"]: row["state"] for row in rows(small.engine, hypervisor_hosts)}
    assert hosts == {HOST: "", "kvm2": "unreachable"}
    # The table and the check are there all the same.
    assert len(result.get_asset_materialization_events()) == len(result.get_asset_check_evaluations()) == 1
    assert launched(small) == [False]


def test_an_empty_scan_fails_the_run_until_an_operator_confirms_it(small: Deployment, file: Path) -> None:
    assert small.run_job(JOB).success
    file.write_text(node(guest("web")))
    assert "none of the 2 known GPUs was found" in failure(small.run_job(JOB))
    assert set(gpu_states(small.engine).values()) == {"assigned", "available"}
    assert small.run_job(JOB, plan_gpus={"accept_loss": [HOST]}).success
    assert set(gpu_states(small.engine).values()) == {"missing"}


def test_a_run_that_would_clear_too_much_clears_nothing_until_the_limit_is_raised(
    small: Deployment, file: Path
) -> None:
    addresses = [f"0000:{bus:02x}:00.0" for bus in range(16, 27)]
    for address in addresses:
        give(small.engine, f"gone-{address}", address)
    file.write_text(node(guest("web", hostdev_xml(A)), devices=[gpu_xml(one) for one in [A, *addresses]]))
    result = small.run_job(JOB)
    told = failure(result)
    assert "11 of 12 objects are more than the limit of 50%" in told and "max_cleared_share of apply_gpus" in told
    assert "its machine is gone" in str(shown(result, "plan_gpus")["plan"])
    assert (len(assigned(small.engine)), gpu_states(small.engine)) == (12, {})
    assert small.run_job(JOB, apply_gpus={"max_cleared_share": 1}).success
    assert assigned(small.engine) == {(A, "web")}


def test_an_orphan_is_due(small: Deployment) -> None:
    assert small.run_job(JOB).success
    give(small.engine, "gone", C)
    assert launched(small) == [True]
    assert assigned(small.engine) == {(A, "web")}


def test_without_a_host_a_run_says_what_to_set_and_a_tick_skips(
    sqlite_engine: Engine, instance: DagsterInstance
) -> None:
    home = deployment(sqlite_engine, instance)
    assert NOTHING_TO_LOOK_AT in failure(home.run_job(JOB))
    assert skipped(home) == NOTHING_TO_LOOK_AT


def test_libvirt_uri_is_the_local_host(sqlite_engine: Engine, instance: DagsterInstance, tmp_path: Path) -> None:
    path = make_host(sqlite_engine, tmp_path)
    for table in (hypervisor_hosts, machines):
        with writing(sqlite_engine) as connection:
            connection.execute(delete(table))
    home = deployment(sqlite_engine, instance, libvirt_uri=f"test://{path}", graphics_allow_boot_vga=True)
    home.run_job(JOB)
    assert f"local {B}" in gpu_states(sqlite_engine)


def test_notes_are_told_by_the_tick_and_launch_nothing(small: Deployment, file: Path) -> None:
    assert small.run_job(JOB).success
    file.write_text(node(guest("web", hostdev_xml(A)), devices=[gpu_xml(A, group=9), gpu_xml(B)]))
    assert skipped(small).endswith(
        f"1 notes, the first: {HOST}: {A}: iommu_group was 1 and is 9; kept until it is released."
    )


def test_while_a_run_is_on_its_way_nothing_is_looked_at(small: Deployment) -> None:
    run = create_run_for_test(small.instance, JOB)
    assert skipped(small) == f"{JOB} is not_started (run {run.run_id[:8]})."


def test_when_the_database_fails_a_run_is_launched_so_that_it_is_seen(small: Deployment) -> None:
    execute(small.engine, "DROP TABLE gpus")
    assert launched(small) == [False]
