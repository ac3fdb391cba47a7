"""What node devices and domains say in their XML."""

from __future__ import annotations

import pytest

from ops_pipeline.hypervisor.graphics.devices import DeviceUnreadable, Mdev, MdevType, read_mdev, read_pci_device
from ops_pipeline.hypervisor.graphics.hostdevs import MDEV, PCI, DomainUnreadable, Use, uses_of
from ops_pipeline_tests.hypervisor.graphics.samples import (
    A,
    B,
    address_xml,
    hostdev_mdev_xml,
    hostdev_xml,
    mdev_xml,
    pci_xml,
)

UUID = "c2177883-f1bb-47f0-914d-32a22e3a8804"


def domain_xml(*devices: str) -> str:
    return f"<domain type='kvm'><name>web</name><devices>{''.join(devices)}</devices></domain>"


def test_everything_that_libvirt_tells_about_a_gpu_is_read() -> None:
    types = (
        "<capability type='mdev_types'><type id='nvidia-468'><name>GRID A100-4C</name><deviceAPI>vfio-pci</deviceAPI>"
        "<availableInstances>10</availableInstances></type></capability>"
    )
    one = read_pci_device(
        pci_xml(
            "0000:b4:00.0",
            "030200",
            driver="vfio-pci",
            group=12,
            members=["0000:b4:00.1"],
            numa=1,
            serial="1320921",
            virtual=["0000:b4:00.4", "0000:b4:00.5"],
            extra=types,
        )
    )
    assert (one.address, one.pci_class, one.is_gpu) == ("0000:b4:00.0", "030200", True)
    assert (one.vendor_id, one.vendor, one.model_id, one.model) == (
        "10de",
        "NVIDIA Corporation",
        "20b5",
        "GA100 [A100 PCIe 80GB]",
    )
    assert (one.driver, one.iommu_group, one.numa_node, one.serial) == ("vfio-pci", 12, 1, "1320921")
    assert one.group_members == ("0000:b4:00.0", "0000:b4:00.1")
    assert one.virtual_functions == ("0000:b4:00.4", "0000:b4:00.5")
    assert one.mdev_types == (MdevType("nvidia-468", "GRID A100-4C", 10),)


def test_a_virtual_function_names_its_physical_one() -> None:
    assert read_pci_device(pci_xml("0000:b4:00.4", parent="0000:b4:00.0")).physical_function == "0000:b4:00.0"


@pytest.mark.parametrize(
    ("pci_class", "gpu"),
    [
        ("030000", True),
        ("030001", True),
        ("030200", True),
        ("038000", True),
        ("030100", False),
        ("040300", False),
        ("0c0330", False),
        ("060400", False),
        ("020000", False),
    ],
)
def test_vga_3d_and_display_controllers_are_gpus_and_their_sound_is_none(pci_class: str, *, gpu: bool) -> None:
    assert read_pci_device(pci_xml(A, pci_class)).is_gpu is gpu


def test_a_device_that_tells_only_its_address_and_class_is_read() -> None:
    bare = (
        "<device><name>pci_0000_01_00_0</name><capability type='pci'><class>0x030000</class><domain>0</domain>"
        "<bus>1</bus><slot>0</slot><function>0</function></capability></device>"
    )
    one = read_pci_device(bare)
    assert (one.address, one.vendor_id, one.model, one.iommu_group, one.numa_node) == (A, "", "", None, None)


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("<device", "its XML cannot be read"),
        ("<device><name>computer</name></device>", "no capability 'pci'"),
        (pci_xml(A).replace("<class>0x030000</class>", ""), "a number is missing"),
        (pci_xml(A).replace("<bus>1</bus>", "<bus>one</bus>"), "invalid literal"),
        (pci_xml(A).replace("<bus>1</bus>", "<bus>256</bus>"), "are no PCI address"),
        (pci_xml(A).replace("number='1'", "number='x'"), "invalid literal"),
    ],
)
def test_a_device_that_cannot_be_read_says_why(xml: str, why: str) -> None:
    with pytest.raises(DeviceUnreadable, match=why):
        read_pci_device(xml)


def test_a_mediated_device_tells_what_it_is_a_part_of() -> None:
    assert read_mdev(mdev_xml(UUID.upper(), B)) == Mdev(UUID, B, "nvidia-468")
    newer = mdev_xml(UUID, B).replace("</uuid>", "</uuid><parent_addr>0000:03:00.0</parent_addr>")
    assert read_mdev(newer).parent == "0000:03:00.0"


@pytest.mark.parametrize(
    "xml",
    [
        "<device",
        mdev_xml("", B),
        mdev_xml(UUID, B).replace("pci_0000_02_00_0", "computer"),
        mdev_xml(UUID, B).replace("</uuid>", "</uuid><parent_addr>css_0_0_0052</parent_addr>"),
    ],
)
def test_a_mediated_device_of_nothing_known_is_unreadable(xml: str) -> None:
    with pytest.raises(DeviceUnreadable):
        read_mdev(xml)


def test_running_and_defined_xml_are_told_apart() -> None:
    """A card plugged in by hand vanishes at the next start; one added to the definition is not there yet."""
    running = domain_xml(hostdev_xml(A), hostdev_mdev_xml(UUID.upper()))
    defined = domain_xml(hostdev_xml(B, managed=False), hostdev_mdev_xml(UUID))
    assert uses_of(running, defined) == (
        Use(MDEV, UUID, managed=False, running=True, defined=True),
        Use(PCI, A, managed=True, running=True, defined=False),
        Use(PCI, B, managed=False, running=False, defined=True),
    )
    assert uses_of(None, defined)[1].running is False
    assert uses_of(running, None)[1].defined is False
    assert uses_of(None, None) == ()


def test_a_network_interface_that_is_a_device_of_the_host_counts_and_other_devices_do_not() -> None:
    source = address_xml(B).replace("<address", "<address type='pci'")
    nic = f"<interface type='hostdev' managed='yes'><source>{source}</source></interface>"
    usb = "<hostdev type='usb'><source><vendor id='0x1'/><address bus='1' device='2'/></source></hostdev>"
    scsi = "<hostdev type='scsi'><source><adapter name='scsi_host0'/><address bus='0' target='0'/></source></hostdev>"
    tap = "<interface type='ethernet'><target dev='tap0'/></interface>"
    storage = "<hostdev mode='capabilities' type='storage'><source><block>/dev/sdb</block></source></hostdev>"
    assert [use.target for use in uses_of(domain_xml(nic, usb, scsi, tap, storage), None)] == [B]


def test_decimal_addresses_and_those_without_domain_are_read() -> None:
    decimal = (
        "<hostdev mode='subsystem' type='pci'><source><address bus='180' slot='0' function='0'/></source></hostdev>"
    )
    assert [use.target for use in uses_of(domain_xml(decimal), None)] == ["0000:b4:00.0"]


@pytest.mark.parametrize("xml", ["<domain><hostdev", domain_xml(hostdev_xml(A).replace("0x01", "one"))])
def test_a_domain_that_cannot_be_read_says_why(xml: str) -> None:
    with pytest.raises(DomainUnreadable, match=r"its XML cannot be read|a host device of it"):
        uses_of(xml, None)


def test_a_domain_without_devices_uses_nothing() -> None:
    assert uses_of("<domain><name>hostdev</name></domain>", domain_xml()) == ()
