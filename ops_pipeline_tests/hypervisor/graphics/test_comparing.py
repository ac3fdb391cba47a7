"""Assignments against the hypervisor: what is cleared, what is never cleared, and what is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from ops_pipeline.hypervisor.graphics.devices import Mdev, PciDevice
from ops_pipeline.hypervisor.graphics.facts import (
    ASSIGNED,
    AVAILABLE,
    MISSING,
    Assignment,
    HostGraphics,
    HostPlan,
    Known,
    Machine,
)
from ops_pipeline.hypervisor.graphics.inventory import plan_host
from ops_pipeline.hypervisor.graphics.nvml import Child
from ops_pipeline.hypervisor.graphics.units import Gpu
from ops_pipeline_tests.hypervisor.graphics.samples import (
    GAP,
    POLICY,
    A,
    B,
    C,
    D,
    domain,
    found,
    given,
    gone,
    gpu,
    known,
    machine,
    plan,
    records,
    states,
    texts,
)
from ops_pipeline_tests.usage.calls import NOON, examples

OF_WEB = known(gpu(A), ASSIGNED, "of web")
PART = "c2177883-f1bb-47f0-914d-32a22e3a8804"
OTHER_PART = "11111111-f1bb-47f0-914d-32a22e3a8804"
BYSTANDER = machine("bystander", "off")


def told(made: HostPlan) -> list[tuple[str, str]]:
    """The changes of assignments with their reasons."""
    return [(change.action, change.reason) for change in made.assignments]


# Orphans.


def test_an_assignment_of_a_machine_that_is_gone_is_cleared() -> None:
    made = plan(found([gpu()]), [OF_WEB], [given("web")], [BYSTANDER])
    assert told(made) == [("clear", "its machine is gone")]
    # In the same pass its GPU is available again.
    assert (states(made), made.conflicts) == ({A: AVAILABLE}, ())


@pytest.mark.parametrize("active", [True, False])
def test_a_machine_whose_row_is_gone_but_whose_domain_is_there_keeps_its_gpu(*, active: bool) -> None:
    """QEMU outlived the row, and the GPU was handed out a second time under its feet."""
    made = plan(found([gpu()], domain("web", A, active=active)), [OF_WEB], [given("web")], [BYSTANDER])
    assert (made.assignments, states(made)) == ((), {A: ASSIGNED} if states(made) else {})
    state = "running" if active else "defined"
    assert texts(made) == [
        f"{A} it was given to id-of-web, whose row is gone, but which may still run",
        f"{A} web ({state}) uses it, a machine that the platform does not know",
    ]


def test_a_domain_named_like_the_machine_that_is_gone_keeps_it_too() -> None:
    there = replace(domain("web"), uuid="id-of-web")
    assert plan(found([gpu()], there), [OF_WEB], [given("web")], [BYSTANDER]).assignments == ()


def test_nothing_is_cleared_while_a_domain_cannot_be_read() -> None:
    look = found([gpu()], unreadable_domains=(("web", "odd"),))
    assert plan(look, [OF_WEB], [given("web")], [BYSTANDER]).assignments == ()


def test_nothing_is_cleared_while_the_platform_has_no_machines_at_all() -> None:
    """Rows of machines that are being restored are not machines that are gone."""
    made = plan(found([gpu()]), [OF_WEB], [given("web")])
    assert (made.assignments, len(made.conflicts)) == ((), 1)


def test_an_assignment_goes_after_enough_scans_without_its_gpu_while_the_machine_is_off() -> None:
    look, rows = found([gpu(B)]), [gone(gpu(A)), known(gpu(B))]
    assignment = given("web")
    for scan in (1, 2):
        made = plan(look, rows, [assignment], [machine("web", "off")])
        assert told(made) == [("count", f"scan {scan} of 3 without its GPU while web is off")]
        (change,) = made.assignments
        assert change.after is not None and change.after.counted_at == NOON
        assert plan(look, rows, [change.after], [machine("web", "off")]).assignments == ()
        assignment = replace(change.after, counted_at=NOON - GAP)
    made = plan(look, rows, [assignment], [machine("web", "off")])
    assert told(made) == [("clear", "its GPU was not there in 3 good scans, and web is off")]
    assert made.assignments[0].status == "off"


@pytest.mark.parametrize("scans", [0, 2])
@pytest.mark.parametrize(
    ("status", "domains"),
    [
        ("running", []),
        ("building", []),
        ("backing_up", []),
        ("off", [domain("web", A)]),
        ("running", [domain("web", A)]),
    ],
)
def test_an_active_machine_never_loses_its_assignment(status: str, domains: Sequence[Any], scans: int) -> None:
    """The platform and the hypervisor must both say that it is off."""
    assignment = given("web", missing_scans=scans, counted_at=NOON - 9 * GAP if scans else None)
    made = plan(found([gpu(B)], *domains), [gone(gpu(A), 3), known(gpu(B))], [assignment], [machine("web", status)])
    assert told(made) == ([("reset", "web is active")] if scans else [])
    assert f"{A} it is missing, but web counts on it" in texts(made)


def test_a_machine_that_might_be_any_domain_counts_as_active_and_is_no_conflict() -> None:
    unsure = replace(machine("web", "off"), certain=False)
    gone_for_long = given("web", missing_scans=2, counted_at=NOON - GAP)
    assert told(plan(found([gpu(B)]), [gone(gpu(A), 3), known(gpu(B))], [gone_for_long], [unsure])) == [
        ("reset", "web is active")
    ]
    assert plan(found([gpu()]), [OF_WEB], [given("web")], [unsure]).conflicts == ()


def test_scans_are_counted_anew_when_the_gpu_comes_back() -> None:
    assignment = given("web", missing_scans=2, counted_at=NOON - GAP)
    made = plan(found([gpu()]), [gone(gpu(), 2)], [assignment], [machine("web", "off")])
    assert told(made) == [("reset", "its GPU is back")]
    assert made.assignments[0].after == given("web")


def test_an_assignment_of_a_gpu_that_was_never_there_goes_the_same_way() -> None:
    assignment = given("web", D, missing_scans=2, counted_at=NOON - GAP)
    assert told(plan(found([gpu()]), [known(gpu())], [assignment], [machine("web", "off")]))[0][0] == "clear"


def test_one_hosts_inventory_never_judges_another_hosts_machine() -> None:
    """A machine that moved to another host has its domain there."""
    rows = [gone(gpu(A), 3), known(gpu(B))]
    assignment = given("web", missing_scans=2, counted_at=NOON - GAP)
    made = plan(found([gpu(B)]), rows, [assignment], [machine("web", "off", host_id="kvm2")])
    assert made.assignments == ()
    assert f"{A} it was given to web, which is on the host kvm2" in texts(made)


def test_an_address_in_another_spelling_is_the_same_gpu() -> None:
    look = found([gpu("0000:b4:00.0")], domain("web", "0000:b4:00.0"))
    for spelling in ("00000000:B4:00.0", "b4:00.0"):
        made = plan(look, [], [given("web", spelling)], [machine("web")])
        assert (states(made), made.conflicts) == ({"0000:b4:00.0": ASSIGNED}, ())


def test_an_assignment_without_a_readable_address_is_told_and_kept() -> None:
    made = plan(found([gpu()]), [known(gpu())], [given("web", "card 1")], [machine("web")])
    assert made.assignments == ()
    assert texts(made) == ["card 1 the assignment to web has 'card 1', which is no PCI address"]


def test_an_assignment_of_something_that_is_no_gpu_is_told() -> None:
    sound = "0000:01:00.1"
    look = found([gpu()], others=[PciDevice(sound, "040300")])
    made = plan(look, [known(gpu())], [given("web", sound)], [machine("web", "off")])
    assert made.assignments == ()
    assert texts(made) == [f"{sound} it was given to web, but what stands there is no GPU"]


def test_an_assignment_follows_its_gpu_once_the_machines_own_xml_does() -> None:
    look = found([gpu(B, uuid="GPU-1"), gpu(C)], domain("web", B))
    rows = [known(gpu(A, uuid="GPU-1"), ASSIGNED, "of web"), known(gpu(C))]
    made = plan(look, rows, [given("web", missing_scans=1)], [machine("web")])
    assert told(made) == [("readdress", f"its GPU moved to {B}, and the machine's own XML has it there")]
    assert made.assignments[0].after == given("web", B)
    assert (states(made), made.conflicts) == ({A: "-", B: ASSIGNED}, ())


@pytest.mark.parametrize("uses", [(A, B), (C,), ()])
def test_an_assignment_does_not_follow_on_less_than_that(uses: tuple[str, ...]) -> None:
    look = found([gpu(B, uuid="GPU-1"), gpu(C)], domain("web", *uses))
    rows = [known(gpu(A, uuid="GPU-1"), ASSIGNED, "of web"), known(gpu(C))]
    assert plan(look, rows, [given("web")], [machine("web")]).assignments == ()
    twice = [given("web"), given("web", B)]
    assert plan(found([gpu(B, uuid="GPU-1")], domain("web", B)), rows[:1], twice, [machine("web")]).assignments == ()


# Conflicts.


def test_two_machines_on_one_gpu_are_a_conflict() -> None:
    look = found([gpu()], domain("web", A), domain("shop", A, active=False))
    made = plan(look, [], [given("web")], [machine("web"), machine("shop", "off")])
    assert texts(made) == [
        f"{A} shop and web have it, or something of its unit, in their XML; 1 of them run",
        f"{A} shop has it on the hypervisor, but was never given it",
    ]
    assert (made.assignments, states(made)) == ((), {A: ASSIGNED})


def test_a_gpu_given_to_two_machines_is_a_conflict() -> None:
    look = found([gpu()], domain("web", A))
    made = plan(look, [], [given("web"), given("shop")], [machine("web"), machine("shop", "off")])
    assert texts(made) == [
        f"{A} it was given to shop and web",
        f"{A} it was given to shop, of which the hypervisor has no domain",
    ]


def test_machines_that_share_an_iommu_group_are_a_conflict() -> None:
    one, other = gpu(A, iommu_group=7, iommu_members=(B,)), gpu(B, iommu_group=7, iommu_members=(A,))
    look = found([one, other], domain("web", A), domain("shop", B))
    made = plan(look, [], [given("web"), given("shop", B)], [machine("web"), machine("shop")])
    words = "shop and web have it, or something of its unit, in their XML; 2 of them run"
    assert texts(made) == [f"{A} {words}", f"{B} {words}"]


def test_one_machine_may_have_all_of_a_group() -> None:
    one, other = gpu(A, iommu_group=7, iommu_members=(B,)), gpu(B, iommu_group=7, iommu_members=(A,))
    made = plan(found([one, other], domain("web", A, B)), [], [given("web"), given("web", B)], [machine("web")])
    assert (made.conflicts, states(made)) == ((), {A: ASSIGNED, B: ASSIGNED})


def test_an_assignment_that_the_hypervisor_does_not_know_is_a_conflict() -> None:
    made = plan(found([gpu()], domain("web")), [OF_WEB], [given("web")], [machine("web")])
    assert texts(made) == [f"{A} it was given to web, whose domain does not have it"]
    assert (made.assignments, made.changes) == ((), ())


@pytest.mark.parametrize("status", ["building", "running"])
def test_a_machine_that_is_just_being_made_needs_no_domain_yet(status: str) -> None:
    made = plan(found([gpu()]), [OF_WEB], [given("web")], [machine("web", status)])
    assert bool(made.conflicts) is (status == "running")


def test_columns_that_disagree_are_a_conflict() -> None:
    look = found([gpu()], domain("shop", A))
    made = plan(look, [], [given("web")], [machine("web", "off"), machine("shop")])
    assert texts(made) == [
        f"{A} it was given to web, of which the hypervisor has no domain",
        f"{A} shop has it on the hypervisor, but was never given it",
    ]


def test_a_gpu_used_by_a_machine_that_the_platform_does_not_know_is_a_conflict() -> None:
    sound = "0000:01:00.1"
    one = gpu(iommu_members=(sound,), functions=(sound,))
    assert texts(plan(found([one], domain("stranger", A)), [])) == [
        f"{A} stranger (running) uses it, a machine that the platform does not know"
    ]
    assert texts(plan(found([one], domain("stranger", sound, active=False)), [])) == [
        f"{A} stranger (defined) uses it through {sound}, a machine that the platform does not know"
    ]
    # Once for each domain, however much of the unit it has.
    assert len(texts(plan(found([one], domain("stranger", A, sound)), []))) == 1


# Parts.


def test_machines_may_each_have_a_part_of_one_gpu() -> None:
    one = gpu(children=(Child("mdev", PART), Child("mdev", OTHER_PART)))
    mdevs = (Mdev(PART, A, "q"), Mdev(OTHER_PART, A, "q"))
    look = found([one], domain("web", mdevs=[PART]), domain("shop", mdevs=[OTHER_PART]), mdevs=mdevs)
    machines = [machine("web"), machine("shop")]
    for assignments in (
        [given("web", mdev_uuid=PART), given("shop", mdev_uuid=OTHER_PART)],
        [given("web"), given("shop")],
    ):
        made = plan(look, [], assignments, machines)
        assert (states(made), texts(made)) == ({A: ASSIGNED}, [])


def test_one_part_in_two_machines_is_a_conflict() -> None:
    look = found([gpu()], domain("web", mdevs=[PART]), domain("shop", mdevs=[PART]), mdevs=(Mdev(PART, A, "q"),))
    assignments = [given("web", mdev_uuid=PART), given("shop", mdev_uuid=PART)]
    made = plan(look, [], assignments, [machine("web"), machine("shop")])
    assert texts(made) == [
        f"{A} shop and web have it, or something of its unit, in their XML; 2 of them run",
        f"{A} its mediated device {PART} was given to shop and web",
    ]


def test_the_whole_and_a_part_of_it_contradict_each_other() -> None:
    look = found([gpu()], domain("web", A), domain("shop", mdevs=[PART]), mdevs=(Mdev(PART, A, "q"),))
    assignments = [given("web"), given("shop", mdev_uuid=PART)]
    made = plan(look, [], assignments, [machine("web"), machine("shop")])
    assert texts(made) == [
        f"{A} shop and web have it, or something of its unit, in their XML; 2 of them run",
        f"{A} it was given to shop and web",
    ]


def test_a_part_other_than_the_one_given_is_a_conflict() -> None:
    look = found([gpu()], domain("web", mdevs=[PART]), mdevs=(Mdev(PART, A, "q"),))
    made = plan(look, [], [given("web", mdev_uuid=OTHER_PART)], [machine("web")])
    assert texts(made) == [f"{A} it was given to web, whose domain does not have it"]


def test_a_virtual_function_and_its_parent_in_two_machines_are_a_conflict_at_the_parent() -> None:
    virtual = "0000:01:00.4"
    gpus = [gpu(children=(Child("vf", virtual),)), gpu(virtual, parent_address=A, iommu_group=40)]
    look = found(gpus, domain("web", A), domain("shop", virtual))
    made = plan(look, [], [given("web"), given("shop", virtual)], [machine("web"), machine("shop")])
    assert texts(made) == [f"{A} shop and web have it, or something of its unit, in their XML; 2 of them run"]


# Invariants.

ADDRESSES = [A, B, C]
NAMES = ["web", "shop", "mail"]


@st.composite
def situations(draw: st.DrawFn) -> tuple[HostGraphics, list[Known], list[Assignment], list[Machine]]:
    """A host with a few GPUs, machines and assignments in every combination, also impossible ones."""
    identity = st.sampled_from(["", "GPU-1", "GPU-2"])

    def some_gpus() -> list[Gpu]:
        places = draw(st.lists(st.sampled_from(ADDRESSES), unique=True))
        return [gpu(place, uuid=draw(identity), iommu_group=draw(st.sampled_from([None, 1]))) for place in places]

    targets = st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=2)
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    domains = [domain(name, *draw(targets), active=draw(st.booleans())) for name in names]
    unreadable = draw(st.sampled_from([(), (("pci_0000_02_00_0", "odd"),), (("pci_odd", "odd"),)]))
    look = found(some_gpus(), *domains, unreadable_devices=unreadable)
    ago = st.sampled_from([timedelta(0), GAP])
    rows = []
    for one in some_gpus():
        state = draw(st.sampled_from([AVAILABLE, ASSIGNED, MISSING]))
        scans = draw(st.integers(1, 3)) if state == MISSING else 0
        rows.append(Known(one, state, "", scans, NOON - draw(ago) if scans else None))
    pairs = draw(st.lists(st.tuples(st.sampled_from(ADDRESSES), st.sampled_from(NAMES)), unique=True, max_size=4))
    assignments = []
    for address, name in pairs:
        scans = draw(st.integers(0, 2))
        counted = NOON - draw(ago) if scans else None
        assignments.append(given(name, address, missing_scans=scans, counted_at=counted))
    statuses = st.sampled_from(["running", "off", "building", "backing_up"])
    hosts = st.sampled_from(["kvm1", "kvm1", "kvm2"])
    machines = [
        machine(name, draw(statuses), draw(hosts)) for name in draw(st.lists(st.sampled_from(NAMES), unique=True))
    ]
    return look, rows, assignments, machines


def applied(
    made: HostPlan, rows: Sequence[Known], assignments: Sequence[Assignment]
) -> tuple[list[Known], list[Assignment]]:
    """The rows after a plan was applied."""
    by_address = {row.gpu.address: row for row in rows}
    for change in made.changes:
        by_address.pop(change.address, None)
        if change.after is not None:
            by_address[change.address] = change.after
    replaced = {change.before: change.after for change in made.assignments}
    left = [replaced.get(one, one) for one in assignments]
    return list(by_address.values()), [one for one in left if one is not None]


@drawn(situations())
@examples(300)
def test_a_second_pass_is_empty(
    situation: tuple[HostGraphics, list[Known], list[Assignment], list[Machine]],
) -> None:
    look, rows, assignments, machines = situation
    made = plan(look, rows, assignments, machines, accept_loss=True)
    again = plan(look, *applied(made, rows, assignments), machines, accept_loss=True)
    assert (again.changes, again.assignments) == ((), ())
    assert again.conflicts == made.conflicts


@drawn(situations(), st.randoms(use_true_random=False))
@examples(100)
def test_the_order_of_facts_does_not_matter(
    situation: tuple[HostGraphics, list[Known], list[Assignment], list[Machine]], random: Any
) -> None:
    look, rows, assignments, machines = situation
    made = plan(look, rows, assignments, machines)
    domains = list(look.domains)
    for one in (rows, machines, domains):
        random.shuffle(one)
    assert plan(replace(look, domains=tuple(domains)), rows, assignments, machines) == made


@drawn(situations())
@examples(300)
def test_whatever_happens_no_active_machine_loses_an_assignment_and_no_other_hosts_machine_is_judged(
    situation: tuple[HostGraphics, list[Known], list[Assignment], list[Machine]],
) -> None:
    look, rows, assignments, machines = situation
    known_rows = records(rows, assignments, machines, look)
    made = plan_host(known_rows, look, POLICY, NOON)
    for change in made.assignments:
        owner = known_rows.machines.get(change.before.machine_id)
        if owner is None:
            assert change.action == "clear"
            assert not any(
                use.target == change.before.address
                for one in look.domains
                for use in one.uses
                if not known_rows.machine_of(one)
            )
            continue
        assert owner.host_id == "kvm1"
        if change.action == "clear":
            assert owner.status == "off"
            assert owner.domain is None or not owner.domain.active
            assert change.before.missing_scans == 2
            assert change.before.address not in {one.address for one in look.gpus}
    # What a domain has in its XML, or the platform gave away, is never called available.
    left = applied(made, rows, assignments)
    taken = {one.address for one in left[1]} | {use.target for one in look.domains for use in one.uses}
    if not made.refused:
        assert not any(
            row.state == AVAILABLE and row.gpu.address in taken
            for row in left[0]
            if row.gpu.address in {g.address for g in look.gpus}
        )
