"""What can go wrong with the database, told to a person: what is wrong, where, and what to do.

What belongs here: translation of driver errors into `DatabaseProblem`, and masking of secrets in URLs.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

SECRET_PARAMETERS = frozenset({"password", "sslpassword", "passfile"})


class DatabaseProblem(Exception):
    """The database refused or could not be reached; the message says what to do."""


class Unreachable(DatabaseProblem):
    """The database cannot be used at all just now: nothing was looked at, and nothing else will work either."""


class Conflict(DatabaseProblem):
    """Another transaction wrote the same rows at the same time: the whole transaction may be tried again."""


def masked(url: str | URL) -> str:
    """The URL with its password, and any secret among its parameters, replaced by `***`."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not a URL at all: show nothing of it, a password may stand anywhere in it.
        return "***"
    if "@" in (parsed.host or ""):
        # The rest of a password with an unescaped @ stands before the host.
        return "***"
    query = {key: "***" if key.lower() in SECRET_PARAMETERS else value for key, value in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def explain(error: BaseException, where: str) -> DatabaseProblem | None:
    """The problem behind a driver's error, or None when it is not one of the known kinds.

    Args:
        error: the DB-API exception of psycopg or sqlite3.
        where: the masked URL.
    """
    state = getattr(error, "sqlstate", None)
    text = str(error).strip()
    if state in {"40001", "40P01", "55P03"} or "database is locked" in text:
        return Conflict(f"Another transaction holds the same rows of {where}: {_first_line(text)}. Try again.")
    # With a state the text may hold a writer's own words: the id of a duplicate row may be "timeout-1".
    known_by = state or text
    for kind, pattern, advice in _KNOWN:
        if re.search(pattern, known_by, re.IGNORECASE):
            return kind(f"{_first_line(text)} ({where}). {advice}")
    return None


_KNOWN: tuple[tuple[type[DatabaseProblem], str, str], ...] = (
    (
        Unreachable,
        r"no such table|no such column|^42P01|^42703",
        "Run `ops-pipeline migrate` with the same DATABASE_URL.",
    ),
    (
        Unreachable,
        r"readonly database|^25006",
        "Writing is not allowed there: check the file's owner and mode, or that this is the primary server and the"
        " role may write.",
    ),
    (
        Unreachable,
        r"^42501",
        "Grant the role in DATABASE_URL its rights, or use the role that owns the tables.",
    ),
    (
        Unreachable,
        r"disk is full|^53100|No space left",
        "Free space on the database's disk, then run the job again.",
    ),
    (
        Unreachable,
        r"unable to open database file",
        "Check that the folder exists and is writable by this user.",
    ),
    (
        Unreachable,
        r"file is not a database|malformed",
        "The file is damaged or no SQLite database: restore it.",
    ),
    (
        DatabaseProblem,
        r"integer overflow|^22003|out of range",
        "A sum or value exceeds 64 bits: look for absurd tokens or credits in the calls of that hour.",
    ),
    (
        Unreachable,
        r"password authentication failed|no password supplied|role \".*\" does not exist|^28",
        "Check user and password in DATABASE_URL.",
    ),
    (
        Unreachable,
        r"database \".*\" does not exist|^3D000",
        "Create the database, or correct its name in DATABASE_URL.",
    ),
    (
        Unreachable,
        r"pg_hba\.conf",
        "Allow this host, user and database in the server's pg_hba.conf.",
    ),
    (
        Unreachable,
        r"too many (clients|connections)|connection slots|^53300",
        "Wait until other programs close connections, or raise the server's or the role's limit.",
    ),
    (
        Unreachable,
        r"connection refused|could not translate|resolve host|name or service|timeout|timed out|"
        r"server closed the connection|connection failed|^57P0|^08|connection is closed|terminating connection",
        "Check that the server runs and that host and port in DATABASE_URL are right.",
    ),
)


def _first_line(text: str) -> str:
    return (text.splitlines() or ["no message"])[0].rstrip(".")


def unusable_url(url: str, reason: Any) -> DatabaseProblem:
    """The problem of a DATABASE_URL that names no usable database."""
    return DatabaseProblem(
        f"DATABASE_URL {masked(url)} is not usable: {reason}. Write postgresql+psycopg://user:password@host:5432/name"
        " or sqlite:////absolute/path.db"
    )
