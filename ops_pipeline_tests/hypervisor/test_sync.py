"""Passes over fleets of the test driver, on both databases: what is written, and what never is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text, update

from ops_pipeline.database.engine import writing
from ops_pipeline.hypervisor.machines.plans import Limits
from ops_pipeline.hypervisor.machines.rules import Policy
from ops_pipeline.hypervisor.machines.sync import Applied, Scene, apply, counts_text, outcome_of, plan
from ops_pipeline.hypervisor.tables import hypervisor_hosts, machines
from ops_pipeline_tests.hypervisor.libvirt_servers import TestDomain
from ops_pipeline_tests.hypervisor.scenes import (
    add_host,
    add_machines,
    fleet,
    kinds,
    passed,
    planned,
    rows_of,
    scene,
    statuses,
)

NOWHERE = "qemu+unix:///system?socket=/nowhere"
ON, PAUSED, OFF, CRASHED = 1, 3, 5, 6


def set_columns(engine: Engine, which: str, /, **values: object) -> None:
    with writing(engine) as connection:
        connection.execute(update(machines).where(machines.c.id == which).values(**values))


def statements(engine: Engine) -> list[str]:
    """Every statement from now on."""
    made: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def _note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        made.append(statement)

    return made


def writes(made: list[str]) -> list[str]:
    return [one for one in made if one.split()[0] not in {"SELECT", "BEGIN", "PRAGMA"}]


def test_each_machine_follows_its_domain(engine: Engine, tmp_path: Path) -> None:
    domains = [TestDomain("a"), TestDomain("b", PAUSED), TestDomain("c", OFF), TestDomain("d"), TestDomain("e", OFF)]
    add_machines(
        engine,
        {"id": "a", "status": "off"},
        {"id": "b", "status": "running"},
        {"id": "c", "status": "suspended"},
        {"id": "d", "status": "running"},
        {"id": "e", "status": "off"},
    )
    where = scene(engine, fleet(tmp_path / "f.xml", domains))
    made, applied = passed(where)
    assert statuses(engine) == {"a": "running", "b": "suspended", "c": "stopped", "d": "running", "e": "off"}
    assert applied == Applied(changed=3, skipped=0, observed=2, hosts=1)
    seen = {name: row["observed_state"] for name, row in rows_of(engine).items()}
    assert seen == {"a": "running", "b": "paused", "c": "shutoff", "d": "running", "e": "shutoff"}
    outcome = outcome_of(made, applied)
    assert (outcome.scanned, outcome.changed, outcome.unchanged, outcome.failed) == (5, 3, 2, 0)


def test_a_second_pass_writes_nothing_at_all(engine: Engine, tmp_path: Path) -> None:
    add_machines(engine, {"id": "a", "status": "off"}, {"id": "b", "status": "running"})
    where = scene(engine, fleet(tmp_path / "f.xml", [TestDomain("a"), TestDomain("b")]))
    passed(where)
    before = rows_of(engine)
    made = statements(engine)
    seen, second = planned(where)
    assert apply(where, seen, second) == Applied()
    assert writes(made) == []
    assert len([one for one in made if "FROM machines" in one]) == 1
    assert rows_of(engine) == before
    assert counts_text(seen, second) == "2 machines on 1 host in sync."


def test_the_time_of_an_unchanged_observation_is_refreshed_no_more_often_than_the_setting_says(
    engine: Engine, tmp_path: Path
) -> None:
    add_machines(engine, {"id": "a", "status": "running"})
    uri = fleet(tmp_path / "f.xml", [TestDomain("a")])
    passed(scene(engine, uri))
    first = rows_of(engine)["a"]["observed_at"]
    assert passed(scene(engine, uri))[1] == Applied()
    _, applied = passed(scene(engine, uri, Limits(refresh=timedelta(0))))
    assert (applied.observed, applied.hosts) == (1, 1)
    row = rows_of(engine)["a"]
    assert row["observed_at"] > first
    assert max(row["updated_at"], row["status_changed_at"]) < first


@pytest.mark.parametrize("uri", [NOWHERE, "test:///nowhere.xml", "nosuch://x/"])
def test_a_host_that_cannot_be_looked_at_changes_nothing_of_its_machines(engine: Engine, uri: str) -> None:
    """An error was read as an empty list, and every machine was stopped."""
    add_machines(engine, {"id": "a", "status": "running"}, {"id": "b", "status": "off"})
    before = rows_of(engine)
    made, applied = passed(scene(engine, uri))
    assert rows_of(engine) == before
    assert list(made.problems) == ["local"]
    assert (made.scanned, made.unasked, applied.changed, applied.observed) == (0, 2, 0, 0)
    assert outcome_of(made, applied).status == "failed"
    host = rows_of(engine, hypervisor_hosts)["local"]
    assert (host["state"], host["last_seen_at"]) == ("unreachable", None)
    assert host["reason"] == made.problems["local"]


def test_the_other_hosts_are_synced_while_one_hangs_or_is_gone(engine: Engine, tmp_path: Path) -> None:
    add_host(engine, "a", fleet(tmp_path / "a.xml", [TestDomain("on")]))
    add_host(engine, "b", NOWHERE)
    rows = [{"id": "x", "internal_name": "on", "host_id": "a"}, {"id": "y", "host_id": "b", "status": "running"}]
    add_machines(engine, *rows)
    made, applied = passed(scene(engine, ""))
    assert statuses(engine) == {"x": "running", "y": "running"}
    assert (list(made.problems), applied.changed) == (["b"], 1)
    assert {name: row["state"] for name, row in rows_of(engine, hypervisor_hosts).items()} == {
        "a": "up",
        "b": "unreachable",
    }


def test_a_missing_domain_is_believed_after_some_looks_only(engine: Engine, tmp_path: Path) -> None:
    add_machines(engine, {"id": "a", "status": "running"}, {"id": "b", "status": "running"}, {"id": "c"})
    where = scene(engine, fleet(tmp_path / "f.xml", [TestDomain("a")]))
    found = []
    for _ in range(4):
        made, _ = passed(where)
        row = rows_of(engine)["b"]
        found.append((row["status"], row["observed_state"], row["missing_looks"], kinds(made)))
    assert found == [
        ("running", "missing", 1, []),
        ("running", "missing", 2, []),
        ("stopped", "missing", 3, [("missing", "b")]),
        ("stopped", "missing", 3, [("missing", "b")]),
    ]
    assert rows_of(engine)["c"]["status"] == "off"
    assert passed(where)[1] == Applied()


def test_a_domain_that_comes_back_starts_the_count_anew(engine: Engine, tmp_path: Path) -> None:
    add_machines(engine, {"id": "a", "status": "running"}, {"id": "b", "status": "running"})
    both = [TestDomain("a"), TestDomain("b")]
    path = tmp_path / "f.xml"
    for domains, looks in ((both[:1], 1), (both[:1], 2), (both, 0), (both[:1], 1)):
        passed(scene(engine, fleet(path, domains)))
        assert rows_of(engine)["b"]["missing_looks"] == looks
    assert statuses(engine)["b"] == "running"


def test_while_a_host_does_not_answer_no_machine_is_missing(engine: Engine, tmp_path: Path) -> None:
    """It may have been moved there by hand."""
    add_host(engine, "a", fleet(tmp_path / "a.xml", [TestDomain("on")]))
    add_host(engine, "b", NOWHERE)
    rows = [{"id": "on", "host_id": "a"}, {"id": "gone", "host_id": "a", "uuid": "1", "status": "running"}]
    add_machines(engine, *rows)
    for _ in range(5):
        passed(scene(engine, ""))
    row = rows_of(engine)["gone"]
    assert (row["status"], row["observed_state"], row["missing_looks"]) == ("running", "missing", 0)


def test_a_machine_that_was_moved_by_hand_is_reported_and_left_alone(engine: Engine, tmp_path: Path) -> None:
    uuid = "5c8dd07c-8a4c-4ee4-8c6f-1f0c1a8fe1a1"
    add_host(engine, "a", fleet(tmp_path / "a.xml", [TestDomain("other")]))
    add_host(engine, "b", fleet(tmp_path / "b.xml", [TestDomain("m", uuid=uuid)]))
    rows = [{"id": "other", "host_id": "a"}, {"id": "m", "host_id": "a", "uuid": uuid, "status": "running"}]
    add_machines(engine, *rows)
    for _ in range(4):
        made, _ = passed(scene(engine, ""))
    row = rows_of(engine)["m"]
    assert (row["status"], row["observed_state"], row["observed_reason"]) == ("running", "unknown", "on host b")
    assert kinds(made) == [("conflict", "m")]
    set_columns(engine, "m", status="moving")
    assert kinds(passed(scene(engine, ""))[0]) == []


def test_strangers_and_nameless_machines_are_reported_and_nothing_of_them_is_written(
    engine: Engine, tmp_path: Path
) -> None:
    rows = [{"id": "a", "internal_name": "x"}, {"id": "b", "internal_name": "x"}, {"id": "c", "internal_name": ""}]
    add_machines(engine, *rows)
    before = rows_of(engine)
    made, applied = passed(scene(engine, fleet(tmp_path / "f.xml", [TestDomain("x"), TestDomain("stranger")])))
    assert kinds(made) == [
        ("duplicate", "x (a)"),
        ("duplicate", "x (b)"),
        ("unknown_domain", "stranger"),
        ("unnamed", "c"),
    ]
    assert (rows_of(engine), applied.changed, applied.observed) == (before, 0, 0)


@pytest.mark.parametrize("status", ["building", "updating_hardware", "backing_up", "moving", "deleting", "error"])
def test_transitions_locks_and_errors_keep_their_status_and_what_is_seen_is_written_beside(
    engine: Engine, tmp_path: Path, status: str
) -> None:
    add_machines(engine, {"id": "a", "status": status}, {"id": "b", "status": status})
    made, _ = passed(scene(engine, fleet(tmp_path / "f.xml", [TestDomain("a"), TestDomain("b", OFF)])))
    assert statuses(engine) == {"a": status, "b": status}
    assert [row["observed_state"] for row in rows_of(engine).values()] == ["running", "shutoff"]
    assert kinds(made) == ([("conflict", "a")] if status == "error" else [])


def test_a_transition_that_outlives_its_maximum_age_is_reported(engine: Engine, tmp_path: Path) -> None:
    add_machines(engine, {"id": "a", "status": "starting"}, {"id": "b", "status": "starting"})
    set_columns(engine, "a", status_changed_at=datetime.now(UTC) - timedelta(hours=2))
    made, _ = passed(scene(engine, fleet(tmp_path / "f.xml", [TestDomain("a"), TestDomain("b")])))
    assert kinds(made) == [("stuck", "a")]
    assert made.findings[0].words == "starting for longer than 60 minutes"


def test_the_database_keeps_since_when_a_machine_has_its_status(engine: Engine) -> None:
    """Writers do not think of it, and their clocks differ."""
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    add_machines(engine, {"id": "a", "status": "off", "status_changed_at": long_ago})
    first = rows_of(engine)["a"]["status_changed_at"]
    assert first > long_ago
    set_columns(engine, "a", observed_state="running", status="off")
    assert rows_of(engine)["a"]["status_changed_at"] == first
    set_columns(engine, "a", status="starting")
    row = rows_of(engine)["a"]
    assert row["status_changed_at"] > first
    set_columns(engine, "a", name="web")
    assert rows_of(engine)["a"]["updated_at"] > row["updated_at"]
    assert rows_of(engine)["a"]["status_changed_at"] == row["status_changed_at"]


def test_a_status_that_changes_between_look_and_write_is_not_overwritten(engine: Engine, tmp_path: Path) -> None:
    add_machines(engine, *({"id": name, "status": "running"} for name in ("a", "b", "c")))
    where = scene(engine, fleet(tmp_path / "f.xml", [TestDomain("a", OFF), TestDomain("b", OFF), TestDomain("c", OFF)]))
    seen, made = planned(where)
    set_columns(engine, "a", status="starting")
    set_columns(engine, "b", status="starting")
    set_columns(engine, "b", status="running")
    applied = apply(where, seen, made)
    assert statuses(engine) == {"a": "starting", "b": "running", "c": "stopped"}
    assert (applied.changed, applied.skipped) == (1, 2)


def test_a_status_set_during_the_look_is_newer_than_the_look(engine: Engine, tmp_path: Path) -> None:
    """The platform started a machine and wrote it; the look from before that stopped it again."""
    from ops_pipeline.hypervisor.machines import sync

    add_machines(engine, {"id": "a", "status": "off"})
    where = scene(engine, fleet(tmp_path / "f.xml", [TestDomain("a", OFF)]))
    ask = sync.ask_hosts

    def ask_while_the_platform_starts_it(*arguments: object, **more: object) -> object:
        answers = ask(*arguments, **more)  # type: ignore[arg-type]
        set_columns(engine, "a", status="running")
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync, "ask_hosts", ask_while_the_platform_starts_it)
        passed(where)
    assert statuses(engine) == {"a": "running"}
    passed(where)
    assert statuses(engine) == {"a": "stopped"}


def test_a_machine_deleted_during_the_look_does_not_come_back(engine: Engine, tmp_path: Path) -> None:
    add_machines(engine, {"id": "a", "status": "running"})
    where = scene(engine, fleet(tmp_path / "f.xml", [TestDomain("a", OFF)]))
    seen, made = planned(where)
    with writing(engine) as connection:
        connection.execute(text("DELETE FROM machines"))
    assert apply(where, seen, made).skipped == 1
    assert rows_of(engine) == {}


def test_of_two_passes_that_overlap_the_later_look_stays(engine: Engine, tmp_path: Path) -> None:
    add_machines(engine, {"id": "a", "status": "running"})
    path = tmp_path / "f.xml"
    where = scene(engine, fleet(path, [TestDomain("a", PAUSED)]))
    old_look, old_plan = planned(where)
    fleet(path, [TestDomain("a", OFF)])
    passed(where)
    assert apply(where, old_look, old_plan).changed == 0
    row = rows_of(engine)["a"]
    assert (row["status"], row["observed_state"]) == ("stopped", "shutoff")


def many(count: int, state: int) -> list[TestDomain]:
    return [TestDomain(f"vm-{number}", state) for number in range(count)]


def running(engine: Engine, count: int) -> None:
    add_machines(engine, *({"id": f"vm-{number}", "status": "running"} for number in range(count)))


def test_more_than_half_of_ten_machines_that_go_down_at_once_are_not_believed(engine: Engine, tmp_path: Path) -> None:
    running(engine, 10)
    domains = many(6, OFF) + many(10, ON)[6:]
    where = scene(engine, fleet(tmp_path / "f.xml", domains))
    before = rows_of(engine)
    made, applied = passed(where)
    assert "6 of its 10 machines that are up would go down in one look, more than 50%" in made.problems["local"]
    after = rows_of(engine)
    assert [after[f"vm-{number}"] for number in range(6)] == [before[f"vm-{number}"] for number in range(6)]
    assert (applied.changed, applied.observed) == (0, 4)
    assert outcome_of(made, applied).status == "failed"
    raised = Scene(engine, where.local_uri, 20, Limits(down_share=1))
    assert passed(raised)[1].changed == 6


def test_half_of_ten_and_all_of_nine_may_go_down(engine: Engine, tmp_path: Path) -> None:
    running(engine, 10)
    where = scene(engine, fleet(tmp_path / "f.xml", many(5, OFF) + many(10, ON)[5:]))
    assert passed(where)[1].changed == 5
    set_columns(engine, "vm-0", status="running")
    where = scene(engine, fleet(tmp_path / "f.xml", many(10, OFF)))
    assert passed(where)[1].changed == 6


def test_missing_domains_count_for_the_limit_too(engine: Engine, tmp_path: Path) -> None:
    running(engine, 10)
    where = scene(engine, fleet(tmp_path / "f.xml", many(10, ON)))
    passed(where)
    where = scene(engine, fleet(tmp_path / "f.xml", many(4, ON)), Limits(policy=Policy(missing_looks=1)))
    made, applied = passed(where)
    assert (list(made.problems), applied.changed, set(statuses(engine).values())) == (["local"], 0, {"running"})


@pytest.mark.parametrize("domains", [[], [TestDomain("other")]], ids=["empty", "another host"])
def test_a_host_that_has_none_of_its_machines_is_not_believed(
    engine: Engine, tmp_path: Path, domains: list[TestDomain]
) -> None:
    """A URI that led to another hypervisor stopped every machine."""
    running(engine, 3)
    passed(scene(engine, fleet(tmp_path / "f.xml", many(3, ON))))
    before = rows_of(engine)
    where = scene(engine, fleet(tmp_path / "f.xml", domains))
    for _ in range(4):
        made, applied = passed(where)
    assert "has none of its 3 machines: is its libvirt_uri right?" in made.problems["local"]
    assert (rows_of(engine), applied) == (before, Applied())
    for _ in range(3):
        passed(Scene(engine, where.local_uri, 20, Limits(down_share=1)))
    assert set(statuses(engine).values()) == {"stopped"}


def test_a_host_whose_uptime_fell_is_looked_at_twice_and_then_believed(engine: Engine, tmp_path: Path) -> None:
    """The test driver tells no uptime; what a real host tells is tested on one."""
    running(engine, 10)
    path = tmp_path / "f.xml"
    where = scene(engine, fleet(path, many(10, OFF)))
    seen, made = planned(where)
    assert (made.changes, len(made.held)) == ((), 10)
    fresh = {"local": seen.facts["local"]._replace(uptime_seconds=60)}
    (host,) = seen.hosts
    known = replace(host, uptime_seconds=90_000, last_seen_at=seen.looked_at - timedelta(minutes=2))
    after_restart = replace(seen, facts=fresh, hosts=[known])
    slept: list[float] = []
    assert len(plan(where, after_restart, slept.append).changes) == 10
    assert slept == [5.0]

    def start_them(_seconds: float) -> None:
        fleet(path, many(10, ON))

    agreed = plan(where, after_restart, start_them)
    assert agreed.changes == ()


def test_a_guest_that_starts_with_its_host_does_not_contradict_the_others_being_down(
    engine: Engine, tmp_path: Path
) -> None:
    """One machine that had come up kept all the others from being believed after a restart."""
    running(engine, 10)
    add_machines(engine, {"id": "auto", "status": "off"})
    where = scene(engine, fleet(tmp_path / "f.xml", [*many(10, OFF), TestDomain("auto", ON)]))
    seen, _ = planned(where)
    facts = {"local": seen.facts["local"]._replace(uptime_seconds=60)}
    known = replace(seen.hosts[0], uptime_seconds=90_000, last_seen_at=seen.looked_at - timedelta(minutes=2))
    made = plan(where, replace(seen, facts=facts, hosts=[known]), lambda _seconds: None)
    assert (len(made.changes), made.problems) == (11, {})


def test_the_platforms_word_for_down_is_a_setting(engine: Engine, tmp_path: Path) -> None:
    running(engine, 1)
    passed(scene(engine, fleet(tmp_path / "f.xml", many(1, OFF)), Limits(policy=Policy(stopped="off"))))
    assert statuses(engine) == {"vm-0": "off"}


def test_thousands_of_changes_take_few_statements(engine: Engine, tmp_path: Path) -> None:
    running(engine, 2_500)
    where = Scene(engine, fleet(tmp_path / "f.xml", many(2_500, OFF)), 60, Limits(down_share=1))
    seen, made = planned(where)
    counted = statements(engine)
    assert apply(where, seen, made).changed == 2_500
    assert len(writes(counted)) == 3 + 1
    assert set(statuses(engine).values()) == {"stopped"}


def test_a_crash_and_an_io_error_are_told(engine: Engine, tmp_path: Path) -> None:
    add_machines(engine, {"id": "a", "status": "running"})
    made, _ = passed(scene(engine, fleet(tmp_path / "f.xml", [TestDomain("a", CRASHED)])))
    assert (statuses(engine), kinds(made)) == ({"a": "stopped"}, [("alert", "a")])


def test_a_renamed_domain_is_followed_by_its_uuid_and_told(engine: Engine, tmp_path: Path) -> None:
    uuid = "5c8dd07c-8a4c-4ee4-8c6f-1f0c1a8fe1a1"
    add_machines(engine, {"id": "a", "status": "running", "uuid": uuid.upper(), "internal_name": "old"})
    made, _ = passed(scene(engine, fleet(tmp_path / "f.xml", [TestDomain("new", OFF, uuid)])))
    assert (statuses(engine), kinds(made)) == ({"a": "stopped"}, [("renamed", "old (a)")])
