"""The inventory: states of GPUs, what vanishes, what moves, what is held until it is released."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ops_pipeline.hypervisor.graphics.devices import PciDevice
from ops_pipeline.hypervisor.graphics.facts import ASSIGNED, AVAILABLE, MISSING, UNUSABLE
from ops_pipeline.hypervisor.graphics.nvml import Child
from ops_pipeline_tests.hypervisor.graphics.samples import (
    GAP,
    POLICY,
    A,
    B,
    C,
    domain,
    found,
    given,
    gone,
    gpu,
    known,
    machine,
    plan,
    states,
    texts,
)
from ops_pipeline_tests.usage.calls import NOON

SOUND = "0000:01:00.1"


def test_gpus_that_nobody_has_are_available() -> None:
    made = plan(found([gpu(A), gpu(B)]))
    assert states(made) == {A: AVAILABLE, B: AVAILABLE}
    assert [change.action for change in made.changes] == ["add", "add"]
    assert (made.scanned, made.conflicts, made.notes) == (2, (), ())


def test_what_is_known_and_unchanged_is_not_written() -> None:
    look = found([gpu(A), gpu(B)], domain("web", B))
    made = plan(look, [known(gpu(A)), known(gpu(B), ASSIGNED, "of web")], [given("web", B)], [machine("web")])
    assert (made.changes, made.assignments, made.conflicts) == ((), (), ())


@pytest.mark.parametrize("active", [True, False])
def test_a_gpu_in_a_domains_xml_is_assigned_whether_it_runs_or_not(*, active: bool) -> None:
    made = plan(found([gpu()], domain("web", A, active=active)), [], [given("web")], [machine("web")])
    (change,) = made.changes
    assert change.after is not None
    assert (change.after.state, change.after.reason) == (ASSIGNED, "of web")
    assert made.conflicts == ()


def test_a_gpu_that_was_given_away_is_assigned_before_its_machine_is_defined() -> None:
    made = plan(found([gpu()]), [], [given("web")], [machine("web", "building")])
    assert states(made) == {A: ASSIGNED}
    assert made.conflicts == ()


def test_a_gpu_that_comes_free_is_available() -> None:
    made = plan(found([gpu()]), [known(gpu(), ASSIGNED, "of web")])
    assert states(made) == {A: AVAILABLE}
    assert made.changes[0].reason == "no longer assigned"


def test_the_console_of_the_host_is_not_handed_out_unless_that_is_allowed() -> None:
    look = found([gpu(boot_vga=True)])
    (change,) = plan(look).changes
    assert change.after is not None
    assert (change.after.state, change.after.reason) == (UNUSABLE, "the host's console uses it (boot VGA)")
    assert states(plan(look, policy=replace(POLICY, allow_boot_vga=True))) == {A: AVAILABLE}


def test_without_an_iommu_nothing_can_be_handed_out() -> None:
    (change,) = plan(found([gpu(iommu_group=None)])).changes
    assert change.after is not None
    assert (change.after.state, "IOMMU is off" in change.after.reason) == (UNUSABLE, True)


def test_a_gpu_divided_by_its_host_is_not_handed_out_whole() -> None:
    divided = gpu(children=(Child("mig", "MIG-1", "1g.10gb"), Child("mig", "MIG-2", "1g.10gb")))
    (change,) = plan(found([divided])).changes
    assert change.after is not None and change.after.reason == "the host has divided it into 2 MIG instances"


@pytest.mark.parametrize(
    ("address", "pci_class", "driver", "usable"),
    [
        ("0000:03:00.0", "010802", "nvme", False),
        ("0000:03:00.0", "010802", "", True),
        ("0000:03:00.0", "020000", "vfio-pci", True),
        ("0000:03:00.0", "020000", "mlx5_vfio_pci", True),
        ("0000:03:00.0", "020000", "pci-stub", True),
        (SOUND, "040300", "snd_hda_intel", True),
        ("0000:03:00.0", "030000", "nouveau", True),
    ],
)
def test_a_device_of_the_group_that_the_host_needs_makes_a_gpu_unusable(
    address: str, pci_class: str, driver: str, *, usable: bool
) -> None:
    """The whole IOMMU group goes, or nothing: handing it out took the host its disk."""
    one = gpu(iommu_members=(address,))
    (change,) = plan(found([one], others=[PciDevice(address, pci_class, driver=driver)])).changes
    assert change.after is not None
    assert (change.after.state == AVAILABLE) is usable
    assert usable or change.after.reason == (
        f"its IOMMU group 1 holds {address} (class {pci_class}, driver {driver}), too"
    )


def test_a_bridge_of_the_group_may_stay_with_the_host() -> None:
    """The port above a card shares its group; it never gets in among the members."""
    assert states(plan(found([gpu(iommu_members=())], others=[PciDevice("0000:00:01.0", "060400", driver="pcieport")])))


def test_what_a_machine_has_of_the_unit_blocks_the_gpu() -> None:
    """With its sound alone in another machine the group cannot be handed out."""
    one = gpu(iommu_members=(SOUND,), functions=(SOUND,))
    (change,) = plan(found([one], domain("web", SOUND)), [], [], [machine("web")]).changes
    assert change.after is not None
    assert (change.after.state, change.after.reason) == (
        UNUSABLE,
        f"web has what belongs to its unit (IOMMU group 1), {SOUND}",
    )


def test_the_sound_of_a_card_goes_with_its_gpu() -> None:
    one = gpu(iommu_members=(SOUND,), functions=(SOUND,))
    made = plan(found([one], domain("web", A, SOUND)), [], [given("web")], [machine("web")])
    assert (states(made), made.conflicts) == ({A: ASSIGNED}, ())


VIRTUAL = "0000:01:00.4"


def parent_and_part() -> list[object]:
    return [gpu(children=(Child("vf", VIRTUAL),)), gpu(VIRTUAL, parent_address=A, iommu_group=40)]


def test_virtual_functions_in_use_block_handing_out_their_parent() -> None:
    look = found(parent_and_part(), domain("web", VIRTUAL))  # type: ignore[arg-type]
    made = plan(look, [], [given("web", VIRTUAL)], [machine("web")])
    assert states(made) == {A: UNUSABLE, VIRTUAL: ASSIGNED}
    assert made.changes[0].after is not None
    assert made.changes[0].after.reason == f"web has its virtual function {VIRTUAL}"
    assert made.conflicts == ()


def test_a_parent_in_use_blocks_its_virtual_functions() -> None:
    look = found(parent_and_part(), domain("web", A))  # type: ignore[arg-type]
    made = plan(look, [], [given("web")], [machine("web")])
    assert states(made) == {A: ASSIGNED, VIRTUAL: UNUSABLE}


def test_what_the_platform_gave_away_of_a_unit_blocks_the_rest_before_a_domain_has_it() -> None:
    """Between giving a virtual function away and defining its machine, the whole card was handed to another one."""
    look = found(parent_and_part())  # type: ignore[arg-type]
    web = [machine("web", "building")]
    assert states(plan(look, [], [given("web", VIRTUAL)], web)) == {A: UNUSABLE, VIRTUAL: ASSIGNED}
    made = plan(look, [], [given("web")], web)
    assert states(made) == {A: ASSIGNED, VIRTUAL: UNUSABLE}
    assert made.changes[1].after is not None
    assert made.changes[1].after.reason == f"web was given {A}, which belongs to its unit"
    pair = [gpu(A, iommu_group=7, iommu_members=(B,)), gpu(B, iommu_group=7, iommu_members=(A,))]
    assert states(plan(found(pair), [], [given("web", B)], web)) == {A: UNUSABLE, B: ASSIGNED}


def test_unused_virtual_functions_and_their_parent_are_both_available() -> None:
    assert states(plan(found(parent_and_part()))) == {A: AVAILABLE, VIRTUAL: AVAILABLE}  # type: ignore[arg-type]


# What is not there.


@pytest.mark.parametrize("others", [[], [gpu(C)]])
def test_a_scan_without_any_known_gpu_is_a_failed_one(others: list[object]) -> None:
    """A driver that hung showed no card, and every assignment was cleared; another host's URI showed other cards."""
    rows = [known(gpu(A)), known(gpu(B), ASSIGNED, "of web")]
    made = plan(found(others), rows, [given("web", B)], [machine("web", "off")])  # type: ignore[arg-type]
    assert (made.changes, made.assignments) == ((), ())
    assert f"none of the 2 known GPUs was found, and {len(others) or 'no'} other" in made.refused
    assert "accept_loss" in made.refused


def test_an_empty_scan_of_a_host_that_never_had_gpus_is_fine() -> None:
    assert plan(found([])).refused == ""


def test_an_operator_may_say_that_the_gpus_were_taken_out() -> None:
    rows = [known(gpu(A)), known(gpu(B))]
    made = plan(found([]), rows, accept_loss=True)
    assert (states(made), made.refused) == ({A: MISSING, B: MISSING}, "")
    # From then on the host is known to have none, and empty scans are good ones.
    assert plan(found([]), [gone(gpu(A)), gone(gpu(B))]).refused == ""


def test_a_gpu_that_vanishes_is_missing_at_first() -> None:
    made = plan(found([gpu(A)]), [known(gpu(A)), known(gpu(B))])
    (change,) = made.changes
    assert change.after is not None
    assert (change.address, change.after.state, change.after.missing_scans) == (B, MISSING, 1)
    assert change.after.counted_at == NOON


def test_a_missing_gpu_is_forgotten_after_enough_scans() -> None:
    steps = [(1, GAP, MISSING, 2), (2, GAP, "-", None), (2, GAP / 2, None, None)]
    for scans, ago, state, after in steps:
        made = plan(found([gpu(A)]), [known(gpu(A)), gone(gpu(B), scans, counted_at=NOON - ago)])
        assert states(made).get(B) == state
        if after is not None:
            (change,) = made.changes
            assert change.after is not None and change.after.missing_scans == after


def test_a_missing_gpu_that_someone_has_is_kept() -> None:
    rows = [known(gpu(A)), gone(gpu(B), 3)]
    given_away = plan(found([gpu(A)]), rows, [given("web", B)], [machine("web")])
    named = plan(found([gpu(A)], domain("web", B, active=False)), rows, [], [machine("web", "off")])
    assert (given_away.changes, named.changes) == ((), ())
    assert f"{B} it is missing, but web counts on it" in texts(given_away)
    assert texts(named) == [f"{B} it is missing, but web counts on it"]


def test_a_gpu_that_comes_back_is_as_it_was() -> None:
    made = plan(found([gpu(A), gpu(B)]), [known(gpu(A)), gone(gpu(B), 2)])
    (change,) = made.changes
    assert change.after is not None
    assert (change.after.state, change.after.missing_scans, change.after.counted_at) == (AVAILABLE, 0, None)


def test_a_device_that_cannot_be_read_is_skipped_alone_and_not_missed() -> None:
    look = found([gpu(A)], unreadable_devices=(("pci_0000_02_00_0", "its XML cannot be read"),))
    made = plan(look, [known(gpu(A)), known(gpu(B)), known(gpu(C))])
    assert states(made) == {C: MISSING}
    assert made.notes == ("pci_0000_02_00_0 was skipped: its XML cannot be read",)


def test_a_device_that_cannot_even_be_named_makes_nothing_missing() -> None:
    look = found([gpu(A)], unreadable_devices=(("pci_odd", "its XML cannot be read"),))
    assert plan(look, [known(gpu(A)), known(gpu(B))]).changes == ()
    # A mediated device is never a GPU that somebody could miss.
    look = found([gpu(A)], unreadable_devices=(("mdev_1", "it does not tell its UUID"),))
    assert states(plan(look, [known(gpu(A)), known(gpu(B))])) == {B: MISSING}


# Domains that cannot be read.


def test_while_a_domain_cannot_be_read_nothing_comes_free() -> None:
    look = found([gpu(A), gpu(B), gpu(C)], unreadable_domains=(("web", "its XML cannot be read"),))
    rows = [known(gpu(A)), known(gpu(B), ASSIGNED, "of web")]
    made = plan(look, rows, [given("web", B)], [machine("web")])
    assert (states(made), made.conflicts) == ({C: UNUSABLE}, ())
    assert made.notes == ("what web uses is not known: its XML cannot be read",)
    assert plan(look, [known(gpu(A)), known(gpu(B), ASSIGNED, "of web"), known(gpu(C))]).changes == ()
    # And what is missing is not forgotten: it may be named there.
    assert plan(look, [known(gpu(A)), known(gpu(B)), known(gpu(C)), gone(gpu("0000:09:00.0"), 3)]).changes == ()


# What changes.


def test_changed_facts_of_a_free_gpu_are_written() -> None:
    made = plan(found([gpu(iommu_group=9, driver="nvidia")]), [known(gpu())])
    (change,) = made.changes
    assert (change.action, change.reason) == ("update", "changed: driver, iommu_group")


def test_changed_facts_of_an_assigned_gpu_are_held_until_it_is_released() -> None:
    seen = gpu(iommu_group=9, driver="nvidia", uuid="GPU-1", numa_node=1)
    rows = [known(gpu(memory_bytes=80), ASSIGNED, "of web")]
    made = plan(found([seen], domain("web", A)), rows, [given("web")], [machine("web")])
    (change,) = made.changes
    assert change.after is not None
    # The driver changes with every start, and what was not known before breaks no promise.
    assert change.after.gpu == gpu(driver="nvidia", uuid="GPU-1", numa_node=1, memory_bytes=80)
    assert made.notes == (f"{A}: iommu_group was 1 and is 9; kept until it is released",)
    released = plan(found([seen]), [change.after])
    assert released.changes[0].after is not None and released.changes[0].after.gpu.iommu_group == 9


def test_another_card_in_the_slot_of_a_free_one_replaces_it() -> None:
    made = plan(found([gpu(model_id="2330", model="H100")]), [known(gpu(uuid="GPU-1", memory_bytes=80))])
    (change,) = made.changes
    assert change.after is not None
    assert (change.after.gpu, change.reason) == (gpu(model_id="2330", model="H100"), "another card: H100")


def test_another_card_in_the_slot_of_an_assigned_one_is_a_conflict() -> None:
    seen = gpu(model_id="2330", model="H100")
    made = plan(found([seen], domain("web", A)), [known(gpu(), ASSIGNED, "of web")], [given("web")], [machine("web")])
    assert made.changes == ()
    assert texts(made) == [f"{A} another card stands there (H100) than the one that was given away"]


# Addresses that change.


def test_a_gpu_is_followed_to_another_address_by_its_uuid_or_serial() -> None:
    for identity in ({"uuid": "GPU-1"}, {"serial": "1320921"}):
        made = plan(found([gpu(B, **identity), gpu(C)]), [known(gpu(A, **identity)), known(gpu(C))])
        assert states(made) == {A: "-", B: AVAILABLE}
        assert made.changes[0].reason == f"now at {B}"


def test_gpus_that_change_places_are_told_apart() -> None:
    rows = [known(gpu(A, uuid="GPU-1")), known(gpu(B, uuid="GPU-2"))]
    made = plan(found([gpu(A, uuid="GPU-2"), gpu(B, uuid="GPU-1")]), rows)
    assert [change.after.gpu.uuid for change in made.changes if change.after] == ["GPU-2", "GPU-1"]


def test_the_only_gpu_of_a_host_may_move() -> None:
    made = plan(found([gpu(B, uuid="GPU-1")]), [known(gpu(A, uuid="GPU-1"))])
    assert (made.refused, states(made)) == ("", {A: "-", B: AVAILABLE})


def test_gpus_of_one_board_share_its_serial_and_are_not_taken_for_each_other() -> None:
    rows = [known(gpu(A, serial="board")), known(gpu(B, serial="board"))]
    made = plan(found([gpu(B, serial="board")]), rows)
    assert states(made) == {A: MISSING}


@pytest.mark.parametrize("identity", [{"uuid": "GPU-1"}, {"serial": "1320921"}])
def test_an_assigned_gpu_that_moved_is_missing_where_it_was_given_and_told(identity: dict[str, str]) -> None:
    rows = [known(gpu(A, **identity), ASSIGNED, "of web"), known(gpu(C))]
    look = found([gpu(B, **identity), gpu(C)], domain("web", A, active=False))
    told = [f"{A} it moved to {B}, but web counts on it"]
    made = plan(look, rows, [given("web")], [machine("web", "off")])
    assert (states(made), made.assignments, texts(made)) == ({A: MISSING, B: ASSIGNED}, (), told)
    # It is still known the next time, although both rows then have its identity; and it is never counted as gone.
    rows = [replace(change.after, counted_at=NOON - GAP) for change in made.changes if change.after]
    later = plan(look, [*rows, known(gpu(C))], [given("web")], [machine("web", "off")])
    assert (later.assignments, texts(later)) == ((), told)


def test_an_assigned_gpu_whose_place_was_taken_by_another_is_told_with_where_it_is() -> None:
    rows = [known(gpu(A, uuid="GPU-1"), ASSIGNED, "of web"), known(gpu(B, uuid="GPU-2"))]
    look = found([gpu(A, uuid="GPU-2", model="H100"), gpu(B, uuid="GPU-1")], domain("web", A))
    made = plan(look, rows, [given("web")], [machine("web")])
    words = "another card stands there (H100) than the one that was given away, which is now at"
    assert f"{A} {words} {B}" in texts(made)
    assert A not in states(made)
