"""The way in as it is shipped: the real nginx before two real web servers, privately on free ports.

What belongs here: starting, stopping, and asking over TLS.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import DagsterInstance

from ops_pipeline_tests.integration.processes import BIN, PROJECT, environment
from ops_pipeline_tests.servers import free_port, wait_until

NAME = "ops.example.org"
LOGINS = {"alice": "all1ce's", "bob": "b0b's", "ALICE": "another"}
"""alice is an operator."""
JOBS = """
from dagster import Definitions, StaticPartitionsDefinition, asset, define_asset_job, job, op, schedule

@op
def nothing(): ...

@job
def harmless(): nothing()

@schedule(job=harmless, cron_schedule="0 0 1 1 *")
def yearly(): ...

@asset(partitions_def=StaticPartitionsDefinition(["a", "b"]))
def letters() -> None: ...

defs = Definitions(
    assets=[letters], jobs=[harmless, define_asset_job("letters_job", selection=[letters])], schedules=[yearly]
)
"""
INSTANCE = """
telemetry: {enabled: false}
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
"""


@dataclass(frozen=True)
class Gate:
    """A running nginx with what stands behind it.

    Attributes:
        port: of TLS.
        plain_port: of plain HTTP.
        certificate: who is trusted.
        direct: the ports of the web servers behind, for what a test must see from within.
        folder: of all files.
    """

    port: int
    plain_port: int
    certificate: Path
    direct: Mapping[str, int]
    folder: Path

    def headers(self, user: str | None, password: str | None = None) -> dict[str, str]:
        """The login of a user, with their own password unless told."""
        if user is None:
            return {}
        pair = f"{user}:{LOGINS.get(user, '') if password is None else password}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}

    def ask(
        self,
        path: str,
        user: str | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request as it stands: no path is tidied up on the way."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=30, context=self._context(), source_address=(source, 0)
        )
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            given = {"Host": f"{NAME}:{self.port}"} | self.headers(user) | dict(headers or {})
            if body is not None:
                given |= {"Content-Length": str(len(body))}
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.msg, answer.read()
        finally:
            connection.close()

    def graphql(self, user: str, query: str, *, status: int = 200, **variables: Any) -> dict[str, Any]:
        """Ask GraphQL as the UI does, and expect this status."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        headers = {"Content-Type": "application/json", "Origin": f"https://{NAME}:{self.port}"}
        found, _, answer = self.ask("/graphql", user, method="POST", body=body, headers=headers)
        assert found == status, (found, answer)
        return json.loads(answer)

    def handshake(self, user: str | None, path: str = "/graphql", origin: str | None = None) -> tuple[int, bytes]:
        """Open a WebSocket and greet; the status, and the first bytes that come back after it."""
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {NAME}:{self.port}",
            f"Origin: {origin or f'https://{NAME}:{self.port}'}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Protocol: graphql-ws",
            *(f"{name}: {value}" for name, value in self.headers(user).items()),
        ]
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=30) as plain,
            self._context().wrap_socket(plain, server_hostname=NAME) as connection,
        ):
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            answer = connection.recv(4096)
            status = int(answer.split()[1])
            if status != 101:
                return status, b""
            greeting = b'{"type": "connection_init", "payload": {}}'
            mask = b"\0\0\0\0"
            connection.sendall(bytes([0x81, 0x80 | len(greeting)]) + mask + greeting)
            return status, connection.recv(4096)

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.check_hostname = False
        return context


@contextmanager
def gate(folder: Path) -> Iterator[Gate]:
    """Two web servers on one home, and nginx with the shipped file before them."""
    ports = {"operators": free_port(), "viewers": free_port()}
    running = Gate(free_port(), free_port(), folder / "certificate.pem", ports, folder)
    home = folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(INSTANCE)
    with DagsterInstance.from_config(str(home)) as instance:
        # Two that make the tables of a new home at once are in each other's way.
        assert instance.get_runs_count() == len(instance.all_instigator_state()) == 0
    (folder / "jobs.py").write_text(JOBS)
    with ExitStack() as stack:
        for who, flags in (("operators", []), ("viewers", ["--read-only"])):
            server = [str(BIN / "dagster-webserver"), "-h", "127.0.0.1", "-p", str(ports[who]), "-f", "jobs.py", *flags]
            stack.enter_context(_process(server, folder, folder / f"{who}.log", environment(home)))
        alive = free_port()
        stack.enter_context(_process([sys.executable, "-c", LIVEZ, str(alive)], folder, folder / "livez.log", None))
        configuration = _configure(running, alive)
        nginx = ["nginx", "-c", str(configuration), "-e", str(folder / "error.log")]
        subprocess.run([*nginx, "-t"], check=True, capture_output=True)
        stack.enter_context(_process([*nginx, "-g", "daemon off;"], folder, folder / "nginx.log", None))
        for port in (*ports.values(), alive, running.port, running.plain_port):
            wait_until(lambda port=port: _answers(port), 120, f"port {port} to answer; logs in {folder}")
        yield running


LIVEZ = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/livez" else 500)
        self.end_headers()
        self.wfile.write(b"alive")
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def _configure(running: Gate, alive: int) -> Path:
    """The shipped file, with nothing changed but ports and places; each change must find its text."""
    folder = running.folder
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"),
            *("-keyout", str(folder / "key.pem"), "-out", str(running.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    users = [f"{user}:{_hashed(password)}\n" for user, password in LOGINS.items()]
    (folder / "users.htpasswd").write_text("".join(users))
    (folder / "operators.map").write_text('"~^alice$" ops_operators;\n')
    (folder / "reports").mkdir()
    (folder / "reports" / "usage-2026-11-21.html").write_text("<h1>LLM usage</h1>")
    (folder / "secret.txt").write_text("not a report")
    text = (PROJECT / "deploy" / "nginx" / "ops-pipeline.conf").read_text()
    for shipped, here in {
        "listen 443 ssl": f"listen 127.0.0.1:{running.port} ssl",
        "listen 80;": f"listen 127.0.0.1:{running.plain_port};",
        "127.0.0.1:3000": f"127.0.0.1:{running.direct['operators']}",
        "127.0.0.1:3001": f"127.0.0.1:{running.direct['viewers']}",
        "127.0.0.1:9464": f"127.0.0.1:{alive}",
        "/etc/ops_pipeline/nginx/": f"{folder}/",
        "/var/lib/ops_pipeline/reports/": f"{folder}/reports/",
    }.items():
        assert shipped in text, shipped
        text = text.replace(shipped, here)
    (folder / "site.conf").write_text(text)
    temporary = "".join(
        f"    {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(
        # Root's nginx would hand over to a user that may not look into the tests' folder.
        f"{'user root;' if os.geteuid() == 0 else ''}\npid {folder}/nginx.pid;\nworker_processes 1;\n"
        f"error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\n{temporary}    access_log {folder}/access.log;\n    include {folder}/site.conf;\n}}\n"
    )
    return configuration


def _hashed(password: str) -> str:
    command = ["openssl", "passwd", "-6", "-stdin"]
    return subprocess.run(command, input=password, text=True, check=True, capture_output=True).stdout.strip()


@contextmanager
def _process(command: list[str], folder: Path, log: Path, variables: dict[str, str] | None) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
