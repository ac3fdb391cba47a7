"""A pass over real libvirt connections and both databases: what is written, what is not, and under which guard.

Hosts with GPUs are those of libvirt's own test driver; the private libvirtd shows the devices of this machine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import libvirt
import pytest
from sqlalchemy import Engine, delete, event, update

from ops_pipeline.database.engine import writing
from ops_pipeline.hypervisor.graphics.facts import GraphicsPolicy
from ops_pipeline.hypervisor.graphics.look import is_this_machine, observe
from ops_pipeline.hypervisor.graphics.store import Written
from ops_pipeline.hypervisor.graphics.update import (
    FORMING,
    RESTING,
    GraphicsPlan,
    GraphicsSeen,
    GraphicsSetup,
    apply,
    counts_text,
    look,
    outcome_of,
    plan,
)
from ops_pipeline.hypervisor.hosts import mark_unreachable
from ops_pipeline.hypervisor.tables import gpu_assignments, gpus, hypervisor_hosts, machines
from ops_pipeline.reconcile import PlanRefused
from ops_pipeline_tests.hypervisor.graphics.samples import (
    GAP,
    HOST,
    A,
    B,
    C,
    add_host,
    add_machine,
    assigned,
    give,
    gpu_states,
    gpu_xml,
    guest,
    hostdev_mdev_xml,
    hostdev_xml,
    insert_row,
    mdev_xml,
    node,
    pci_xml,
    uuid_of,
)
from ops_pipeline_tests.hypervisor.graphics.test_enrichment import card, stand_in, sysfs_tree
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer
from ops_pipeline_tests.usage.calls import rows

POLICY = GraphicsPolicy(missing_scans=2, missing_gap=timedelta(0), resting=RESTING, forming=FORMING)
PART = "c2177883-f1bb-47f0-914d-32a22e3a8804"


def setup_of(engine: Engine, **fields: Any) -> GraphicsSetup:
    usual: dict[str, Any] = {"local_uri": "", "deadline_seconds": 20, "policy": POLICY}
    return GraphicsSetup(engine, **usual | fields)


def planned(setup: GraphicsSetup, **options: Any) -> tuple[GraphicsSeen, GraphicsPlan]:
    seen = look(setup)
    return seen, plan(seen, setup.policy, **options)


def passed(engine: Engine, **options: Any) -> GraphicsPlan:
    """A whole pass; its plan."""
    setup = setup_of(engine)
    _, made = planned(setup, **options)
    made.check(setup)
    apply(setup, made)
    return made


def conflicts(made: GraphicsPlan) -> list[str]:
    return [f"{one.host_id} {one.address} {one.text}" for one in made.conflicts]


@pytest.fixture
def file(tmp_path: Path, engine: Engine) -> Path:
    """The file of the host `kvm1`, which has two GPUs, one of them in the machine `web`."""
    path = tmp_path / "kvm1.xml"
    path.write_text(node(guest("web", hostdev_xml(A)), guest("shop", state=5), devices=[gpu_xml(A), gpu_xml(B)]))
    add_host(engine, HOST, path)
    add_machine(engine, "web")
    add_machine(engine, "shop", "off")
    give(engine, "web")
    return path


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """What is written meanwhile."""
    told: list[str] = []

    def tell(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            told.append(statement)

    event.listen(engine, "before_cursor_execute", tell)
    yield told
    event.remove(engine, "before_cursor_execute", tell)


def test_the_first_pass_takes_the_inventory_and_the_second_writes_nothing(engine: Engine, file: Path) -> None:
    made = passed(engine)
    assert gpu_states(engine) == {f"{HOST} {A}": "assigned", f"{HOST} {B}": "available"}
    one = rows(engine, gpus)[0]
    assert (one["vendor_id"], one["vendor"], one["model"]) == ("10de", "NVIDIA Corporation", "GA100 [A100 PCIe 80GB]")
    assert (one["pci_class"], one["iommu_group"], one["reason"]) == ("030200", 1, "of web")
    assert (one["memory_bytes"], one["boot_vga"], one["children"]) == (None, None, [])
    assert (made.conflicts, made.problems) == ((), {})
    before = rows(engine, gpus)
    with statements(engine) as told:
        seen, again = planned(setup_of(engine))
        assert not again.due
        assert apply(setup_of(engine), again) == Written()
    assert (told, rows(engine, gpus)) == ([], before)
    assert counts_text(seen) == "2 GPUs on 1 host in sync: 1 assigned, 1 available."


def test_everything_that_a_gpu_is_survives_the_database(engine: Engine, file: Path) -> None:
    virtual = "0000:01:00.4"
    kind = "<name>GRID</name><deviceAPI>vfio-pci</deviceAPI><availableInstances>3</availableInstances>"
    types = f"<capability type='mdev_types'><type id='q'>{kind}</type></capability>"
    parent = gpu_xml(A, virtual=[virtual], members=["0000:01:00.1"], numa=1, serial="S-1", extra=types)
    devices = [parent, gpu_xml(virtual, parent=A, group=40), pci_xml("0000:01:00.1", "040300"), mdev_xml(PART, A, "q")]
    file.write_text(node(guest("web"), devices=devices))
    passed(engine)
    assert not planned(setup_of(engine))[1].hosts[0].changes
    one = rows(engine, gpus)[0]
    assert one["children"] == [
        {"kind": "vf", "id": virtual, "profile": ""},
        {"kind": "mdev", "id": PART, "profile": "q"},
    ]
    assert one["profiles"] == [{"id": "q", "name": "GRID", "available": 3}]
    assert (one["iommu_members"], one["functions"]) == (["0000:01:00.1"], ["0000:01:00.1"])
    assert (one["numa_node"], one["serial"]) == (1, "S-1")


def test_a_mediated_device_is_found_through_its_parent(engine: Engine, file: Path) -> None:
    file.write_text(node(guest("web", hostdev_mdev_xml(PART)), devices=[gpu_xml(A), mdev_xml(PART, A)]))
    made = passed(engine)
    assert (gpu_states(engine), made.conflicts) == ({f"{HOST} {A}": "assigned"}, ())


def test_an_empty_scan_where_gpus_were_known_changes_nothing_and_fails(engine: Engine, file: Path) -> None:
    passed(engine)
    before = rows(engine, gpus)
    file.write_text(node(guest("web")))
    made = passed(engine)
    assert "none of the 2 known GPUs was found" in made.problems[HOST]
    assert outcome_of(made, Written()).status == "failed"
    assert (rows(engine, gpus), assigned(engine)) == (before, {(A, "web")})
    passed(engine, accept_loss=[HOST])
    assert set(gpu_states(engine).values()) == {"missing"}


def test_the_assignment_of_a_machine_that_is_gone_is_cleared_and_its_gpu_free_in_one_pass(
    engine: Engine, file: Path
) -> None:
    passed(engine)
    with writing(engine) as connection:
        connection.execute(delete(machines).where(machines.c.id == "id-of-web"))
    file.write_text(node(devices=[gpu_xml(A), gpu_xml(B)]))
    passed(engine)
    assert (assigned(engine), set(gpu_states(engine).values())) == (set(), {"available"})


def test_a_vanished_gpu_is_kept_while_its_machine_is_active_and_goes_when_it_has_been_off_for_long_enough(
    engine: Engine, file: Path
) -> None:
    passed(engine)
    file.write_text(node(guest("web", hostdev_xml(A)), devices=[gpu_xml(B)]))
    for _ in range(5):
        made = passed(engine)
        assert gpu_states(engine)[f"{HOST} {A}"] == "missing"
        assert assigned(engine) == {(A, "web")}
        assert conflicts(made) == [f"{HOST} {A} it is missing, but web counts on it"]
    # The hypervisor shows it off, the platform still says running: it stays.
    file.write_text(node(guest("web", state=5), devices=[gpu_xml(B)]))
    passed(engine)
    assert assigned(engine) == {(A, "web")}
    with writing(engine) as connection:
        connection.execute(update(machines).where(machines.c.id == "id-of-web").values(status="stopped"))
    passed(engine)
    assert rows(engine, gpu_assignments)[0]["missing_scans"] == 1
    passed(engine)
    assert (assigned(engine), list(gpu_states(engine))) == (set(), [f"{HOST} {B}"])


def test_a_machine_of_which_nobody_can_tell_the_domain_keeps_its_gpu(engine: Engine, file: Path) -> None:
    """Two rows with one UUID: either of them may be the domain that runs."""
    insert_row(engine, machines, id="twin", host_id=HOST, internal_name="twin", uuid=uuid_of("shop"), status="off")
    give(engine, "shop", C)
    for _ in range(4):
        made = passed(engine)
    assert (C, "shop") in assigned(engine)
    assert conflicts(made) == [f"{HOST} {C} it is missing, but shop counts on it"]


def test_with_a_gap_between_scans_a_second_pass_right_after_the_first_counts_nothing(
    engine: Engine, file: Path
) -> None:
    passed(engine)
    file.write_text(node(guest("web", state=5), devices=[gpu_xml(B)]))
    with writing(engine) as connection:
        connection.execute(update(machines).values(status="off"))
    setup = setup_of(engine, policy=replace(POLICY, missing_gap=GAP))
    for changed in (2, 0, 0):
        _, made = planned(setup)
        assert apply(setup, made) == Written(changed)
    assert (rows(engine, gpu_assignments)[0]["missing_scans"], assigned(engine)) == (1, {(A, "web")})


def test_an_address_in_another_spelling_is_counted_and_cleared_all_the_same(engine: Engine, file: Path) -> None:
    give(engine, "shop", "00000000:0C:00.0")
    for _ in range(2):
        passed(engine)
    assert assigned(engine) == {(A, "web")}


def test_conflicts_are_reported_and_never_repaired(engine: Engine, file: Path) -> None:
    file.write_text(
        node(
            guest("web", hostdev_xml(A)),
            guest("shop", hostdev_xml(A), state=5),
            guest("stranger", hostdev_xml(B)),
            devices=[gpu_xml(A), gpu_xml(B), gpu_xml(C)],
        )
    )
    give(engine, "shop", C)
    before = rows(engine, gpu_assignments)
    for _ in range(2):
        made = passed(engine)
        assert conflicts(made) == [
            f"{HOST} {A} shop and web have it, or something of its unit, in their XML; 1 of them run",
            f"{HOST} {A} shop has it on the hypervisor, but was never given it",
            f"{HOST} {B} stranger (running) uses it, a machine that the platform does not know",
            f"{HOST} {C} it was given to shop, whose domain does not have it",
        ]
    assert rows(engine, gpu_assignments) == before
    assert set(gpu_states(engine).values()) == {"assigned"}
    assert made.due


def test_one_hosts_inventory_never_judges_another_hosts_machines(engine: Engine, file: Path, tmp_path: Path) -> None:
    """`web` is on kvm1; on kvm2, which has no such domain, nothing about it is missing."""
    other = tmp_path / "kvm2.xml"
    other.write_text(node(devices=[gpu_xml(C)]))
    add_host(engine, "kvm2", other)
    give(engine, "web", B, host_id="kvm2")
    for _ in range(3):
        made = passed(engine)
    assert (A, "web") in assigned(engine) and (B, "web") in assigned(engine)
    assert conflicts(made) == [f"kvm2 {B} it was given to web, which is on the host {HOST}"]


def test_an_unreachable_host_changes_nothing_of_its_own_and_the_others_go_on(
    engine: Engine, file: Path, tmp_path: Path
) -> None:
    passed(engine)
    other = tmp_path / "kvm2.xml"
    other.write_text(node(devices=[gpu_xml(C)]))
    add_host(engine, "kvm2", other)
    file.unlink()
    setup = setup_of(engine)
    seen, made = planned(setup)
    written = apply(setup, made)
    assert mark_unreachable(engine, seen.hosts, seen.problems) == 1
    assert gpu_states(engine) == {f"{HOST} {A}": "assigned", f"{HOST} {B}": "available", f"kvm2 {C}": "available"}
    assert list(made.problems) == [HOST]
    outcome = outcome_of(made, written)
    assert (outcome.status, outcome.failed, outcome.changed) == ("failed", 1, 1)
    state = {row["id"]: (row["state"], bool(row["reason"])) for row in rows(engine, hypervisor_hosts)}
    assert state == {HOST: ("unreachable", True), "kvm2": ("", False)}
    again = look(setup)
    assert mark_unreachable(engine, again.hosts, again.problems) == 0


def test_an_assignment_on_a_host_that_does_not_exist_is_told(engine: Engine, file: Path) -> None:
    give(engine, "web", A, host_id="kvm9")
    made = passed(engine)
    assert conflicts(made) == [f"kvm9 {A} it was given to id-of-web on a host that there is none of"]
    assert len(rows(engine, gpu_assignments)) == 2


def test_machines_without_a_host_belong_to_the_local_one(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "local.xml"
    path.write_text(node(guest("web", hostdev_xml(A)), devices=[gpu_xml(A)]))
    add_machine(engine, "web", host_id=None)
    give(engine, "web", host_id="local")
    setup = setup_of(engine, local_uri=f"test://{path}")
    _, made = planned(setup)
    apply(setup, made)
    assert (gpu_states(engine), made.conflicts) == ({f"local {A}": "assigned"}, ())


# Guards.


def many_orphans(engine: Engine, file: Path, number: int, kept: int) -> None:
    """So many assignments whose machine is gone, and others whose machine is there."""
    addresses = [f"0000:{bus:02x}:00.0" for bus in range(16, 16 + number + kept)]
    for address in addresses[:number]:
        give(engine, f"gone-{address}", address)
    for address in addresses[number:]:
        give(engine, "web", address)
    file.write_text(
        node(guest("web", *map(hostdev_xml, [A, *addresses[number:]])), devices=map(gpu_xml, [A, *addresses]))
    )  # type: ignore[arg-type]


def test_a_plan_that_clears_most_assignments_is_refused_as_a_whole(engine: Engine, file: Path) -> None:
    many_orphans(engine, file, number=8, kept=4)
    setup = setup_of(engine)
    _, made = planned(setup)
    with pytest.raises(PlanRefused, match="8 of 13 objects are more than the limit of 50%"):
        made.check(setup)
    made.check(replace(setup, clear_share=1))
    apply(setup, made)
    assert len(assigned(engine)) == 5


def test_half_of_the_assignments_may_be_cleared(engine: Engine, file: Path) -> None:
    many_orphans(engine, file, number=6, kept=6)
    passed(engine)
    assert len(assigned(engine)) == 7


def change_meanwhile(engine: Engine, made: GraphicsPlan, statement: Any) -> Written:
    """Apply a plan that was made before something else was written."""
    with writing(engine) as connection:
        connection.execute(statement)
    return apply(setup_of(engine), made)


def test_a_gpu_that_someone_else_changed_meanwhile_is_left_and_counted(engine: Engine, file: Path) -> None:
    passed(engine)
    file.write_text(node(guest("web", hostdev_xml(A)), guest("shop", hostdev_xml(B)), devices=[gpu_xml(A), gpu_xml(B)]))
    _, made = planned(setup_of(engine))
    by_hand = update(gpus).where(gpus.c.pci_address == B).values(state="unusable", reason="broken fan")
    assert change_meanwhile(engine, made, by_hand) == Written(0, 1)
    assert rows(engine, gpus)[1]["reason"] == "broken fan"


def test_a_machine_that_starts_between_look_and_write_keeps_its_assignment(engine: Engine, file: Path) -> None:
    passed(engine)
    with writing(engine) as connection:
        connection.execute(update(machines).values(status="off"))
    file.write_text(node(guest("web", state=5), devices=[gpu_xml(B)]))
    passed(engine)
    _, made = planned(setup_of(engine))
    assert [change.action for change in made.hosts[0].assignments] == ["clear"]
    starts = update(machines).where(machines.c.id == "id-of-web").values(status="starting")
    written = change_meanwhile(engine, made, starts)
    assert (written.skipped, assigned(engine)) == (1, {(A, "web")})


def test_a_machine_that_is_made_again_between_look_and_write_keeps_its_assignment(engine: Engine, file: Path) -> None:
    give(engine, "mail", B)
    _, made = planned(setup_of(engine))
    assert [change.reason for change in made.hosts[0].assignments] == ["its machine is gone"]
    add_machine(engine, "mail", "building")
    assert apply(setup_of(engine), made).skipped == 1
    assert (B, "mail") in assigned(engine)


def test_two_passes_at_once_write_everything_once(engine: Engine, file: Path) -> None:
    give(engine, "mail", B)
    plans = [planned(setup_of(engine))[1] for _ in range(2)]
    done: list[Written] = []
    barrier = threading.Barrier(2)

    def write(made: GraphicsPlan) -> None:
        barrier.wait()
        done.append(apply(setup_of(engine), made))

    threads = [threading.Thread(target=write, args=(made,)) for made in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum((one for one in done), Written()) == Written(3, 3)
    assert (assigned(engine), len(gpu_states(engine))) == ({(A, "web")}, 2)


# Real libvirtd, sysfs and NVML.


def test_a_real_libvirtd_shows_this_machines_devices_and_what_its_domains_use(
    libvirtd: LibvirtServer, sqlite_engine: Engine
) -> None:
    here = sorted(path.name for path in Path("/sys/bus/pci/devices").iterdir())
    libvirtd.define("web", start=False, devices=[hostdev_xml("0000:b4:00.0")])
    libvirtd.define("shop")
    insert_row(sqlite_engine, hypervisor_hosts, id=HOST, libvirt_uri=libvirtd.uri)
    add_machine(sqlite_engine, "web", "off")
    seen = look(setup_of(sqlite_engine))
    assert seen.problems == {}
    facts = seen.facts[HOST]
    assert [one.address for one in facts.devices] == here
    assert {one.name: (one.active, [use.target for use in one.uses]) for one in facts.domains} == {
        "web": (False, ["0000:b4:00.0"]),
        "shop": (True, []),
    }
    assert facts.unreadable_devices == facts.unreadable_domains == ()


def test_a_libvirtd_that_dies_or_hangs_changes_nothing(libvirtd: LibvirtServer, sqlite_engine: Engine) -> None:
    insert_row(sqlite_engine, hypervisor_hosts, id=HOST, libvirt_uri=libvirtd.uri)
    known = {
        "state": "assigned",
        "state_since": "2026-03-10",
        "first_seen_at": "2026-03-10",
        "updated_at": "2026-03-10",
    }
    with writing(sqlite_engine) as connection:
        columns = ", ".join(["host_id", "pci_address", *known])
        values = ", ".join(f"'{value}'" for value in (HOST, A, *known.values()))
        connection.exec_driver_sql(f"INSERT INTO gpus ({columns}) VALUES ({values})")
    give(sqlite_engine, "web")
    before = rows(sqlite_engine, gpus)
    setup = setup_of(sqlite_engine, deadline_seconds=2)
    for broken in (libvirtd.hung, libvirtd.down):
        with broken():
            _, made = planned(setup)
        assert list(made.problems) == [HOST]
        assert apply(setup, made) == Written()
    assert (rows(sqlite_engine, gpus), assigned(sqlite_engine)) == (before, {(A, "web")})


@pytest.mark.parametrize(
    ("uri", "here"),
    [
        ("qemu:///system", True),
        ("qemu+unix:///system?socket=/run/x", True),
        ("xen:///", True),
        ("qemu+ssh://root@kvm2/system", False),
        ("qemu+tls://kvm2:16514/system", False),
        ("test:///default", False),
    ],
)
def test_only_the_libvirt_of_this_machine_is_enriched_by_its_kernel(uri: str, *, here: bool) -> None:
    assert is_this_machine(uri) is here


def test_sysfs_and_nvml_enrich_what_libvirt_shows(tmp_path: Path) -> None:
    path = tmp_path / "host.xml"
    path.write_text(node(devices=[gpu_xml(A, group=None), gpu_xml(B)]))
    tree = {"vendor": "0x10de", "device": "0x20b5", "boot_vga": "1", "numa_node": "0"}
    sysfs_tree(tmp_path / "sys", A, driver="nvidia", group="15", **tree)
    module = stand_in(card(), {"lost": 15})
    found = observe(libvirt.openReadOnly(f"test://{path}"), tmp_path / "sys", module)
    one, other = found.gpus
    assert (one.driver, one.iommu_group, one.boot_vga, one.numa_node) == ("nvidia", 15, True, 0)
    assert (one.uuid, one.model, one.memory_source) == ("GPU-8f6a", "NVIDIA H100 80GB HBM3", "driver")
    assert (other.uuid, other.boot_vga) == ("", None)
    assert len(found.problems) == 1


class Unreadable:
    """An object of libvirt whose XML cannot be read."""

    def __init__(self, name: str, error: Any) -> None:
        self._name, self._error = name, error

    def name(self) -> str:
        """As libvirt."""
        return self._name

    def isActive(self) -> int:  # noqa: N802 - the name of the real one
        """As libvirt."""
        return 1

    def UUIDString(self) -> str:  # noqa: N802 - the name of the real one
        """As libvirt."""
        return uuid_of(self._name)

    def isPersistent(self) -> int:  # noqa: N802 - the name of the real one
        """As libvirt."""
        return 1

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - the name of the real one
        """As libvirt."""
        if isinstance(self._error, str):
            return self._error
        raise self._error


def error_of(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("made up")
    error.err = (code, 0, "made up", 2, "", "", "", 0, 0)
    return error


class Connection:
    """A connection with objects that a test made up; everything else is that of a real one."""

    def __init__(
        self, path: Path, devices: Sequence[Any] = (), domains: Sequence[Any] = (), mdev_error: int = 0
    ) -> None:
        self._real = libvirt.openReadOnly(f"test://{path}")
        self._mdev_error = mdev_error
        self._devices, self._domains = list(devices), list(domains)

    def listAllDevices(self, flags: int) -> list[Any]:  # noqa: N802 - the name of the real one
        """As libvirt, and the made-up ones."""
        if flags & libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV and self._mdev_error:
            raise error_of(self._mdev_error)
        extra = self._devices if flags == libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV else []
        return [*self._real.listAllDevices(flags), *extra]

    def listAllDomains(self, flags: int) -> list[Any]:  # noqa: N802 - the name of the real one
        """As libvirt, and the made-up ones."""
        return [*self._real.listAllDomains(flags), *self._domains]


def test_devices_and_domains_that_cannot_be_read_are_skipped_alone(tmp_path: Path) -> None:
    path = tmp_path / "host.xml"
    path.write_text(node(guest("web", hostdev_xml(A)), devices=[gpu_xml(A)]))
    connection = Connection(
        path,
        [Unreadable("pci_0000_09_00_0", "<device>"), Unreadable("pci_0000_0a_00_0", error_of(1))],
        [Unreadable("odd", "hostdev"), Unreadable("busy", error_of(55)), Unreadable("gone", error_of(42))],
    )
    found = observe(connection, None, None)
    assert [one.address for one in found.gpus] == [A]
    assert [name for name, _ in found.unreadable_devices] == ["pci_0000_09_00_0", "pci_0000_0a_00_0"]
    assert [name for name, _ in found.unreadable_domains] == ["odd", "busy"]
    assert [one.uuid for one in found.domains] == [uuid_of("web")]


@pytest.mark.parametrize("code", [5, 38, 39, 68])
def test_a_connection_that_breaks_in_between_is_no_partial_look(tmp_path: Path, code: int) -> None:
    """Half of the devices were read, and the other half was taken for gone."""
    path = tmp_path / "host.xml"
    path.write_text(node(devices=[gpu_xml(A)]))
    for objects in (
        {"devices": [Unreadable("pci_x", error_of(code))]},
        {"domains": [Unreadable("web", error_of(code))]},
        {"mdev_error": code},
    ):
        with pytest.raises(libvirt.libvirtError):
            observe(Connection(path, **objects), None, None)
