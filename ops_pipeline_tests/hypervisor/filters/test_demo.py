"""The filters of the demo are such as libvirt takes."""

from __future__ import annotations

from sqlalchemy import Engine

from ops_pipeline.database.engine import writing
from ops_pipeline.hypervisor.filters.demo import write_demo_filters
from ops_pipeline.hypervisor.filters.store import read_wanted
from ops_pipeline.hypervisor.tables import machines
from ops_pipeline_tests.hypervisor.filters.packet_rules import rules_towards
from ops_pipeline_tests.hypervisor.filters.samples import PREFIX, insert_rows
from ops_pipeline_tests.hypervisor.filters.syncs import synced
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer, interface_xml


def test_the_filters_of_the_demo_can_be_defined_and_a_machine_starts_with_one(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    insert_rows(sqlite_engine, machines, [{"id": "m", "internal_name": "shop", "name": "Shop", "department_id": "web"}])
    with writing(sqlite_engine) as connection:
        assert write_demo_filters(connection, ["web", "db"]) == 8
    done = synced(sqlite_engine, libvirtd)
    assert (done.failures(), done.planned.wider, len(done.planned.changes)) == ([], {}, 8)
    labels = read_wanted(sqlite_engine, PREFIX).desired.labels
    (name,) = [internal for internal, label in labels.items() if label == "Department web"]
    libvirtd.define("shop", interfaces=[interface_xml("52:54:00:00:00:01", "tap1", name)])
    assert synced(sqlite_engine, libvirtd).planned.uncarried == {"local": {}}
    for family in ("ipv4", "ipv6"):
        found = rules_towards(libvirtd, "tap1", family)
        assert "--dport 22" in " ".join(found) and found[-1] == "-j DROP"
