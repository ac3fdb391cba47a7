"""Many rows of a query as CSV, straight from PostgreSQL: no object is made of any row.

What belongs here: COPY, and what its text means. SQLite has nothing like it, and nothing to gain: it runs within the
process.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import psycopg
from sqlalchemy import Connection

from ops_pipeline.database.errors import DatabaseProblem, explain, masked
from ops_pipeline.database.types import Rows


def copies(connection: Connection) -> bool:
    """Whether `copied` can be used."""
    return connection.dialect.name == "postgresql"


def copied(
    connection: Connection, query: Rows, block_bytes: int, parameters: Mapping[str, Any] | None = None
) -> Generator[bytes, None, None]:
    """The rows of a query as UTF-8 CSV, in blocks of whole lines: NULL is nothing, an empty text is quoted.

    Args:
        connection: a transaction on PostgreSQL.
        query: values in it go to the driver as they are: aware times, texts and numbers.
        block_bytes: a block ends with the line that reaches this size.
        parameters: values of named parameters, where the driver is to get another form.

    Raises:
        DatabaseProblem: the database refused.
    """
    compiled = query.compile(dialect=connection.dialect)
    values = {**compiled.params, **(parameters or {})}
    cursor = connection.connection.cursor()
    lines: list[bytes] = []
    size = 0
    try:
        cursor.execute("SET LOCAL client_encoding = 'UTF8'")
        with cursor.copy(f"COPY ({compiled}) TO STDOUT (FORMAT csv)", values) as copy:
            for line in copy:
                lines.append(bytes(line))
                size += len(line)
                if size >= block_bytes:
                    yield b"".join(lines)
                    lines, size = [], 0
    except psycopg.Error as error:
        where = masked(connection.engine.url)
        raise explain(error, where) or DatabaseProblem(f"{str(error).partition(chr(10))[0]} ({where})") from error
    finally:
        cursor.close()
    if lines:
        yield b"".join(lines)
