"""Real processes and servers for tests of services: they hang, lie, crash and come back on demand.

What belongs here: starting and stopping, and the ways to misbehave. What does not: anything that a look makes of it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import psutil

from ops_pipeline.services.registry import Registry, Service
from ops_pipeline_tests.checkpoints.redis_servers import until
from ops_pipeline_tests.servers import free_port

PASSWORD = "s3cret-5e2f0b7c"
SILENT_START = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no")


# Services


def service(name: str, check: Mapping[str, Any], **fields: Any) -> Service:
    """A service that waits for nothing longer than it must."""
    values = {
        "name": name,
        "description": name,
        "recovery": "none",
        "check": dict(check),
        "timeout_seconds": 2,
        "down_after": 2,
        "up_after": 1,
        "wait_seconds": 0,
        "start_grace_seconds": 0.4,
        "action_timeout_seconds": 5,
    }
    return Service.model_validate(values | fields)


def restarted_by(name: str, check: Mapping[str, Any], *command: str, **fields: Any) -> Service:
    """A service that a command restarts."""
    return service(name, check, recovery="auto", action={"kind": "command", "command": command}, **fields)


def registry(*services: Service, **fields: Any) -> Registry:
    """Services among which as many may fail at once as there are."""
    return Registry(services=services, **({"mass_failure_fewest": 100} | fields))


# Processes that can be hung and killed


def hang(*numbers: int) -> None:
    """Stop processes in the middle of what they do."""
    for number in numbers:
        os.kill(number, signal.SIGSTOP)
    for number in numbers:
        until(lambda number=number: psutil.Process(number).status() == psutil.STATUS_STOPPED, f"{number} to hang")


def go_on(*numbers: int) -> None:
    """Let stopped processes go on."""
    for number in numbers:
        os.kill(number, signal.SIGCONT)


def alive(number: int) -> bool:
    """Whether a process lives; a dead one that nobody took notice of does not."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Daemon:
    """A redis-server that daemonizes, as an init script would start it: nobody is its parent."""

    folder: Path
    port: int = field(default_factory=free_port)
    options: Sequence[str] = ()

    @property
    def pidfile(self) -> Path:
        """The file with its number."""
        return self.folder / "redis.pid"

    @property
    def url(self) -> str:
        """Its URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def start_command(self) -> str:
        """What starts it, for a shell."""
        place = f"--dir {self.folder} --logfile {self.folder}/redis.log --pidfile {self.pidfile}"
        options = " ".join(option or "''" for option in (*SILENT_START, *self.options))
        return f"redis-server --port {self.port} --daemonize yes {place} {options}"

    @property
    def restart_script(self) -> Path:
        """A script that kills it, whatever it does, and starts it; every call leaves a line in `restarts`."""
        path = self.folder / "restart.sh"
        path.write_text(
            f"#!/bin/sh\necho restarting >> {self.folder}/restarts\n"
            f"if [ -e {self.pidfile} ]; then kill -9 $(cat {self.pidfile}); rm {self.pidfile}; sleep 0.1; fi\n"
            f"exec {self.start_command}\n"
        )
        path.chmod(0o755)
        return path

    @property
    def restarts(self) -> int:
        """How often the script has run."""
        path = self.folder / "restarts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def number(self) -> int:
        """Its process."""
        return int(self.pidfile.read_text())

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        subprocess.run(["sh", "-c", self.start_command], check=True, capture_output=True)
        until(lambda: self.pidfile.exists() and takes_connections(self.port), "redis-server")

    def kill(self) -> None:
        """End at once; it leaves its pidfile behind."""
        number = self.number
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        until(lambda: not alive(number), "redis-server to end")


@contextmanager
def redis_daemon(*options: str) -> Iterator[Daemon]:
    """A running Redis that a script can restart."""
    folder = Path(tempfile.mkdtemp(prefix="ops_services_"))
    daemon = Daemon(folder, options=options)
    try:
        daemon.start()
        yield daemon
    finally:
        if daemon.pidfile.exists():
            daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def takes_connections(port: int) -> bool:
    """Whether somebody listens on a port."""
    with socket.socket() as line:
        line.settimeout(1)
        return line.connect_ex(("127.0.0.1", port)) == 0


# Servers that misbehave

Behaviour = Callable[[socket.socket, threading.Event], None]


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256
    block_on_close = False
    behaviour: Behaviour
    stopping: threading.Event
    context: ssl.SSLContext | None = None
    met = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Whoever looks goes when the deadline comes; anything else is a mistake of a test.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Talk(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.server.met += 1
        line = self.request
        if self.server.context is not None:
            line = self.server.context.wrap_socket(line, server_side=True)
        with line:
            self.server.behaviour(line, self.server.stopping)


@contextmanager
def serving(behaviour: Behaviour, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A TCP server that treats every connection alike; gives its port."""
    server = _Server(("127.0.0.1", 0), _Talk)
    server.behaviour, server.stopping, server.context = behaviour, threading.Event(), context
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def full_port() -> Iterator[int]:
    """A port whose queue of connections is full: the next one hangs in the air, as at a stopped server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = []
        try:
            for _ in range(3):
                line = socket.socket()
                line.setblocking(False)
                line.connect_ex(("127.0.0.1", port))
                waiting.append(line)
            yield port
        finally:
            for line in waiting:
                line.close()


def silent(line: socket.socket, stopping: threading.Event) -> None:
    """Take the connection, and say nothing."""
    stopping.wait(20)


def hanging_up(line: socket.socket, stopping: threading.Event) -> None:
    """Take the connection, and drop it."""


def saying(answer: bytes, delay: float = 0) -> Behaviour:
    """Answer whatever was asked with these bytes, after a while."""

    def behave(line: socket.socket, stopping: threading.Event) -> None:
        line.recv(65_536)
        stopping.wait(delay)
        line.sendall(answer)

    return behave


def page(body: str = "all is well", status: int = 200, headers: str = "", delay: float = 0) -> Behaviour:
    """Answer with a page."""
    head = f"HTTP/1.1 {status} whatever\r\nContent-Length: {len(body.encode())}\r\nConnection: close\r\n{headers}\r\n"
    return saying(head.encode() + body.encode(), delay)


def endless(
    head: bytes = b"HTTP/1.1 200 OK\r\n\r\n",
    piece: bytes = b"x" * 65_536,
    every: float = 0,
    sent: list[int] | None = None,
) -> Behaviour:
    """Answer without end, until nobody listens; the sizes of what was sent are kept in `sent`."""

    def behave(line: socket.socket, stopping: threading.Event) -> None:
        line.recv(65_536)
        line.sendall(head)
        while not stopping.is_set():
            line.sendall(piece)
            if sent is not None:
                sent.append(len(piece))
            if every:
                stopping.wait(every)

    return behave


def web_socket(*frames: bytes, delay: float = 0, farewell: bool = True) -> Behaviour:
    """Shake hands as a WebSocket server, wait for a message, and send these frames."""

    def behave(line: socket.socket, stopping: threading.Event) -> None:
        asked = line.recv(65_536).decode()
        key = next(one.split(": ")[1] for one in asked.split("\r\n") if one.lower().startswith("sec-websocket-key:"))
        accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())  # noqa: S324
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        line.sendall(f"{head}Sec-WebSocket-Accept: {accept.decode()}\r\n\r\n".encode())
        line.recv(65_536)
        stopping.wait(delay)
        for frame in frames:
            line.sendall(frame)
        if not farewell:
            stopping.wait(20)

    return behave


def frame(text: str, kind: int = 1) -> bytes:
    """A whole message of a WebSocket server."""
    body = text.encode()
    size = len(body)
    if size < 126:
        length = bytes([size])
    else:
        length = b"\x7e" + size.to_bytes(2, "big") if size < 65_536 else b"\x7f" + size.to_bytes(8, "big")
    return bytes([0x80 | kind]) + length + body


@contextmanager
def certificate(days: int = 2) -> Iterator[tuple[ssl.SSLContext, Path]]:
    """What a server on 127.0.0.1 needs for TLS, and the certificate that it signed itself."""
    folder = Path(tempfile.mkdtemp(prefix="ops_services_tls_"))
    key, path = folder / "key.pem", folder / "certificate.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", str(days)]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *names]
    try:
        subprocess.run([*made, "-keyout", str(key), "-out", str(path)], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path, key)
        yield context, path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# systemd, which does not run where tests run


@dataclass(frozen=True)
class Systemctl:
    """A `systemctl` on PATH that tells what is written for each unit, and can start real services."""

    folder: Path

    def unit(self, name: str, active: str = "active", sub: str = "running", **properties: str) -> None:
        """What `systemctl show` tells about a unit from now on."""
        found = {"LoadState": "loaded", "ActiveState": active, "SubState": sub, "UnitFileState": "enabled"}
        found |= {"Result": "success", "NRestarts": "0", "TriggeredBy": ""} | properties
        (self.folder / f"{name}.show").write_text("".join(f"{key}={value}\n" for key, value in found.items()))

    def on_restart(self, name: str, script: str) -> None:
        """What `systemctl restart` does to a unit."""
        (self.folder / f"{name}.restart").write_text(script)

    def fails(self, message: str, status: int = 1) -> None:
        """From now on it only tells why it does not work."""
        (self.folder / "systemctl").write_text(f'#!/bin/sh\necho "{message}" >&2\nexit {status}\n')

    def hangs(self) -> None:
        """From now on it never answers."""
        (self.folder / "systemctl").write_text("#!/bin/sh\nsleep 30\n")

    @property
    def restarted(self) -> list[str]:
        """The units that were restarted, in order."""
        path = self.folder / "log"
        return path.read_text().split() if path.exists() else []


@contextmanager
def scripted_systemctl() -> Iterator[Systemctl]:
    """A `systemctl` before the real one on PATH."""
    folder = Path(tempfile.mkdtemp(prefix="ops_systemctl_"))
    script = folder / "systemctl"
    script.write_text(
        f'#!/bin/sh\ncd {folder}\nif [ "$1" = show ]; then cat "$2.show" 2>/dev/null || '
        'echo "LoadState=not-found\nActiveState=inactive"; exit 0; fi\n'
        'echo "$2" >> log\n[ -e "$2.restart" ] || { echo "Failed to restart $2: Unit not found." >&2; exit 5; }\n'
        'exec sh "./$2.restart"\n'
    )
    script.chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}:{before}"
    try:
        yield Systemctl(folder)
    finally:
        os.environ["PATH"] = before
        shutil.rmtree(folder, ignore_errors=True)


# supervisord, a real one


@dataclass(frozen=True)
class Supervisor:
    """A running supervisord."""

    url: str
    process: subprocess.Popen[bytes]

    def info(self, program: str) -> dict[str, Any]:
        """What it knows of a program."""
        found: Any = ServerProxy(self.url).supervisor.getProcessInfo(program)
        return found


@contextmanager
def supervisord(programs: Mapping[str, str]) -> Iterator[Supervisor]:
    """A supervisord that runs these commands and never restarts them by itself."""
    folder = Path(tempfile.mkdtemp(prefix="ops_supervisord_"))
    port = free_port()
    text = (
        f"[supervisord]\nnodaemon=true\nlogfile={folder}/log\npidfile={folder}/pid\nchildlogdir={folder}\n"
        f"[inet_http_server]\nport=127.0.0.1:{port}\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
    )
    for name, command in programs.items():
        text += f"[program:{name}]\ncommand={command}\nautorestart=false\nstartsecs=0\nstopwaitsecs=1\n"
    (folder / "supervisord.conf").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(folder / "supervisord.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        until(lambda: takes_connections(port), f"supervisord: {folder / 'log'}")
        yield Supervisor(f"http://127.0.0.1:{port}/RPC2", process)
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if alive(process.pid) else []
        process.kill()
        process.wait()
        for one in below:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        shutil.rmtree(folder, ignore_errors=True)
