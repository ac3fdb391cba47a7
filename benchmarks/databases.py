"""The databases that the benchmark runs on: a private PostgreSQL with settings as in production, or a SQLite file.

What belongs here: starting and stopping them, and the state that a fair measurement begins from.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, Table, create_engine, text

from ops_pipeline.database.engine import connect, sqlite_url
from ops_pipeline.database.migrate import migrate
from ops_pipeline.usage.tables import (
    daily_model_usage,
    hourly_model_latency,
    hourly_model_usage,
    monthly_model_usage,
    usage_days,
    usage_hour_attempts,
    usage_hours,
    usage_months,
)
from ops_pipeline_tests.servers import DEBIAN_BINARIES, PostgresServer, free_port

DATABASES = ("postgresql", "sqlite")
SETTINGS = "-c listen_addresses=127.0.0.1 -c max_connections=60 -c shared_buffers=1GB -c max_wal_size=8GB"
"""What anybody sets on a server of this size; all else is PostgreSQL's default, fsync and autovacuum included."""
ROLL_UPS: tuple[Table, ...] = (
    hourly_model_usage,
    hourly_model_latency,
    usage_hours,
    usage_hour_attempts,
    daily_model_usage,
    usage_days,
    monthly_model_usage,
    usage_months,
)


@dataclass(frozen=True)
class Database:
    """A migrated operations database."""

    name: str
    url: str
    engine: Engine
    folder: Path

    def version(self) -> str:
        """The version of the database program."""
        if self.name == "sqlite":
            return sqlite3.sqlite_version
        with self.engine.connect() as connection:
            return str(connection.scalar(text("SHOW server_version")))

    def bare_engine(self) -> Engine:
        """An engine without the project's settings: what a script of five lines would get."""
        return create_engine(self.url)

    def execute(self, *statements: str) -> None:
        """Run statements outside any transaction."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            raw = connection.connection.cursor()
            for statement in statements:
                raw.execute(statement)
            raw.close()

    def empty(self) -> None:
        """Forget everything that was aggregated, and settle."""
        names = [table.name for table in ROLL_UPS]
        if self.name == "postgresql":
            self.execute(f"TRUNCATE {', '.join(names)}")
        else:
            self.execute(*(f"DELETE FROM {name}" for name in names))
        self.settle()

    def settle(self) -> None:
        """Finish what the last measurement left behind, so that the next one does not pay for it."""
        if self.name == "postgresql":
            # What autovacuum would do within a minute or two, and then nothing of it falls into a measurement.
            self.execute(*(f"VACUUM (ANALYZE) {table.name}" for table in ROLL_UPS), "CHECKPOINT")
        else:
            self.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def wal_bytes(self) -> int:
        """The position in the write-ahead log; 0 on SQLite, whose log starts over all the time."""
        if self.name == "sqlite":
            return 0
        with self.engine.connect() as connection:
            return int(connection.scalar(text("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")) or 0)

    def cpu_seconds(self) -> float:
        """Processor time so far of this process, of its children that ended, and of the server with all it started.

        On a machine that others use as well, this says more than wall time does.
        """
        own = os.times()
        total = own.user + own.system + own.children_user + own.children_system
        if self.name == "sqlite":
            return total
        server = int((self.folder / "postgresql/data/postmaster.pid").read_text().split()[0])
        return total + sum(_ticks(Path("/proc"), server)) / os.sysconf("SC_CLK_TCK")


def _ticks(proc: Path, server: int) -> Iterator[int]:
    """The processor time of a server and its children, in ticks; nothing where there is no /proc."""
    for file in proc.glob("[0-9]*/stat"):
        try:
            process, _, rest = file.read_text().rpartition(")")
        except OSError:
            continue  # it ended meanwhile, and its parent has its time
        fields = rest.split()
        ended = fields[13:15] if process.split()[0] == str(server) else []
        if ended or fields[1] == str(server):
            yield sum(map(int, fields[11:13] + ended))


@contextmanager
def database(name: str, folder: Path) -> Generator[Database, None, None]:
    """Start a database whose files live in a folder, and migrate it; files that are there already are used.

    Args:
        name: `postgresql` or `sqlite`.
        folder: an absolute path; the server's user must be able to reach it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _postgresql_url(folder / "postgresql") if name == "postgresql" else _sqlite_url(folder) as url:
        engine = connect(url)
        try:
            migrate(engine)
            yield Database(name, url, engine, folder)
        finally:
            engine.dispose()


@contextmanager
def _sqlite_url(folder: Path) -> Generator[str, None, None]:
    yield sqlite_url(folder)


@contextmanager
def _postgresql_url(folder: Path) -> Generator[str, None, None]:
    binaries = sorted(Path("/").glob(DEBIAN_BINARIES.lstrip("/")))
    if not binaries:
        raise RuntimeError("PostgreSQL is not installed: run scripts/install-servers.sh")
    server = PostgresServer(free_port(), folder, binaries[-1])
    folder.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    if not (folder / "data").exists():
        server.control("-o", "--username=postgres --auth=trust --no-sync", "initdb")
    server.control("-o", f"-p {server.port} -k {folder} {SETTINGS}", "-l", str(folder / "log"), "start")
    try:
        yield server.url()
    finally:
        server.control("-m", "fast", "stop")
