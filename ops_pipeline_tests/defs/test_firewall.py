"""The job, schedule and checks of network filters, run through Dagster against a real libvirtd."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    AssetKey,
    DagsterInstance,
    DagsterRunStatus,
    ExecuteInProcessResult,
    SkipReason,
)
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import Engine, delete

from ops_pipeline.database.engine import writing
from ops_pipeline.defs.hypervisor.firewall import JOB
from ops_pipeline.defs.hypervisor.firewall_shown import CARRIED, CHECKS, FILTERS, IN_SYNC, NOTHING_TO_LOOK_AT, WIDER
from ops_pipeline.hypervisor.tables import hypervisor_hosts, machines, network_filter_machines, network_filter_orphans
from ops_pipeline.operations.tables import job_outcomes
from ops_pipeline_tests.defs.deployment import Deployment, deployment
from ops_pipeline_tests.hypervisor.filters.samples import filter_row, insert_rows, reference_row, rule_row, store
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer, guest_xml, interface_xml
from ops_pipeline_tests.usage.calls import rows

SCHEDULE = f"{JOB}_schedule"
OBSERVE, PLAN, APPLY, JUDGE = (f"{verb}_network_filters" for verb in ("observe", "plan", "apply", "judge"))
MAC = "52:54:00:00:00:01"


@pytest.fixture
def home(sqlite_engine: Engine, instance: DagsterInstance, libvirtd: LibvirtServer) -> Deployment:
    """A deployment with one host, where orphans go at once."""
    return deployment(sqlite_engine, instance, libvirt_uri=libvirtd.uri, network_filter_orphan_hours=0)


def ours(server: LibvirtServer) -> list[str]:
    with server.connection() as connection:
        return sorted(one.name() for one in connection.listAllNWFilters() if one.name().startswith("ibay-"))


def tick(home: Deployment) -> str | None:
    """Why the schedule skipped; None when it asked for a run, which then succeeded or not as the caller finds out."""
    requests = home.tick(SCHEDULE, datetime.now(UTC))
    return requests.skip_message if isinstance(requests, SkipReason) else None


def evaluations(result: ExecuteInProcessResult) -> dict[str, AssetCheckEvaluation]:
    found = result.get_asset_check_evaluations()
    assert all(one.asset_key == AssetKey(FILTERS) for one in found)
    return {one.check_name: one for one in found}


def metadata_of(result: ExecuteInProcessResult, op: str) -> dict[str, Any]:
    (found,) = [
        event.step_output_data.metadata
        for event in result.all_events
        if event.event_type_value == "STEP_OUTPUT" and event.step_key == op
    ]
    return {name: value.value for name, value in found.items()}


def failure(result: ExecuteInProcessResult, step: str) -> str:
    assert not result.success
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    assert event.step_key == step
    return str(event.step_failure_data.error)


def test_a_run_defines_what_is_missing_removes_what_is_not_wanted_and_shows_it(
    home: Deployment, libvirtd: LibvirtServer
) -> None:
    engine = home.engine
    store(engine, [filter_row("old"), filter_row("base")], [rule_row("base")])
    assert home.run_job(JOB).success
    store(engine, [filter_row("web"), filter_row("base")], [rule_row("base")], [reference_row("web", "base")])
    result = home.run_job(JOB)
    assert result.success
    assert ours(libvirtd) == ["ibay-base", "ibay-web"]
    assert metadata_of(result, OBSERVE)["hosts"] == 1
    plan = metadata_of(result, PLAN)
    assert (plan["changes"], plan["in_sync"]) == (2, 1)
    assert "| local: ibay-web | define | missing | it is missing |" in plan["plan"]
    assert "| local: ibay-old | remove | orphan |" in plan["plan"]
    (event,) = result.get_asset_materialization_events()
    shown = {name: value.value for name, value in event.materialization.metadata.items()}
    assert (shown["changed"], shown["failed"]) == (2, 0)
    assert "| local | 2 | 2 | 0 | 1 | 0 |" in str(shown["hosts"])
    assert {name: one.passed for name, one in evaluations(result).items()} == dict.fromkeys(CHECKS, True)
    outcome = rows(engine, job_outcomes)[-1]
    assert (outcome["job"], outcome["status"], outcome["scanned"], outcome["changed"]) == (JOB, "success", 2, 2)
    assert outcome["details"]["reasons"] == {"in sync": 1, "define": 1, "remove": 1}
    assert outcome["details"]["changes"][0] == "define local: ibay-web: it is missing"


def test_a_dry_run_shows_the_plan_and_changes_nothing(home: Deployment, libvirtd: LibvirtServer) -> None:
    store(home.engine, [filter_row("web")])
    result = home.run_job(JOB, **{APPLY: {"dry_run": True}})
    assert result.success
    assert "ibay-web" in metadata_of(result, PLAN)["plan"]
    assert (ours(libvirtd), rows(home.engine, job_outcomes), rows(home.engine, network_filter_orphans)) == ([], [], [])
    assert result.get_asset_materialization_events() == []


def test_a_failure_is_shown_with_everything_that_was_done(home: Deployment, libvirtd: LibvirtServer) -> None:
    store(home.engine, [filter_row("web"), filter_row("bad")], [rule_row("bad", action="allow")])
    result = home.run_job(JOB)
    assert "Bad (ibay-bad): rule bad-1 (allow in all): 'allow' is no action" in failure(result, JUDGE)
    assert ours(libvirtd) == ["ibay-web"]
    check = evaluations(result)[IN_SYNC]
    assert (check.passed, check.severity) == (False, AssetCheckSeverity.ERROR)
    (outcome,) = rows(home.engine, job_outcomes)
    assert (outcome["status"], outcome["changed"], outcome["failed"], outcome["details"]["told"]) == ("failed", 1, 1, 1)


def test_a_circle_fails_the_plan_and_is_recorded(home: Deployment, libvirtd: LibvirtServer) -> None:
    store(home.engine, [filter_row("a"), filter_row("c")], references=[reference_row("a", "a")])
    result = home.run_job(JOB)
    assert "include each other in a circle: A (ibay-a) includes A (ibay-a). No filter was touched." in failure(
        result, PLAN
    )
    assert (ours(libvirtd), rows(home.engine, job_outcomes)[0]["status"]) == ([], "failed")
    assert tick(home) is None


def test_more_removals_than_the_limit_are_refused_until_it_is_raised(
    home: Deployment,
    libvirtd: LibvirtServer,
) -> None:
    store(home.engine, [filter_row(f"old{number}") for number in range(12)])
    assert home.run_job(JOB).success
    store(home.engine, [filter_row("new")])
    result = home.run_job(JOB)
    assert "orphans are not removed: 12 of 12 objects are more than the limit of 50%" in failure(result, JUDGE)
    assert len(ours(libvirtd)) == 13
    assert home.run_job(JOB, **{PLAN: {"max_removal_share": 1.0}}).success
    assert ours(libvirtd) == ["ibay-new"]
    assert "at 7" in failure(home.run_job(JOB, **{PLAN: {"max_removal_share": 7.0}}), PLAN)


def test_without_a_host_a_run_says_what_to_set(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    home = deployment(sqlite_engine, instance)
    assert NOTHING_TO_LOOK_AT in failure(home.run_job(JOB), OBSERVE)
    assert tick(home) == NOTHING_TO_LOOK_AT


def test_a_host_that_does_not_answer_fails_the_run_by_name_and_one_more_run_turns_the_checks_green(
    home: Deployment, libvirtd: LibvirtServer
) -> None:
    hosts = [{"id": "lost", "libvirt_uri": "qemu+unix:///system?socket=/nowhere"}]
    insert_rows(home.engine, hypervisor_hosts, [*hosts, {"id": "here", "libvirt_uri": libvirtd.uri}])
    store(home.engine, [filter_row("web")])
    assert "lost: qemu+unix:///system?socket=/nowhere: nothing answers" in failure(home.run_job(JOB), JUDGE)
    assert ours(libvirtd) == ["ibay-web"]
    found = {row["id"]: (row["state"], row["reason"]) for row in rows(home.engine, hypervisor_hosts)}
    # That a host is well is for the look to tell that knows its uptime.
    assert found["here"] == ("", "")
    assert found["lost"][0] == "unreachable" and "nothing answers" in found["lost"][1]
    assert tick(home) is None
    with writing(home.engine) as connection:
        connection.execute(delete(hypervisor_hosts).where(hypervisor_hosts.c.id == "lost"))
    assert tick(home) is None
    assert evaluations(home.run_job(JOB))[IN_SYNC].passed
    assert tick(home) == "In sync: 1 filter on 1 host."


def test_the_schedule_skips_in_sync_with_counts_and_asks_for_a_run_otherwise(
    home: Deployment,
    libvirtd: LibvirtServer,
) -> None:
    store(home.engine, [filter_row("web")], [rule_row("web")])
    requests = home.tick(SCHEDULE, datetime.now(UTC))
    assert isinstance(requests, list)
    assert ours(libvirtd) == []
    assert home.run_requests(requests, JOB) == [True]
    assert tick(home) == "In sync: 1 filter on 1 host."
    store(home.engine, [filter_row("web")], [rule_row("web", action="reject")])
    assert tick(home) is None


def test_a_young_orphan_is_remembered_by_one_run_and_waits(
    sqlite_engine: Engine,
    instance: DagsterInstance,
    libvirtd: LibvirtServer,
) -> None:
    home = deployment(sqlite_engine, instance, libvirt_uri=libvirtd.uri)
    store(sqlite_engine, [filter_row("web"), filter_row("old")])
    assert home.run_job(JOB).success
    store(sqlite_engine, [filter_row("web")])
    assert tick(home) is None
    assert home.run_job(JOB).success
    assert tick(home) == "In sync: 1 filter on 1 host; 1 orphan waits."
    assert ours(libvirtd) == ["ibay-old", "ibay-web"]


def test_checks_tell_of_machines_without_their_filter_and_of_ipv6_until_it_is_over(
    home: Deployment,
    libvirtd: LibvirtServer,
) -> None:
    store(home.engine, [filter_row("web")], [rule_row("web", ip_version="ipv4")])
    insert_rows(home.engine, machines, [{"id": "m", "internal_name": "guest", "name": "Shop"}])
    insert_rows(home.engine, network_filter_machines, [{"machine_id": "m", "filter_id": "web"}])
    interface = interface_xml(MAC, "tap1")
    libvirtd.define("guest", start=False, interfaces=[interface])
    result = home.run_job(JOB)
    assert result.success
    found = evaluations(result)
    assert (found[CARRIED].passed, found[CARRIED].severity) == (False, AssetCheckSeverity.ERROR)
    assert found[CARRIED].description == (
        f"1 machine: Shop (guest) on local: {MAC} carries no filter instead of ibay-web."
    )
    assert (found[WIDER].passed, found[WIDER].severity) == (False, AssetCheckSeverity.WARN)
    assert found[WIDER].description == "1 filter: Web (ibay-web): only over IPv4 it blocks everything in."
    store(home.engine, [filter_row("web")], [rule_row("web")])
    with libvirtd.connection() as connection:
        connection.lookupByName("guest").undefine()
        connection.defineXML(guest_xml("guest", interfaces=[interface_xml(MAC, "tap1", "ibay-web")]))
    assert tick(home) is None
    assert {one.passed for one in evaluations(home.run_job(JOB)).values()} == {True}
    assert tick(home) == "In sync: 1 filter on 1 host."


def test_each_check_looks_for_itself_when_it_is_executed_alone(home: Deployment, libvirtd: LibvirtServer) -> None:
    assets = home.definitions.resolve_asset_graph().assets_defs
    checks = {name: one for one in assets for name in {spec.name for spec in one.check_specs} & CHECKS.keys()}
    store(home.engine, [filter_row("web")], [rule_row("web", ip_version="ipv4")])
    results = {name: check(home.database()) for name, check in checks.items()}
    assert {name: result.passed for name, result in results.items()} == {IN_SYNC: False, CARRIED: True, WIDER: False}
    assert "local: ibay-web: it is missing" in results[IN_SYNC].description
    store(home.engine, [filter_row("web")], references=[reference_row("web", "web")])
    assert all("in a circle" in check(home.database()).description for check in checks.values())
    assert ours(libvirtd) == []


def test_while_a_run_is_on_its_way_nothing_is_looked_at(home: Deployment) -> None:
    run = create_run_for_test(home.instance, JOB, status=DagsterRunStatus.STARTED)
    assert tick(home) == f"{JOB} is started (run {run.run_id[:8]})."


def test_hosts_of_another_kind_are_counted_by_the_schedule(sqlite_engine: Engine, instance: DagsterInstance) -> None:
    home = deployment(sqlite_engine, instance, libvirt_uri="test:///default")
    store(sqlite_engine, [filter_row("web")])
    assert tick(home) == "In sync: 0 filters on 0 hosts; 1 host knows no network filters."
    result = home.run_job(JOB)
    assert result.success
    # What passes because nothing could be looked at says so.
    words = "Nothing to look at on local: libvirt's driver of the host knows no network filters."
    assert {evaluations(result)[name].description for name in (IN_SYNC, CARRIED)} == {words}
