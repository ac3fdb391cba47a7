"""The private libvirtd is real, and wholly private: the other tests of virtualisation stand on it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import libvirt

from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer, TestDomain, interface_xml, test_node_xml


def states(connection: libvirt.virConnect) -> dict[str, int]:
    return {domain.name(): domain.state()[0] for domain in connection.listAllDomains()}


def test_a_guest_runs_behind_filters_that_only_its_own_network_has(libvirtd: LibvirtServer) -> None:
    interface = interface_xml("52:54:00:00:00:01", "guest1", "clean-traffic", [("IP", "10.0.0.5")])
    libvirtd.define("guest", interfaces=[interface])
    assert "guest1" in libvirtd.run("ebtables", "-t", "nat", "-L")
    outside = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert "guest1" not in outside


def test_the_test_driver_loads_a_fleet_from_one_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.xml"
    path.write_text(test_node_xml([TestDomain("on"), TestDomain("off", 5), TestDomain("waits", 3)]))
    connection = libvirt.open(f"test://{path}")
    assert states(connection) == {"on": 1, "off": 5, "waits": 3}
    connection.close()
