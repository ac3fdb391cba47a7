"""Passes over a real libvirtd with QEMU guests; the database is looked at before and after."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import libvirt
import pytest
from sqlalchemy import Engine, update

from ops_pipeline.database.engine import writing
from ops_pipeline.hypervisor.machines.sync import Applied
from ops_pipeline.hypervisor.tables import hypervisor_hosts, machines
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer, guest_xml, libvirt_server
from ops_pipeline_tests.hypervisor.scenes import add_host, add_machines, kinds, passed, rows_of, scene, statuses
from ops_pipeline_tests.servers import wait_until


def observed(engine: Engine, name: str = "guest") -> tuple[str, str, str]:
    row = rows_of(engine)[name]
    return row["status"], row["observed_state"], row["observed_reason"]


def test_a_guests_whole_life_is_followed(engine: Engine, libvirtd: LibvirtServer) -> None:
    """Start, pause, resume, managed save, restore, shut-off, crash of its process, undefine."""
    uuid = libvirtd.define("guest", start=False)
    libvirtd.define("other")
    add_machines(engine, {"id": "guest", "uuid": uuid, "status": "stopped"}, {"id": "other", "status": "running"})
    where = scene(engine, libvirtd.uri)
    found = []

    def step() -> None:
        passed(where)
        found.append(observed(engine))
        assert passed(where)[1] == Applied()

    step()
    with libvirtd.connection() as connection:
        guest = connection.lookupByName("guest")
        guest.create()
        step()
        guest.suspend()
        step()
        guest.resume()
        step()
        guest.managedSave()
        step()
        guest.create()
        step()
        guest.destroy()
        step()
        guest.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        step()
        guest.resume()
        step()
        libvirtd.run("sh", "-c", "kill -9 $(cat /run/libvirt/qemu/guest.pid)")
        for _ in range(100):
            if not guest.isActive():
                break
            time.sleep(0.05)
        step()
    assert found == [
        ("stopped", "shutoff", ""),
        ("running", "running", "booted"),
        ("suspended", "paused", "user"),
        ("running", "running", "unpaused"),
        ("stopped", "shutoff", "saved"),
        ("running", "running", "restored"),
        ("stopped", "shutoff", "destroyed"),
        ("suspended", "paused", "user"),
        ("running", "running", "unpaused"),
        ("stopped", "shutoff", "crashed"),
    ]
    assert kinds(passed(where)[0]) == [("alert", "guest")]
    assert statuses(engine)["other"] == "running"


def test_an_undefined_guest_is_missing_after_some_looks_and_one_made_anew_is_not_it(
    sqlite_engine: Engine, libvirtd: LibvirtServer
) -> None:
    uuid = libvirtd.define("guest")
    libvirtd.define("other")
    add_machines(
        sqlite_engine, {"id": "guest", "uuid": uuid, "status": "running"}, {"id": "other", "status": "running"}
    )
    where = scene(sqlite_engine, libvirtd.uri)
    passed(where)
    with libvirtd.connection() as connection:
        guest = connection.lookupByName("guest")
        guest.destroy()
        guest.undefine()
    found = []
    for _ in range(3):
        passed(where)
        found.append(observed(sqlite_engine)[:2])
    assert found == [("running", "missing"), ("running", "missing"), ("stopped", "missing")]
    libvirtd.define("guest")
    before = rows_of(sqlite_engine)["guest"]
    made, _ = passed(where)
    assert kinds(made) == [("conflict", "guest")]
    assert rows_of(sqlite_engine)["guest"] == before


def test_a_transient_guest_that_a_user_switched_off_is_no_alert(sqlite_engine: Engine, libvirtd: LibvirtServer) -> None:
    libvirtd.define("other", start=False)
    with libvirtd.connection() as connection:
        guest = connection.createXML(guest_xml("guest"))
        add_machines(sqlite_engine, {"id": "guest", "uuid": guest.UUIDString(), "status": "starting"}, {"id": "other"})
        where = scene(sqlite_engine, libvirtd.uri)
        passed(where)
        assert observed(sqlite_engine)[:2] == ("starting", "running")
        guest.destroy()
    with writing(sqlite_engine) as connection:
        connection.execute(update(machines).where(machines.c.id == "guest").values(status="off"))
    for _ in range(4):
        made, _ = passed(where)
    assert (observed(sqlite_engine)[:2], kinds(made)) == (("off", "missing"), [])


def test_a_daemon_that_is_down_hangs_or_dies_changes_no_machine(sqlite_engine: Engine, libvirtd: LibvirtServer) -> None:
    """An error was read as an empty list, and every machine was written off."""
    libvirtd.define("guest")
    add_machines(sqlite_engine, {"id": "guest", "status": "running"}, {"id": "off", "status": "off"})
    where = scene(sqlite_engine, libvirtd.uri, deadline=3)
    passed(where)
    before = rows_of(sqlite_engine)
    problems = []
    with libvirtd.hung():
        made, applied = passed(where)
        problems.append(made.problems["local"])
    libvirtd.signal(signal.SIGSTOP)
    killer = threading.Timer(1, libvirtd.kill)
    killer.start()
    made, _ = passed(where)
    killer.join()
    problems.append(made.problems["local"])
    made, applied = passed(where)
    problems.append(made.problems["local"])
    assert rows_of(sqlite_engine) == before
    assert (applied.changed, applied.observed, made.unasked) == (0, 0, 2)
    assert rows_of(sqlite_engine, hypervisor_hosts)["local"]["state"] == "unreachable"
    libvirtd.start()
    made, applied = passed(where)
    assert (made.problems, statuses(sqlite_engine)) == ({}, {"guest": "running", "off": "off"})
    assert rows_of(sqlite_engine, hypervisor_hosts)["local"]["state"] == "up"
    assert "no answer within 3 s" in problems[0]
    assert "nothing answers" in problems[2]


def test_a_whole_host_that_goes_down_is_believed_only_when_it_was_started_again(
    sqlite_engine: Engine, libvirtd: LibvirtServer
) -> None:
    names = [f"guest{number}" for number in range(10)]
    add_host(sqlite_engine, "h", libvirtd.uri)
    add_machines(sqlite_engine, *({"id": name, "host_id": "h", "status": "running"} for name in names))
    for name in names:
        libvirtd.define(name, start=False)
    where = scene(sqlite_engine, "")
    made, applied = passed(where)
    assert (list(made.problems), applied.changed, set(statuses(sqlite_engine).values())) == (["h"], 0, {"running"})
    host = rows_of(sqlite_engine, hypervisor_hosts)["h"]
    assert (host["state"], host["last_seen_at"], host["uptime_seconds"]) == ("up", None, None)
    assert "would go down in one look" in host["reason"]
    # As if it had been seen a minute ago, after a year without a restart.
    with writing(sqlite_engine) as connection:
        values = {"last_seen_at": rows_of(sqlite_engine)["guest0"]["updated_at"], "uptime_seconds": 365 * 86_400}
        connection.execute(update(hypervisor_hosts).values(values))
    made, applied = passed(where)
    assert (made.problems, applied.changed, set(statuses(sqlite_engine).values())) == ({}, 10, {"stopped"})
    uptime = rows_of(sqlite_engine, hypervisor_hosts)["h"]["uptime_seconds"]
    assert abs(uptime - float(Path("/proc/uptime").read_text().split()[0])) < max(60, uptime / 2)


def test_a_guest_that_is_restarted_between_two_looks_is_simply_running(
    sqlite_engine: Engine, libvirtd: LibvirtServer
) -> None:
    libvirtd.define("guest")
    add_machines(sqlite_engine, {"id": "guest", "status": "running"})
    where = scene(sqlite_engine, libvirtd.uri)
    passed(where)
    with libvirtd.connection() as connection:
        guest = connection.lookupByName("guest")
        guest.destroy()
        guest.create()
    assert passed(where)[1] == Applied()
    assert observed(sqlite_engine) == ("running", "running", "booted")


def test_the_process_that_looks_may_not_change_anything(libvirtd: LibvirtServer) -> None:
    """Its connection is read-only, so a mistake in it cannot harm a guest."""
    libvirtd.define("guest", start=False)
    connection = libvirt.openReadOnly(libvirtd.uri)
    with pytest.raises(libvirt.libvirtError, match="read only"):
        connection.lookupByName("guest").destroy()
    connection.close()


def boot_disk(code: str, size: int = 0) -> bytes:
    """A disk whose boot sector runs `code`, in hexadecimal digits."""
    return bytes.fromhex(code).ljust(510, b"\0") + b"\x55\xaa" + bytes(size)


def disk_xml(path: Path) -> str:
    driver = "<driver name='qemu' type='raw' error_policy='stop'/>"
    return f"<disk type='file' device='disk'>{driver}<source file='{path}'/><target dev='hda' bus='ide'/></disk>"


SUSPEND = "ba0406b80024efebfe"
"""mov dx, 0x604; mov ax, 0x2400; out dx, ax; jmp $: the ACPI way to sleep."""
WRITE = "b80103bb007cb90140ba8000cd13ebf0"
"""mov ax, 0x301; mov bx, 0x7c00; mov cx, 0x4001; mov dx, 0x80; int 0x13; jmp start: write far behind on the disk."""


def until_state(guest: libvirt.virDomain, state: int) -> None:
    wait_until(lambda: guest.state()[0] == state, 60, f"the guest to be in state {state}")


def test_a_guest_that_sleeps_is_suspended_until_it_is_woken(
    sqlite_engine: Engine, libvirtd: LibvirtServer, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(boot_disk(SUSPEND, 65_024))
    xml = guest_xml("guest", devices=[disk_xml(tmp_path / "disk")])
    able = "<features><acpi/></features><pm><suspend-to-mem enabled='yes'/></pm><devices>"
    with libvirtd.connection() as connection:
        guest = connection.defineXML(xml.replace("<devices>", able))
        guest.create()
        add_machines(sqlite_engine, {"id": "guest", "uuid": guest.UUIDString(), "status": "running"})
        where = scene(sqlite_engine, libvirtd.uri)
        until_state(guest, libvirt.VIR_DOMAIN_PMSUSPENDED)
        made, _ = passed(where)
        assert (observed(sqlite_engine), kinds(made)) == (("suspended", "pmsuspended", ""), [])
        guest.pMWakeup()
        until_state(guest, libvirt.VIR_DOMAIN_RUNNING)
        passed(where)
        assert observed(sqlite_engine)[:2] == ("running", "running")


def test_a_guest_whose_storage_is_full_is_an_alert_until_it_is_resumed(
    sqlite_engine: Engine, libvirtd: LibvirtServer, tmp_path: Path
) -> None:
    """QEMU pauses a guest whose write fails; nobody looked, and the machine was taken for stopped."""
    full = tmp_path / "full"
    full.mkdir()
    (tmp_path / "disk").write_bytes(boot_disk(WRITE))
    libvirtd.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full))
    fill = f"cp {tmp_path}/disk {full}/disk && truncate -s 64M {full}/disk && cat /dev/zero > {full}/rest"
    libvirtd.run("sh", "-c", fill, check=False)
    with libvirtd.connection() as connection:
        guest = connection.defineXML(guest_xml("guest", devices=[disk_xml(full / "disk")]))
        guest.create()
        add_machines(sqlite_engine, {"id": "guest", "uuid": guest.UUIDString(), "status": "running"})
        where = scene(sqlite_engine, libvirtd.uri)
        until_state(guest, libvirt.VIR_DOMAIN_PAUSED)
        made, _ = passed(where)
        assert (observed(sqlite_engine), kinds(made)) == (("suspended", "paused", "io_error"), [("alert", "guest")])
        libvirtd.run("rm", f"{full}/rest")
        guest.resume()
        made, _ = passed(where)
        assert (observed(sqlite_engine), kinds(made)) == (("running", "running", "unpaused"), [])
        guest.destroy()
    libvirtd.run("umount", str(full))


SCRIBBLE = "b800208ec031ffb90080f3ab80c41080fc9072efebea"
"""mov ax, 0x2000; mov es, ax; xor di, di; mov cx, 0x8000; rep stosw; add ah, 0x10; cmp ah, 0x90; jb -17; jmp start:
write 448 KiB of memory over and over, which a link of 1 MiB/s never gets across."""


def test_a_live_migration_is_followed_from_daemon_to_daemon(
    sqlite_engine: Engine, libvirtd: LibvirtServer, tmp_path: Path
) -> None:
    """Somebody migrates a machine with virsh: on two hosts at once, paused here or there, then on the other one."""
    (tmp_path / "disk").write_bytes(boot_disk(SCRIBBLE, 65_024))
    disk = disk_xml(tmp_path / "disk").replace("<target", "<shareable/><target")
    with libvirt_server() as target, libvirtd.connection() as here, target.connection() as there:
        guest = here.defineXML(guest_xml("guest", devices=[disk]))
        guest.create()
        add_host(sqlite_engine, "here", libvirtd.uri)
        add_host(sqlite_engine, "there", target.uri)
        add_machines(sqlite_engine, {"id": "guest", "uuid": guest.UUIDString(), "host_id": "here", "status": "running"})
        where = scene(sqlite_engine, "")
        passed(where)
        guest.migrateSetMaxDowntime(1)
        options = {
            libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{tmp_path}/migration",
            libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: 1,
        }
        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_PERSIST_DEST
        unsafe = libvirt.VIR_MIGRATE_UNSAFE | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        errors: list[Exception] = []

        def migrate() -> None:
            try:
                guest.migrateToURI3(target.uri, options, flags | unsafe)
            except libvirt.libvirtError as error:
                errors.append(error)

        migration = threading.Thread(target=migrate)
        migration.start()
        arriving = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION]
        wait_until(lambda: [one.state() for one in there.listAllDomains()] == [arriving], 60, "the migration")
        before = rows_of(sqlite_engine)
        made, applied = passed(where)
        assert (kinds(made), made.problems, applied.changed, rows_of(sqlite_engine)) == ([], {}, 0, before)
        assert observed(sqlite_engine)[:2] == ("running", "running")
        guest.migrateSetMaxDowntime(10_000)
        migration.join()
        assert errors == []
        made, _ = passed(where)
        assert kinds(made) == [("conflict", "guest")]
        assert "there" in made.findings[0].words
        assert statuses(sqlite_engine) == {"guest": "running"}
        with writing(sqlite_engine) as connection:
            connection.execute(update(machines).values(host_id="there"))
        made, _ = passed(where)
        assert (kinds(made), observed(sqlite_engine)) == ([], ("running", "running", "migrated"))
