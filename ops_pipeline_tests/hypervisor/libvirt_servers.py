"""A private libvirtd with QEMU guests under software emulation, and fleets on libvirt's own test driver.

What belongs here: starting and stopping, guests, files of fleets. What does not: anything that the tests judge.

The daemon lives in mount, network and process namespaces of its own: its filters, tap devices, ebtables and iptables
rules are nobody else's, several can run at once, and nothing outlives the process that started it.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import uuid as uuids
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import libvirt

from ops_pipeline_tests.servers import wait_until

START_SECONDS = 120
"""The first start probes what QEMU can do: five seconds here, forty on a slow machine."""

_PREPARE = """
set -e
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/cache" /var/cache/libvirt
mount --bind "$1/log" /var/log/libvirt
mount -t tmpfs tmpfs /run/libvirt
ip link set lo up
echo ready
cat > /dev/null
"""
"""The first process of the namespaces. It ends when whoever started it does, and the kernel then kills the rest."""

_DAEMON_SETTINGS = """
unix_sock_dir = "{folder}/sock"
unix_sock_group = "root"
auth_unix_rw = "none"
auth_unix_ro = "none"
keepalive_interval = -1
host_uuid = "{uuid}"
log_outputs = "3:file:{folder}/log/libvirtd.log"
"""
_QEMU_SETTINGS = """
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""


def _quiet(_context: object, _error: object) -> None:
    """Errors are raised; libvirt would print each as well."""


libvirt.registerErrorHandler(_quiet, None)


@dataclass
class LibvirtServer:
    """A running private libvirtd; `run` runs commands where its network and files are."""

    folder: Path
    holder: subprocess.Popen[bytes]
    daemon: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def uri(self) -> str:
        """Where clients find it."""
        return f"qemu+unix:///system?socket={self.folder}/sock/libvirt-sock"

    @property
    def first_process(self) -> int:
        """The process that holds the namespaces, as seen from outside."""
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        return int(children[0])

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command beside the daemon, for example `ebtables -t nat -L`, and return what it printed."""
        done = subprocess.run(self._inside(*command), capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def _inside(self, *command: str) -> list[str]:
        return ["nsenter", "--target", str(self.first_process), "--mount", "--net", "--pid", *command]

    def start(self) -> None:
        """Start the daemon, and wait until it answers. Guests of an earlier daemon have gone on running."""
        command = self._inside("libvirtd", "--config", f"{self.folder}/libvirtd.conf", "--pid-file", self._pid_file)
        with (self.folder / "log" / "output").open("ab") as output:
            self.daemon = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        wait_until(self._answers, START_SECONDS, f"libvirtd: {self.folder}/log")

    @property
    def _pid_file(self) -> str:
        return f"{self.folder}/libvirtd.pid"

    def _answers(self) -> bool:
        if self.daemon is None or self.daemon.poll() is not None:
            raise RuntimeError(f"libvirtd did not start: {(self.folder / 'log' / 'output').read_text()}")
        try:
            libvirt.open(self.uri).close()
        except libvirt.libvirtError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal: SIGSTOP makes it hang, SIGCONT go on."""
        self.run("kill", f"-{number.value}", Path(self._pid_file).read_text().strip())

    def kill(self) -> None:
        """End the daemon at once; its guests go on running."""
        self.signal(signal.SIGKILL)
        if self.daemon is not None:
            # nsenter stops together with what it started, and then would not see its end.
            self.daemon.send_signal(signal.SIGCONT)
            self.daemon.wait(20)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """The daemon takes connections and answers nothing."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    @contextmanager
    def down(self) -> Iterator[None]:
        """The daemon is dead meanwhile."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """A connection of the test's own."""
        opened = libvirt.open(self.uri)
        try:
            yield opened
        finally:
            opened.close()

    def define(self, name: str, *, start: bool = True, paused: bool = False, **parts: Any) -> str:
        """Define a guest (see `guest_xml`), start it if asked to, and return its UUID."""
        with self.connection() as connection:
            domain = connection.defineXML(guest_xml(name, **parts))
            if start:
                domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
            return domain.UUIDString()

    def clear(self) -> None:
        """Remove every guest, and every filter that the daemon did not come with."""
        with self.connection() as connection:
            for domain in connection.listAllDomains():
                if domain.isActive():
                    domain.destroy()
                if domain.isPersistent():
                    flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    domain.undefineFlags(flags)
            self._clear_filters(connection)

    def _clear_filters(self, connection: Any) -> None:
        own = {path.stem for path in Path("/etc/libvirt/nwfilter").glob("*.xml")}
        left = [one for one in connection.listAllNWFilters() if one.name() not in own]
        while left:
            # Whoever is referenced by another can go only after it.
            before, left = left, [one for one in left if not _undefined(one)]
            if len(left) == len(before):
                raise RuntimeError(f"filters that cannot be removed: {[one.name() for one in left]}")


def _undefined(nwfilter: Any) -> bool:
    try:
        nwfilter.undefine()
    except libvirt.libvirtError:
        return False
    return True


@contextmanager
def libvirt_server() -> Iterator[LibvirtServer]:
    """Start a libvirtd of one's own; needs root, as the network filters do.

    Raises:
        RuntimeError: it cannot be started here.
    """
    if shutil.which("libvirtd") is None:
        raise RuntimeError("libvirtd is not installed: run scripts/install-servers.sh")
    folder = Path(tempfile.mkdtemp(prefix="ops_libvirt_"))
    for name in ("sock", "lib", "cache", "log"):
        (folder / name).mkdir()
    shutil.copytree("/etc/libvirt", folder / "etc")
    (folder / "etc" / "qemu.conf").write_text(_QEMU_SETTINGS)
    (folder / "libvirtd.conf").write_text(_DAEMON_SETTINGS.format(folder=folder, uuid=uuids.uuid4()))
    Path("/run/libvirt").mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    holder = subprocess.Popen(
        [*command, "bash", "-c", _PREPARE, "bash", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        if holder.stdout is None or holder.stdout.readline() != b"ready\n":
            _, errors = holder.communicate(timeout=20)
            raise RuntimeError(f"no namespaces for libvirtd (are you root?): {errors.decode()}")
        server = LibvirtServer(folder, holder)
        server.start()
        yield server
    finally:
        holder.kill()
        holder.wait()
        shutil.rmtree(folder, ignore_errors=True)


def guest_xml(
    name: str, *, uuid: str = "", interfaces: Sequence[str] = (), devices: Sequence[str] = (), metadata: str = ""
) -> str:
    """A guest that starts in a second and then does nothing: 32 MiB, no disk, QEMU's software emulation.

    Args:
        name: of the domain.
        uuid: of the domain; libvirt makes one when it is empty.
        interfaces: see `interface_xml`.
        devices: further elements of `<devices>`.
        metadata: the content of `<metadata>`.
    """
    parts = "".join((*interfaces, *devices))
    return f"""<domain type='qemu'>
  <name>{escape(name)}</name>{f"<uuid>{uuid}</uuid>" if uuid else ""}
  {f"<metadata>{metadata}</metadata>" if metadata else ""}
  <memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{parts}<memballoon model='none'/></devices>
</domain>"""


def interface_xml(mac: str, device: str, filter_name: str = "", parameters: Sequence[tuple[str, str]] = ()) -> str:
    """A network interface on a tap device `device`, with a filter that libvirt really applies to it."""
    given = "".join(f"<parameter name={quoteattr(key)} value={quoteattr(value)}/>" for key, value in parameters)
    filterref = f"<filterref filter={quoteattr(filter_name)}>{given}</filterref>" if filter_name else ""
    # Without its boot ROM a guest does not spend its first 15 seconds of CPU on looking for a network to boot from.
    return (
        f"<interface type='ethernet'><mac address='{mac}'/><target dev='{device}'/>{filterref}"
        "<model type='virtio'/><rom bar='off'/></interface>"
    )


@dataclass(frozen=True)
class TestDomain:
    """A domain of the test driver; `state` as libvirt numbers states (1 running, 3 paused, 5 shut off)."""

    __test__ = False

    name: str
    state: int = 1
    uuid: str = ""
    transient: bool = False
    managed_save: bool = False
    devices: str = ""


def test_node_xml(domains: Sequence[TestDomain], node_devices: Sequence[str] = ()) -> str:
    """The file of a `test:///path` host: its domains and node devices (`<device>` elements)."""
    devices = "".join(node_devices)
    return f"<node>{''.join(map(_test_domain, domains))}{devices}</node>"


test_node_xml.__test__ = False  # type: ignore[attr-defined]


def _test_domain(domain: TestDomain) -> str:
    uuid = domain.uuid or str(uuids.uuid5(uuids.NAMESPACE_URL, domain.name))
    extra = f"<test:runstate>{domain.state}</test:runstate>"
    extra += "<test:transient/>" if domain.transient else ""
    extra += "<test:hasmanagedsave/>" if domain.managed_save else ""
    return (
        "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>"
        f"<name>{escape(domain.name)}</name><uuid>{uuid}</uuid>{extra}<memory>32768</memory><vcpu>1</vcpu>"
        f"<os><type>hvm</type></os><devices>{domain.devices}</devices></domain>"
    )
