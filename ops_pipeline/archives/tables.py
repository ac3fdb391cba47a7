"""The table of archives: how far each has come, so that a run that died is finished by the next one.

What belongs here: the table and its statements. What an archive holds stands in its own manifest.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, Engine, MetaData, Table, Text, insert, select, update

from ops_pipeline.database.engine import database_now, reading, writing
from ops_pipeline.database.types import UtcDateTime

WRITING, WRITTEN, DONE, GIVEN_UP = "writing", "written", "done", "given_up"

metadata = MetaData()

archives = Table(
    "archives",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("location", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("row_count", BigInteger, nullable=False, server_default="0"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("run_id", Text, nullable=False, server_default=""),
)
"""`writing`: begun, its rows are all in the database. `written`: complete, its rows are being deleted. `done`: what it
holds is deleted. `given_up`: what was written of it is removed."""


def begin(engine: Engine, archive_id: str, kind: str, location: str, run_id: str) -> None:
    """Tell that an archive is being written."""
    with writing(engine) as connection:
        row = {
            "id": archive_id,
            "kind": kind,
            "location": location,
            "state": WRITING,
            "created_at": database_now(connection),
            "run_id": run_id,
        }
        connection.execute(insert(archives), [row])


def move(engine: Engine, archive_id: str, before: str, after: str, row_count: int | None = None) -> bool:
    """Move an archive on; False when somebody else did so already."""
    with writing(engine) as connection:
        return move_within(connection, archive_id, before, after, row_count)


def move_within(connection: Connection, archive_id: str, before: str, after: str, row_count: int | None = None) -> bool:
    """The same, within a transaction."""
    values: dict[str, object] = {"state": after}
    if row_count is not None:
        values["row_count"] = row_count
    if after in {DONE, GIVEN_UP}:
        values["ended_at"] = database_now(connection)
    moving = update(archives).where(archives.c.id == archive_id, archives.c.state == before).values(values)
    return connection.execute(moving).rowcount == 1


def unfinished(engine: Engine, kind: str) -> list[tuple[str, str, str]]:
    """Id, location and state of the archives of a kind that a dead run has left, the oldest first."""
    table = archives.c
    wanted = table.kind == kind, table.state.in_((WRITING, WRITTEN))
    columns = table.id, table.location, table.state
    with reading(engine) as connection:
        rows = connection.execute(select(*columns).where(*wanted).order_by(table.created_at, table.id))
        return [(row.id, row.location, row.state) for row in rows]
