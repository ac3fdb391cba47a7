"""Syncs of filters with a real libvirtd: what is defined, kept, removed, refused and told."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, update

from ops_pipeline.database.engine import writing
from ops_pipeline.hypervisor.filters import sync
from ops_pipeline.hypervisor.filters.store import read_wanted
from ops_pipeline.hypervisor.filters.sync import Synced, outcome_of
from ops_pipeline.hypervisor.filters.xml_text import parse
from ops_pipeline.hypervisor.tables import hypervisor_hosts, network_filter_orphans, network_filter_rules
from ops_pipeline.reconcile import PlanRefused
from ops_pipeline_tests.hypervisor.filters.samples import (
    PREFIX,
    filter_row,
    insert_rows,
    reference_row,
    rule_row,
    store,
    uuid_of,
)
from ops_pipeline_tests.hypervisor.filters.syncs import firewall, synced
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer, guest_xml, interface_xml
from ops_pipeline_tests.servers import wait_until
from ops_pipeline_tests.usage.calls import rows

DIAMOND = [filter_row(name) for name in ("vm", "left", "right", "base")]
RULES = [
    rule_row("base", "drop", priority=900),
    rule_row("left", "web", action="accept", protocol="tcp", dst_port_start=80, comment='it\'s <web> & "more"'),
    rule_row("right", "arp", action="accept", protocol="arp", attributes={"opcode": "Request"}, src_ip="$IP"),
]
REFERENCES = [
    reference_row("vm", "left", IP=["10.0.0.1", "10.0.0.2"]),
    reference_row("vm", "right"),
    reference_row("left", "base"),
    reference_row("right", "base"),
]


def dumps(server: LibvirtServer) -> dict[str, str]:
    """Every filter that libvirt has."""
    with server.connection() as connection:
        return {one.name(): one.XMLDesc() for one in connection.listAllNWFilters()}


def ours(server: LibvirtServer) -> dict[str, str]:
    return {name: xml for name, xml in dumps(server).items() if name.startswith(PREFIX)}


def define(server: LibvirtServer, xml: str) -> None:
    with server.connection() as connection:
        connection.nwfilterDefineXML(xml)


def undefine(server: LibvirtServer, name: str) -> None:
    with server.connection() as connection:
        connection.nwfilterLookupByName(name).undefine()


def well(done: Synced) -> Synced:
    assert done.failures() == []
    return done


def actions(done: Synced) -> dict[str, str]:
    return {change.key.removeprefix("local: "): change.action for change in done.planned.changes}


def prepared(engine: Engine, server: LibvirtServer) -> None:
    """The diamond is in the database and defined."""
    store(engine, DIAMOND, RULES, REFERENCES)
    well(synced(engine, server))


def is_what_is_wanted(engine: Engine, server: LibvirtServer) -> bool:
    wanted = read_wanted(engine, PREFIX).desired.filters
    return {name: parse(xml) for name, xml in ours(server).items()} == dict(wanted)


def test_filters_are_defined_those_that_are_included_first_and_a_second_sync_changes_nothing(
    libvirtd: LibvirtServer, engine: Engine
) -> None:
    foreign = dumps(libvirtd)
    store(engine, DIAMOND, RULES, REFERENCES)
    first = well(synced(engine, libvirtd))
    assert list(actions(first).values()) == ["define"] * 4
    assert [step.name for step in first.steps["local"]] == ["ibay-base", "ibay-left", "ibay-right", "ibay-vm"]
    assert is_what_is_wanted(engine, libvirtd)
    second = well(synced(engine, libvirtd))
    assert (actions(second), second.steps, second.planned.due) == ({}, {}, False)
    outcome = outcome_of(second)
    assert (outcome.scanned, outcome.changed, outcome.unchanged, outcome.reasons) == (4, 0, 4, {"in sync": 4})
    assert {name: xml for name, xml in dumps(libvirtd).items() if name in foreign} == foreign


def test_a_filter_edited_by_hand_is_put_back_and_others_are_not_touched(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    prepared(sqlite_engine, libvirtd)
    before = dumps(libvirtd)
    edited = before["ibay-base"].replace("action='drop'", "action='accept'")
    assert edited != before["ibay-base"]
    define(libvirtd, edited)
    done = well(synced(sqlite_engine, libvirtd))
    assert actions(done) == {"ibay-base": "redefine"}
    assert dumps(libvirtd) == before


def test_what_is_missing_comes_back(libvirtd: LibvirtServer, sqlite_engine: Engine) -> None:
    prepared(sqlite_engine, libvirtd)
    before = dumps(libvirtd)
    undefine(libvirtd, "ibay-vm")
    assert actions(well(synced(sqlite_engine, libvirtd))) == {"ibay-vm": "define"}
    # Rebuilt from nothing.
    libvirtd.clear()
    assert ours(libvirtd) == {}
    well(synced(sqlite_engine, libvirtd))
    assert dumps(libvirtd) == before


def test_an_edit_of_the_database_during_a_sync_is_found_by_the_next_one(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    """A flag that says `flush me` was cleared after the flush, together with the edit made meanwhile."""
    prepared(sqlite_engine, libvirtd)

    def move(port: int) -> None:
        with writing(sqlite_engine) as connection:
            where = network_filter_rules.c.id == "web"
            connection.execute(update(network_filter_rules).where(where).values(dst_port_start=port))

    move(81)
    well(synced(sqlite_engine, libvirtd, between=lambda: move(82)))
    assert "dstportstart='81'" in dumps(libvirtd)["ibay-left"]
    assert actions(well(synced(sqlite_engine, libvirtd))) == {"ibay-left": "redefine"}
    assert "dstportstart='82'" in dumps(libvirtd)["ibay-left"]


def test_what_somebody_changed_on_the_host_since_the_look_is_skipped_and_found_by_the_next_one(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    prepared(sqlite_engine, libvirtd)
    fine = dumps(libvirtd)["ibay-base"]
    define(libvirtd, fine.replace("'900'", "'901'"))
    done = synced(sqlite_engine, libvirtd, between=lambda: define(libvirtd, fine.replace("'900'", "'902'")))
    (step,) = done.steps["local"]
    assert (step.name, step.what) == ("ibay-base", "skipped")
    assert (done.failures(), outcome_of(done).skipped) == ([], 1)
    well(synced(sqlite_engine, libvirtd))
    assert dumps(libvirtd)["ibay-base"] == fine


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([reference_row("vm", "left"), reference_row("left", "vm")], "include each other in a circle"),
        ([reference_row("vm", "gone")], "includes (no filter with id gone), which does not exist"),
    ],
)
def test_circles_and_references_to_nothing_are_refused_before_anything_is_touched(
    libvirtd: LibvirtServer, sqlite_engine: Engine, references: list[dict[str, Any]], message: str
) -> None:
    prepared(sqlite_engine, libvirtd)
    before = dumps(libvirtd)
    store(sqlite_engine, DIAMOND, [], references)
    with pytest.raises(PlanRefused) as caught:
        synced(sqlite_engine, libvirtd)
    assert message in str(caught.value) and "Vm (ibay-vm)" in str(caught.value)
    assert dumps(libvirtd) == before


def test_a_rule_that_cannot_be_rendered_fails_its_filter_alone_which_stays_as_it_was(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    prepared(sqlite_engine, libvirtd)
    before = dumps(libvirtd)
    changed = [
        RULES[0] | {"protocol": "quic"},
        RULES[1] | {"dst_port_start": 443},
    ]
    store(sqlite_engine, DIAMOND, changed, REFERENCES)
    done = synced(sqlite_engine, libvirtd)
    (failure,) = done.failures()
    assert failure.startswith("Base (ibay-base): rule drop (drop in quic): 'quic' is no protocol")
    assert set(actions(done)) == {"ibay-left", "ibay-right"}
    after = dumps(libvirtd)
    assert after["ibay-base"] == before["ibay-base"] and "dstportstart='443'" in after["ibay-left"]


def test_orphans_are_remembered_before_they_go(libvirtd: LibvirtServer, engine: Engine) -> None:
    prepared(engine, libvirtd)
    store(engine, [filter_row("other")])
    first = well(synced(engine, libvirtd, orphan_hours=1))
    assert first.planned.hosts["local"].removals == {}
    known = {row["internal_name"]: row for row in rows(engine, network_filter_orphans)}
    assert known.keys() == {"ibay-base", "ibay-left", "ibay-right", "ibay-vm"}
    assert known["ibay-vm"]["uuid"] == uuid_of("ibay-vm")
    assert known["ibay-vm"]["reason"].startswith("orphan, goes after ")
    second = well(synced(engine, libvirtd, orphan_hours=1))
    assert {row["internal_name"]: row for row in rows(engine, network_filter_orphans)} == known
    assert not second.planned.due
    done = well(synced(engine, libvirtd, orphan_hours=0))
    removed = [step.name for step in done.steps["local"]]
    assert removed == ["ibay-vm", "ibay-left", "ibay-right", "ibay-base"]
    assert (list(ours(libvirtd)), rows(engine, network_filter_orphans)) == (["ibay-other"], [])
    assert outcome_of(done).reasons["remove"] == 4


def test_an_orphan_that_is_wanted_again_is_forgotten(libvirtd: LibvirtServer, sqlite_engine: Engine) -> None:
    prepared(sqlite_engine, libvirtd)
    store(sqlite_engine, [filter_row("other")])
    well(synced(sqlite_engine, libvirtd))
    assert len(rows(sqlite_engine, network_filter_orphans)) == 4
    store(sqlite_engine, DIAMOND, RULES, REFERENCES)
    well(synced(sqlite_engine, libvirtd))
    assert [row["internal_name"] for row in rows(sqlite_engine, network_filter_orphans)] == ["ibay-other"]


def test_a_filter_written_into_the_database_since_the_plan_is_no_orphan(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    prepared(sqlite_engine, libvirtd)
    store(sqlite_engine, [filter_row("other")])
    back: Callable[[], None] = lambda: store(sqlite_engine, [filter_row("other"), *DIAMOND], RULES, REFERENCES)  # noqa: E731
    done = well(synced(sqlite_engine, libvirtd, orphan_hours=0, between=back))
    assert len(done.planned.hosts["local"].removals) == 4
    assert len(ours(libvirtd)) == 5


def test_an_empty_database_removes_nothing_even_when_it_is_emptied_during_a_sync(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    prepared(sqlite_engine, libvirtd)
    store(sqlite_engine, [filter_row("other")])
    well(synced(sqlite_engine, libvirtd, orphan_hours=0, between=lambda: store(sqlite_engine, [])))
    well(synced(sqlite_engine, libvirtd, orphan_hours=0))
    assert len(ours(libvirtd)) == 5


def test_names_and_uuids_that_clash_are_handled_without_undefining_anything(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    """Libvirt refuses a known name under another UUID, and a known UUID under another name."""
    define(libvirtd, f"<filter name='ibay-a'><uuid>{uuid_of('by hand')}</uuid></filter>")
    define(libvirtd, f"<filter name='theirs'><uuid>{uuid_of('ibay-b')}</uuid></filter>")
    store(sqlite_engine, [filter_row("a"), filter_row("b")], [rule_row("a"), rule_row("b")])
    done = well(synced(sqlite_engine, libvirtd))
    assert actions(done) == {"ibay-a": "redefine", "ibay-b": "define"}
    found = dumps(libvirtd)
    assert uuid_of("by hand") in found["ibay-a"] and uuid_of("ibay-b") in found["theirs"]
    assert is_what_is_wanted(sqlite_engine, libvirtd)
    again = well(synced(sqlite_engine, libvirtd))
    assert (actions(again), again.planned.due) == ({}, False)


def test_a_renamed_filter_is_defined_under_its_new_name_before_the_old_one_goes(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    store(sqlite_engine, [filter_row("old")], [rule_row("old")])
    well(synced(sqlite_engine, libvirtd))
    store(sqlite_engine, [filter_row("old", internal_name="ibay-new")], [rule_row("old")])
    done = well(synced(sqlite_engine, libvirtd, orphan_hours=0))
    assert actions(done) == {"ibay-new": "define", "ibay-old": "remove"}
    assert list(ours(libvirtd)) == ["ibay-new"]


def test_libvirt_forgets_a_priority_of_zero_when_it_starts_again_which_is_why_it_is_refused(
    libvirtd: LibvirtServer,
) -> None:
    define(libvirtd, "<filter name='ibay-zero' chain='arp' priority='0'/>")
    assert parse(dumps(libvirtd)["ibay-zero"]).priority == 0
    with libvirtd.down():
        pass
    assert parse(dumps(libvirtd)["ibay-zero"]).priority == -500


def test_a_second_look_that_finds_a_difference_fails_the_run_with_it(
    libvirtd: LibvirtServer, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program of the host puts its own version back each time."""
    prepared(sqlite_engine, libvirtd)
    theirs = dumps(libvirtd)["ibay-base"].replace("'900'", "'901'")
    define(libvirtd, theirs)
    changed = sync._changed

    def fought(*arguments: Any) -> Any:
        answers = changed(*arguments)
        define(libvirtd, theirs)
        return answers

    monkeypatch.setattr(sync, "_changed", fought)
    done = synced(sqlite_engine, libvirtd)
    assert done.failures() == [
        "local: a second look finds ibay-base: 2 rules missing, 2 rules too many",
    ]


MANY = [filter_row(f"many-{number:03}") for number in range(300)]


def many_rules(port: int) -> list[dict[str, Any]]:
    return [rule_row(row["id"], f"r-{row['id']}", protocol="tcp", dst_port_start=port) for row in MANY]


def test_a_daemon_that_is_killed_in_the_middle_leaves_every_filter_whole_and_the_next_sync_ends_the_work(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    store(sqlite_engine, MANY, many_rules(80))
    well(synced(sqlite_engine, libvirtd))
    store(sqlite_engine, MANY, many_rules(443))

    def kill() -> None:
        killer = threading.Thread(target=kill_in_the_middle)
        killer.start()
        threads.append(killer)

    def kill_in_the_middle() -> None:
        wait_until_changed(libvirtd, 50)
        libvirtd.kill()

    threads: list[threading.Thread] = []
    done = synced(sqlite_engine, libvirtd, between=kill)
    threads[0].join()
    libvirtd.start()
    (failure,) = done.failures()
    assert failure.startswith("local: ") and ("the connection broke" in failure or "nothing answers" in failure)
    ports = [parse(xml).rules[0].value("dstportstart") for xml in ours(libvirtd).values()]
    assert set(ports) == {"80", "443"} and len(ports) == 300
    assert sum(step.what == "done" for step in done.steps["local"]) in range(
        ports.count("443") - 1, ports.count("443") + 1
    )
    assert all(len(parse(xml).rules) == 2 for xml in ours(libvirtd).values())
    well(synced(sqlite_engine, libvirtd))
    assert is_what_is_wanted(sqlite_engine, libvirtd)


def wait_until_changed(server: LibvirtServer, number: int) -> None:
    """Wait until so many filters are new."""
    folder = server.folder / "etc" / "nwfilter"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if sum("'443'" in path.read_text() for path in folder.glob("ibay-many-0[0-9][0-9].xml")) >= number:
            return
    raise TimeoutError("nothing is defined")


def test_a_host_that_hangs_in_the_middle_is_given_up_and_told_with_what_was_done(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    store(sqlite_engine, MANY, many_rules(443))
    stopper = threading.Thread(target=lambda: (wait_until_changed(libvirtd, 20), libvirtd.signal(signal.SIGSTOP)))
    try:
        done = synced(sqlite_engine, libvirtd, between=stopper.start, apply_seconds=4)
    finally:
        stopper.join()
        libvirtd.signal(signal.SIGCONT)
    (failure,) = done.failures()
    assert failure.startswith("local: ") and "no answer within 4 s" in failure
    assert "NETWORK_FILTER_APPLY_SECONDS" in failure
    count = len(done.steps["local"])
    assert 20 <= count < 300 and outcome_of(done).changed == count
    wait_until(lambda: len(ours(libvirtd)) in {count, count + 1}, 10, "the daemon")
    well(synced(sqlite_engine, libvirtd))
    assert is_what_is_wanted(sqlite_engine, libvirtd)


def test_a_host_that_cannot_be_reached_is_told_and_the_others_are_synced(
    libvirtd: LibvirtServer, engine: Engine
) -> None:
    """It counts neither as empty nor as in sync."""
    bad = f"qemu+unix:///system?socket={libvirtd.folder}/nothing"
    hosts = [{"id": "bad", "libvirt_uri": bad}, {"id": "good", "libvirt_uri": libvirtd.uri}]
    insert_rows(engine, hypervisor_hosts, hosts)
    insert_rows(
        engine,
        network_filter_orphans,
        [{"host_id": "bad", "internal_name": "ibay-x", "first_seen_at": read_wanted(engine, PREFIX).now}],
    )
    store(engine, DIAMOND, RULES, REFERENCES)
    done = synced(engine, libvirtd)
    (failure,) = done.failures()
    assert failure.startswith("bad: ") and "nothing answers" in failure
    assert (set(done.planned.hosts), len(ours(libvirtd))) == ({"good"}, 4)
    assert [row["host_id"] for row in rows(engine, network_filter_orphans)] == ["bad"]
    assert synced(engine, libvirtd).planned.due


def test_a_host_whose_driver_knows_no_filters_is_left_alone(sqlite_engine: Engine) -> None:
    store(sqlite_engine, DIAMOND, RULES, REFERENCES)
    done = well(synced(sqlite_engine, "test:///default"))
    assert done.planned.hosts["local"].kept == {"(all)": "libvirt's driver of this host knows no network filters"}
    assert (done.steps, done.planned.due) == ({}, False)


def test_a_transient_domain_that_ends_while_it_is_looked_at_is_no_trouble(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    store(sqlite_engine, DIAMOND, RULES, REFERENCES)
    with libvirtd.connection() as connection:
        well(synced(sqlite_engine, libvirtd))
        interface = interface_xml("52:54:00:00:00:07", "tap7", "ibay-vm", [("IP", "10.0.0.7")])
        domain = connection.createXML(guest_xml("short", interfaces=[interface]), 0)
        found = sync.look(firewall(sqlite_engine, libvirtd)).looks["local"]
        (guest,) = found.guests
        assert (guest.running, guest.interfaces) == (True, guest.planned)
        assert found.bindings == {"tap7": "ibay-vm"}
        domain.destroy()
    assert sync.look(firewall(sqlite_engine, libvirtd)).looks["local"].guests == ()
