"""Whether machines carry the filters that they should."""

from __future__ import annotations

from typing import Any

import pytest

from ops_pipeline.hypervisor.filters.carried import Link, uncarried
from ops_pipeline.hypervisor.filters.facts import FilterLook, Guest, Interface

MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"


def interface(name: str = "ibay-web", mac: str = MAC, kind: str = "bridge", device: str = "vnet0") -> Interface:
    return Interface(mac, kind, device, name)


def link(**fields: Any) -> Link:
    known = {"host_id": "local", "machine": "Web", "domain": "vm-1", "uuid": "", "filter": "ibay-web"}
    return Link(**(known | fields))


def told(*interfaces: Interface, links: list[Link] | None = None, bound: str = "ibay-web", **guest: Any) -> str:
    fields = {"running": True, "interfaces": interfaces, "planned": interfaces} | guest
    look = FilterLook(guests=(Guest("vm-1", "uuid-1", **fields),), bindings={"vnet0": bound} if bound else {})
    return uncarried(look, links or [link()]).get("Web", "")


def test_a_machine_that_carries_its_filter_is_fine() -> None:
    assert told(interface()) == ""
    assert told(interface(device=""), running=False, bound="") == ""
    assert told(interface(), links=[link(mac=MAC.upper())]) == ""


@pytest.mark.parametrize(
    ("interfaces", "fields", "text"),
    [
        ([interface("")], {}, f"{MAC} carries no filter instead of ibay-web"),
        ([interface("clean-traffic")], {}, f"{MAC} carries clean-traffic instead of ibay-web"),
        ([interface("")], {"running": False}, f"{MAC} carries no filter instead of ibay-web"),
        ([interface()], {"bound": ""}, f"{MAC} names ibay-web, but no filter is bound to vnet0"),
        ([interface()], {"bound": "ibay-old"}, f"{MAC} names ibay-web, but ibay-old is bound to vnet0"),
        ([interface(kind="user")], {}, "libvirt applies none to interfaces of type user"),
        ([interface()], {"links": [link(filter="")]}, "it should carry a filter that the database does not have"),
        ([interface()], {"links": [link(mac=OTHER)]}, f"it has no interface {OTHER}"),
        ([interface()], {"planned": (interface(""),)}, f"{MAC} will carry no filter after its next start"),
        (
            [interface()],
            {"links": [link(), link(filter="ibay-b")]},
            f"{MAC} should carry ibay-b and ibay-web, but libvirt takes one filter only",
        ),
    ],
)
def test_what_a_machine_lacks_is_told(interfaces: list[Interface], fields: dict[str, Any], text: str) -> None:
    assert text in told(*interfaces, **fields)


def test_a_link_to_one_interface_says_nothing_about_the_others() -> None:
    assert told(interface(), interface("", OTHER, device="vnet1"), links=[link(mac=MAC)]) == ""


def test_the_filter_of_one_interface_wins_over_that_of_all() -> None:
    both = [link(), link(mac=OTHER, filter="ibay-special")]
    text = told(interface(), interface("ibay-web", OTHER, device="vnet1"), links=both)
    assert text == f"{OTHER} carries ibay-web instead of ibay-special"


def test_a_machine_of_its_own_filter_needs_none_of_its_department() -> None:
    department = link(filter="ibay-department", department=True)
    assert told(interface(), links=[link(), department]) == ""
    assert "instead of ibay-department" in told(interface(), links=[department])


def test_machines_are_found_by_uuid_first_and_those_that_are_not_there_are_no_concern() -> None:
    assert told(interface(""), links=[link(domain="renamed", uuid="UUID-1")])
    assert told(interface(""), links=[link(domain="elsewhere")]) == ""


def test_machines_of_a_host_that_knows_no_filters_are_open_and_reported() -> None:
    """A libvirtd without its part for filters was green, with every machine open."""
    words = "it should carry ibay-web, but libvirt's driver of its host knows no network filters"
    assert uncarried(FilterLook(supported=False), [link()]) == {"Web": words}
    assert uncarried(FilterLook(supported=False), []) == {}


def test_the_machines_of_the_test_driver_are_not_judged() -> None:
    assert uncarried(FilterLook(supported=False, pretends=True), [link()]) == {}
