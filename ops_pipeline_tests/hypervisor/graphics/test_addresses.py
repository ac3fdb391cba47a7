"""PCI addresses: every spelling of one device is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops_pipeline.hypervisor.graphics.addresses import canonical, from_node_name, from_parts, slot_of
from ops_pipeline_tests.usage.calls import examples

PARTS = st.tuples(
    st.sampled_from([0, 1, 0xFFFF, 0x10000]), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7)
)


@pytest.mark.parametrize("text", ["00000000:B4:00.0", "0000:b4:00.0", "b4:00.0", " B4:00.0\n", "0000:B4:0.0"])
def test_the_spellings_of_nvidia_smi_lspci_and_sysfs_are_one_device(text: str) -> None:
    assert canonical(text) == "0000:b4:00.0"


@given(PARTS)
@examples(100)
def test_every_spelling_of_the_same_parts_is_one_address(parts: tuple[int, int, int, int]) -> None:
    domain, bus, slot, function = parts
    address = from_parts(*parts)
    spellings = [
        f"{domain:08X}:{bus:02X}:{slot:02X}.{function}",
        f"{domain:04x}:{bus:02x}:{slot:02x}.{function}",
        f"{domain:x}:{bus:x}:{slot:x}.{function}",
        address,
    ]
    if domain == 0:
        spellings.append(f"{bus:02x}:{slot:02x}.{function}")
    assert {canonical(text) for text in spellings} == {address}
    assert from_node_name("pci_" + address.replace(":", "_").replace(".", "_")) == address


@given(PARTS, PARTS)
@examples(100)
def test_two_devices_never_have_one_address(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> None:
    assert (from_parts(*one) == from_parts(*other)) is (one == other)


@pytest.mark.parametrize(
    "text",
    ["", "b4:00", "b4:00.8", "b4:20.0", "1b4:00.0", "0000:b4:00.0.0", "gpu0", "0000-b4-00.0", "100000000:b4:00.0"],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"write for example 0000:b4:00\.0|are no PCI address"):
        canonical(text)


@pytest.mark.parametrize("parts", [(-1, 0, 0, 0), (0, 256, 0, 0), (0, 0, 32, 0), (0, 0, 0, 8)])
def test_numbers_beyond_what_pci_has_are_refused(parts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="are no PCI address"):
        from_parts(*parts)


@pytest.mark.parametrize("name", ["computer", "net_eth0_52_54", "pci_0000_01_00", "mdev_c2177883_f1bb"])
def test_names_of_other_node_devices_tell_no_address(name: str) -> None:
    assert from_node_name(name) is None


def test_functions_of_one_card_share_a_slot() -> None:
    assert slot_of("0000:01:00.0") == slot_of("0000:01:00.1") != slot_of("0000:01:01.0")
