"""Private servers for tests: started on free loopback ports, stopped at the end.

What belongs here: starting and stopping. What does not: fixtures (see `conftest`).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

DEBIAN_BINARIES = "/usr/lib/postgresql/*/bin"


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on at the moment.

    Below those from which outgoing connections get theirs: one of them took a port before its server could.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class PostgresServer:
    """A running private PostgreSQL."""

    port: int
    folder: Path
    binaries: Path

    def url(self, database: str = "postgres", user: str = "postgres", password: str = "") -> str:
        """The SQLAlchemy URL of one of its databases."""
        login = f"{user}:{password}" if password else user
        return f"postgresql+psycopg://{login}@127.0.0.1:{self.port}/{database}"

    def new_database(self, template: str = "template1") -> str:
        """Create an empty database, or a copy of another one, and return its URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database of `new_database`, whoever is still connected."""
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside any transaction."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname=database, autocommit=True
        ) as connection:
            connection.execute(statement)

    def guard_role(self, name: str, method: str, password: str = "") -> None:
        """Create a role for which pg_hba.conf asks for `method`, such as `scram-sha-256` or `reject`."""
        self.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all {name} 127.0.0.1/32 {method}\n{rules.read_text()}")
        before = self._loaded_at()
        self.control("reload")
        wait_until(lambda: self._loaded_at() > before, 10, "pg_hba.conf to be loaded")

    def _loaded_at(self) -> Any:
        with psycopg.connect(host="127.0.0.1", port=self.port, user="postgres") as connection:
            row = connection.execute("SELECT pg_conf_load_time()").fetchone()
        return row[0] if row else None

    def control(self, *arguments: str) -> None:
        """Run pg_ctl, for example to stop and start the server in the middle of a test."""
        _as_postgres([str(self.binaries / "pg_ctl"), "-D", str(self.folder / "data"), "-w", *arguments])


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """Start a PostgreSQL of one's own; durability off, since nothing outlives the tests."""
    folders = sorted(Path("/").glob(DEBIAN_BINARIES.lstrip("/")))
    if not folders:
        raise RuntimeError("PostgreSQL is not installed: run scripts/install-servers.sh")
    folder = Path(tempfile.mkdtemp(prefix="ops_pipeline_pg_", dir=_memory()))
    server = PostgresServer(free_port(), folder, folders[-1])
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    try:
        _as_postgres(
            [str(server.binaries / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-N"]
        )
        options = f"-p {server.port} -k {folder} -c fsync=off -c max_connections=60 -c listen_addresses=127.0.0.1"
        server.control("-o", options, "-l", str(folder / "log"), "start")
        yield server
    finally:
        subprocess.run(  # a test may have stopped it already
            _command([str(server.binaries / "pg_ctl"), "-D", str(folder / "data"), "-m", "immediate", "stop"]),
            check=False,
            capture_output=True,
        )
        shutil.rmtree(folder, ignore_errors=True)


def _memory() -> str | None:
    """The folder that lies in memory, if it is large: a database created there costs a third of one on disk."""
    shared = Path("/dev/shm")  # noqa: S108
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 4 * 2**30 else None


def _as_postgres(command: list[str]) -> None:
    result = subprocess.run(_command(command), capture_output=True, text=True, check=False, cwd="/")
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stdout}{result.stderr}")


def _command(command: list[str]) -> list[str]:
    # PostgreSQL refuses to run as root.
    return (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        if os.geteuid() == 0
        else command
    )


def wait_until(condition: object, seconds: float, what: str) -> None:
    """Wait until `condition()` is true.

    Raises:
        TimeoutError: it did not become true in time; `what` says what was waited for.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.2)
    raise TimeoutError(f"waited {seconds} s in vain for {what}")
