"""Syncs while guests run, on a real libvirtd: what is enforced in the kernel, and what machines carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from ops_pipeline.hypervisor.tables import machines, network_filter_departments, network_filter_machines
from ops_pipeline_tests.hypervisor.filters.packet_rules import frames_towards, rules_towards, watched
from ops_pipeline_tests.hypervisor.filters.samples import filter_row, insert_rows, reference_row, rule_row, store
from ops_pipeline_tests.hypervisor.filters.syncs import firewall, synced
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer, interface_xml

MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")
FILTERS = [filter_row(name) for name in ("base", "department", "vm-1", "vm-2")]
REFERENCES = [
    reference_row("vm-1", "department"),
    reference_row("vm-2", "department"),
    reference_row("department", "base"),
]


def rules(port: int, **more: Any) -> list[dict[str, Any]]:
    """Web on a port, everything else dropped, over both versions of IP; and no LLDP frames."""
    return [
        rule_row("base", "drop", priority=900, direction="inout"),
        rule_row("base", "lldp", protocol="mac", priority=100, direction="inout", attributes={"protocolid": "0x88cc"}),
        rule_row("department", "web", action="accept", protocol="tcp", dst_port_start=port, **more),
    ]


def start(server: LibvirtServer, number: int, filter_name: str | None = None, **more: Any) -> None:
    name = f"ibay-vm-{number}" if filter_name is None else filter_name
    interface = interface_xml(MACS[number - 1], f"tap{number}", name)
    server.define(f"guest-{number}", interfaces=[interface], **more)


def test_changes_of_a_departments_filter_reach_every_machine_over_both_versions_of_ip_whole_or_not_at_all(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    store(sqlite_engine, FILTERS, rules(80), REFERENCES)
    assert synced(sqlite_engine, libvirtd).failures() == []
    for number in (1, 2):
        start(libvirtd, number)
    store(sqlite_engine, FILTERS, rules(443, state=["NEW"]), REFERENCES)
    done = synced(sqlite_engine, libvirtd)
    assert [change.key for change in done.planned.changes] == ["local: ibay-department"]
    assert done.failures() == []
    for number in (1, 2):
        for family in ("ipv4", "ipv6"):
            found = rules_towards(libvirtd, f"tap{number}", family)
            assert "--dport 443" in found[0] and "--ctstate NEW" in found[0] and found[0].endswith("-j ACCEPT")
            assert found[1:] == ["-j DROP"]
        assert frames_towards(libvirtd, f"tap{number}") == ["-p LLDP -j DROP"]
    # The variable has no value, which libvirt finds only when it makes the rules of a machine that runs.
    before = rules_towards(libvirtd, "tap1")
    store(sqlite_engine, [*FILTERS, filter_row("new")], rules(80, src_ip="$NOWHERE"), REFERENCES)
    done = synced(sqlite_engine, libvirtd)
    (failure,) = done.failures()
    assert failure.startswith("local: ibay-department: ") and "NOWHERE" in failure
    assert rules_towards(libvirtd, "tap1") == before
    with libvirtd.connection() as connection:
        assert connection.nwfilterLookupByName("ibay-new")
        assert "dstportstart='443'" in connection.nwfilterLookupByName("ibay-department").XMLDesc()
    # A rule that is deleted goes: a flush that only added left it in the kernel.
    store(sqlite_engine, FILTERS, rules(80)[:2], REFERENCES)
    assert synced(sqlite_engine, libvirtd).failures() == []
    assert rules_towards(libvirtd, "tap1") == rules_towards(libvirtd, "tap1", "ipv6") == ["-j DROP"]


def test_at_no_moment_of_many_syncs_is_a_machine_without_its_filter(
    libvirtd: LibvirtServer, sqlite_engine: Engine, tmp_path: Path
) -> None:
    """To undefine and define again left every machine open in between, as the watcher sees at the end."""
    store(sqlite_engine, FILTERS, rules(80), REFERENCES)
    synced(sqlite_engine, libvirtd)
    start(libvirtd, 1)
    with watched(libvirtd, "tap1", tmp_path) as samples:
        own = rule_row("vm-1", "own", protocol="udp", dst_port_start=80)
        for port, number in ((81, 2), (82, 1)):
            store(sqlite_engine, FILTERS, [*rules(port), own], REFERENCES)
            done = synced(sqlite_engine, libvirtd)
            assert (done.failures(), len(done.planned.changes)) == ([], number)
    for kind, rule in (("ipv4", "-j DROP"), ("ipv6", "-j DROP"), ("frames", "-p LLDP -j DROP")):
        assert samples.without(kind, rule) == []
    assert len(samples.seen) > 40
    assert len(samples.distinct("ipv4")) >= 3
    (tmp_path / "again").mkdir()
    with watched(libvirtd, "tap1", tmp_path / "again") as samples, libvirtd.connection() as connection:
        binding = connection.nwfilterBindingLookupByPortDev("tap1")
        xml = binding.XMLDesc()
        binding.delete()
        connection.nwfilterBindingCreateXML(xml)
    for kind, rule in (("ipv4", "-j DROP"), ("ipv6", "-j DROP"), ("frames", "-p LLDP -j DROP")):
        assert samples.without(kind, rule)
    assert "-j DROP" in rules_towards(libvirtd, "tap1")


def test_an_orphan_is_kept_while_a_machine_runs_with_it_or_is_off_and_goes_afterwards(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    store(sqlite_engine, FILTERS, rules(80), REFERENCES)
    synced(sqlite_engine, libvirtd)
    start(libvirtd, 1)
    start(libvirtd, 2, start=False)
    store(sqlite_engine, [filter_row("other")])
    done = synced(sqlite_engine, libvirtd, orphan_hours=0)
    kept = done.planned.hosts["local"].kept
    assert kept == {
        "ibay-vm-1": "orphan, kept: it is bound to tap1",
        "ibay-vm-2": "orphan, kept: an interface of guest-2, which is off, names it",
        "ibay-department": "orphan, kept: ibay-vm-1 includes it",
        "ibay-base": "orphan, kept: ibay-department includes it",
    }
    with libvirtd.connection() as connection:
        for number in (1, 2):
            domain = connection.lookupByName(f"guest-{number}")
            if domain.isActive():
                domain.destroy()
            domain.undefine()
    done = synced(sqlite_engine, libvirtd, orphan_hours=0)
    assert list(done.planned.hosts["local"].removals) == ["ibay-vm-1", "ibay-vm-2", "ibay-department", "ibay-base"]
    assert done.failures() == []
    with libvirtd.connection() as connection:
        assert [one.name() for one in connection.listAllNWFilters() if one.name().startswith("ibay-")] == ["ibay-other"]


def test_an_orphan_that_a_machine_has_come_to_use_since_the_look_is_not_removed(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    store(sqlite_engine, FILTERS, rules(80), REFERENCES)
    synced(sqlite_engine, libvirtd)
    store(sqlite_engine, [filter_row("other")])
    firewall_ = firewall(sqlite_engine, libvirtd, orphan_hours=0)
    done = synced(sqlite_engine, libvirtd, using=firewall_, between=lambda: start(libvirtd, 2, start=False))
    told = {step.name: step.reason for step in done.steps["local"] if step.reason}
    assert told["ibay-vm-2"] == "an interface of guest-2, which is off, names it"
    assert told["ibay-department"] == "ibay-vm-2 includes it"
    assert done.failures() == []
    with libvirtd.connection() as connection:
        connection.lookupByName("guest-2").create()
    assert rules_towards(libvirtd, "tap2")[-1] == "-j DROP"


def machine(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"m{number}", "internal_name": f"guest-{number}", "name": f"Machine {number}"} | fields


def test_machines_whose_interfaces_lack_their_filter_are_told(libvirtd: LibvirtServer, sqlite_engine: Engine) -> None:
    store(sqlite_engine, FILTERS, rules(80), REFERENCES)
    insert_rows(sqlite_engine, machines, [machine(1), machine(2, department_id="sales")])
    insert_rows(sqlite_engine, network_filter_machines, [{"machine_id": "m1", "filter_id": "vm-1", "mac": MACS[0]}])
    insert_rows(sqlite_engine, network_filter_departments, [{"department_id": "sales", "filter_id": "department"}])
    synced(sqlite_engine, libvirtd)
    start(libvirtd, 1)
    start(libvirtd, 2, filter_name="")
    lacking = synced(sqlite_engine, libvirtd).planned.uncarried["local"]
    assert lacking == {"Machine 2 (guest-2)": f"{MACS[1]} carries no filter instead of ibay-department"}
    libvirtd.run("virsh", "-c", libvirtd.uri, "nwfilter-binding-delete", "tap1")
    done = synced(sqlite_engine, libvirtd)
    assert done.planned.uncarried["local"]["Machine 1 (guest-1)"] == (
        f"{MACS[0]} names ibay-vm-1, but no filter is bound to tap1"
    )
    assert (done.failures(), done.planned.due) == ([], True)
