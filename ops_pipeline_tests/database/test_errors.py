"""Each way in which a database can fail, brought about for real: a message that says what to do, and no secret."""

from __future__ import annotations

import socket
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from ops_pipeline.database.engine import connect, reading, writing
from ops_pipeline.database.errors import Conflict, DatabaseProblem, Unreachable, explain
from ops_pipeline.database.migrate import migrate
from ops_pipeline_tests.servers import PostgresServer, free_port
from ops_pipeline_tests.unprivileged import as_nobody, open_folder

SECRET = "geheim"
INSERT = "INSERT INTO model_calls (id, model, called_at) VALUES ('{}', 'm', '2026-03-10 12:00:00')"
INSERT_MANY = (
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)"
    " INSERT INTO model_calls (id, model, called_at) SELECT 'x' || i, 'm', '2026-03-10' FROM n"
)
FULL = "DO $$ BEGIN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END $$"

Expected = tuple[type[DatabaseProblem], str, str]
"""The kind of a problem, what it says is wrong, and what it says to do."""

REACH = "Check that the server runs and that host and port in DATABASE_URL are right."
LOGIN = "Check user and password in DATABASE_URL."
MIGRATE = "Run `ops-pipeline migrate` with the same DATABASE_URL."
READ_ONLY = "Writing is not allowed there: check the file's owner and mode"
ABSURD = "A sum or value exceeds 64 bits: look for absurd tokens or credits in the calls of that hour."


def problem_of(url: str, statement: str = "SELECT 1", *, write: bool = False, pragma: str | None = None) -> Exception:
    """What a statement raises on a new engine; anything else than a problem fails the test."""
    engine = connect(url)
    if pragma:
        event.listen(engine, "connect", lambda connection, _: _run(connection, pragma))
    try:
        with pytest.raises(DatabaseProblem) as caught, (writing if write else reading)(engine) as connection:
            connection.execute(text(statement)).close()
    finally:
        engine.dispose()
    return caught.value


def _run(connection: Any, statement: str) -> None:
    connection.execute(statement).close()


def assert_says(problem: Exception, expected: Expected, place: str) -> None:
    kind, what, advice = expected
    assert type(problem) is kind
    assert what in str(problem)
    assert advice in str(problem)
    assert place in str(problem)
    assert SECRET not in "".join(traceback.format_exception(problem))


@dataclass(frozen=True)
class Guarded:
    """A migrated database on a server that asks some roles for their password."""

    server: PostgresServer
    database: str

    def url(self, user: str = "postgres", password: str = SECRET, database: str | None = None) -> str:
        """The URL for one of the roles."""
        return self.server.url(database or self.database, user, password)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server.port}"


@pytest.fixture(scope="module")
def guarded(postgres_server: PostgresServer) -> Guarded:
    url = postgres_server.new_database()
    engine = connect(url)
    migrate(engine)
    engine.dispose()
    postgres_server.execute("CREATE ROLE without_rights LOGIN")
    postgres_server.execute("CREATE ROLE reads_only LOGIN SUPERUSER")
    postgres_server.execute("ALTER ROLE reads_only SET default_transaction_read_only = on")
    postgres_server.execute("CREATE ROLE has_no_slot LOGIN CONNECTION LIMIT 0")
    postgres_server.guard_role("needs_password", "scram-sha-256", password=f"not {SECRET}")
    postgres_server.guard_role("turned_away", "reject")
    return Guarded(postgres_server, url.rpartition("/")[2])


@pytest.mark.parametrize(
    ("user", "password", "what", "advice"),
    [
        ("needs_password", SECRET, "password authentication failed", LOGIN),
        ("needs_password", "", "no password supplied", LOGIN),
        ("stranger", SECRET, 'role "stranger" does not exist', LOGIN),
        ("turned_away", SECRET, "rejects connection", "Allow this host, user and database in the server's pg_hba"),
        ("has_no_slot", SECRET, "too many connections", "Wait until other programs close connections"),
    ],
)
def test_a_login_that_postgresql_refuses(guarded: Guarded, user: str, password: str, what: str, advice: str) -> None:
    """An unknown user used to be told to check host and port."""
    assert_says(problem_of(guarded.url(user, password)), (Unreachable, what, advice), guarded.address)


def test_the_right_password_lets_in(guarded: Guarded) -> None:
    engine = connect(guarded.url("needs_password", f"not%20{SECRET}"))
    with reading(engine) as connection:
        assert connection.execute(text("SELECT current_user")).scalar_one() == "needs_password"
    engine.dispose()


def test_a_database_that_does_not_exist(guarded: Guarded) -> None:
    expected = (Unreachable, 'database "nowhere" does not exist', "Create the database, or correct its name")
    assert_says(problem_of(guarded.url(database="nowhere")), expected, guarded.address)


def test_a_port_on_which_nobody_listens() -> None:
    port = free_port()
    problem = problem_of(f"postgresql://ops:{SECRET}@127.0.0.1:{port}/ops")
    assert_says(problem, (Unreachable, "Connection refused", REACH), f"127.0.0.1:{port}")


def test_a_host_that_has_no_address() -> None:
    problem = problem_of(f"postgresql://ops:{SECRET}@no-such-host.invalid/ops")
    assert_says(problem, (Unreachable, "no-such-host.invalid", REACH), "postgresql+psycopg://ops:***@no-such-host")


def test_a_server_that_accepts_and_never_answers() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"postgresql://ops:{SECRET}@127.0.0.1:{listener.getsockname()[1]}/ops?connect_timeout=2"
        assert_says(problem_of(url), (Unreachable, "timeout", REACH), "127.0.0.1")


@pytest.mark.parametrize(
    ("user", "statement", "expected"),
    [
        ("postgres", "SELECT * FROM nowhere", (Unreachable, '"nowhere" does not exist', MIGRATE)),
        ("postgres", "SELECT absent FROM model_calls", (Unreachable, '"absent" does not exist', MIGRATE)),
        ("without_rights", "SELECT * FROM model_calls", (Unreachable, "permission denied", "Grant the role")),
        ("without_rights", INSERT.format("a"), (Unreachable, "permission denied", "Grant the role")),
        ("reads_only", INSERT.format("a"), (Unreachable, "read-only transaction", "this is the primary server")),
        ("postgres", "SELECT CAST(9223372036854775808 AS BIGINT)", (DatabaseProblem, "out of range", ABSURD)),
        ("postgres", "SELECT CAST(1e30 AS NUMERIC(20, 10))", (DatabaseProblem, "overflow", ABSURD)),
        ("postgres", "SELECT pg_terminate_backend(pg_backend_pid())", (Unreachable, "terminating", REACH)),
        ("postgres", FULL, (Unreachable, "could not extend file", "Free space on the database's disk")),
    ],
)
def test_a_statement_that_postgresql_refuses(guarded: Guarded, user: str, statement: str, expected: Expected) -> None:
    assert_says(problem_of(guarded.url(user), statement, write=True), expected, guarded.address)


def test_a_connection_that_breaks_in_the_middle_is_unreachable(guarded: Guarded) -> None:
    engine = connect(guarded.url())
    with pytest.raises(Unreachable) as caught, writing(engine) as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        guarded.server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
        connection.execute(text("SELECT 1"))
    assert_says(caught.value, (Unreachable, "terminating connection", REACH), guarded.address)
    engine.dispose()


@pytest.mark.parametrize("call_id", ["timeout-1", "disk is full", "connection refused", "no such table"])
def test_a_writers_own_words_are_not_taken_for_the_servers(engine: Engine, call_id: str) -> None:
    """A duplicate call named "timeout-1" stopped the job with advice to check host and port."""
    with writing(engine) as connection:
        connection.execute(text(INSERT.format(call_id)))
    with pytest.raises(IntegrityError), writing(engine) as connection:
        connection.execute(text(INSERT.format(call_id)))


def test_a_lock_that_is_not_given_in_time_is_a_conflict(guarded: Guarded) -> None:
    engine = connect(guarded.url())
    with writing(engine) as holder:
        holder.execute(text("LOCK TABLE usage_hours"))
        waiting = "SET LOCAL lock_timeout = '20ms'; LOCK TABLE usage_hours"
        problem = problem_of(guarded.url(), waiting, write=True)
    assert_says(problem, (Conflict, "lock timeout", "Try again."), guarded.address)
    engine.dispose()


@pytest.fixture
def file(sqlite_engine: Engine) -> str:
    """The path of a migrated SQLite database that nobody has open."""
    sqlite_engine.dispose()
    return str(sqlite_engine.url.database)


@pytest.mark.parametrize(
    ("statement", "pragma", "expected"),
    [
        ("SELECT * FROM nowhere", None, (Unreachable, "no such table: nowhere", MIGRATE)),
        ("SELECT absent FROM model_calls", None, (Unreachable, "no such column: absent", MIGRATE)),
        (INSERT.format("a"), "PRAGMA query_only = ON", (Unreachable, "readonly database", READ_ONLY)),
        (
            INSERT_MANY,
            "PRAGMA max_page_count = 100",
            (Unreachable, "disk is full", "Free space on the database's disk"),
        ),
        ("SELECT SUM(9223372036854775807) FROM (VALUES (1), (2))", None, (DatabaseProblem, "overflow", ABSURD)),
    ],
)
def test_a_statement_that_sqlite_refuses(file: str, statement: str, pragma: str | None, expected: Expected) -> None:
    problem = problem_of(f"sqlite:///{file}", statement, write=True, pragma=pragma)
    assert_says(problem, expected, f"sqlite:///{file}")


def test_a_full_disk_loses_nothing_that_was_committed(sqlite_engine: Engine) -> None:
    with writing(sqlite_engine) as connection:
        connection.execute(text(INSERT.format("kept")))
    problem_of(str(sqlite_engine.url), INSERT_MANY, write=True, pragma="PRAGMA max_page_count = 100")
    with reading(sqlite_engine) as connection:
        assert list(connection.execute(text("SELECT id FROM model_calls")).scalars()) == ["kept"]


def test_a_database_opened_for_reading_only_refuses_to_write(file: str) -> None:
    url = f"sqlite:///file:{file}?mode=ro&uri=true"
    problem = problem_of(url, INSERT.format("a"), write=True)
    assert_says(problem, (Unreachable, "readonly database", READ_ONLY), file)


def test_a_file_that_this_user_may_not_write_says_so() -> None:
    """The operator had migrated as root, and the daemon runs as somebody else."""
    with open_folder() as folder:
        url = f"sqlite:///{folder / 'operations.db'}"
        owned = connect(url)
        migrate(owned)
        owned.dispose()
        (folder / "operations.db").chmod(0o444)
        folder.chmod(0o555)

        def write() -> None:
            with writing(connect(url)) as connection:
                connection.execute(text(INSERT.format("a")))

        said = as_nobody(write, folder)
    assert said.startswith("Unreachable: ")
    assert READ_ONLY in said


@pytest.mark.parametrize(
    ("content", "what", "advice"),
    [
        (b"no database at all, but a letter. " * 500, "not a database", "no SQLite database: restore it."),
        (None, "unable to open database file", "Check that the folder exists and is writable by this user."),
    ],
)
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes | None, what: str, advice: str) -> None:
    path = tmp_path / "missing" / "x.db"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    assert_says(problem_of(f"sqlite:///{path}"), (Unreachable, what, advice), str(path))


def test_a_damaged_file_is_to_be_restored(file: str) -> None:
    damaged = bytearray(Path(file).read_bytes())
    damaged[100:5000] = bytes(4900)
    Path(file).write_bytes(damaged)
    problem = problem_of(f"sqlite:///{file}", "SELECT * FROM model_calls")
    assert_says(problem, (Unreachable, "malformed", "restore it."), file)


def test_a_write_lock_that_is_not_given_in_time_is_a_conflict(sqlite_engine: Engine) -> None:
    url = str(sqlite_engine.url)
    with writing(sqlite_engine):
        problem = problem_of(url, INSERT.format("a"), write=True, pragma="PRAGMA busy_timeout = 20")
    assert_says(problem, (Conflict, "database is locked", "Try again."), url)


def test_errors_of_other_kinds_are_left_as_they_are(engine: Engine) -> None:
    with pytest.raises(SQLAlchemyError, match="syntax error"), writing(engine) as connection:
        connection.execute(text("SELEKT 1"))
    assert explain(ValueError("something else"), "there") is None
    assert explain(ValueError(""), "there") is None
