"""What `ops-pipeline check` looks at for LLM usage: the rights on its tables, and the calls that are there.

What belongs here: looking, with advice. Nothing is changed: the writes that are tried touch no row and are undone.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Connection, Engine, delete, false, insert, literal, select, update
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.checking import Check
from ops_pipeline.database.engine import reading, writing
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.strict_yaml import FileRefused
from ops_pipeline.usage.hours import hour_text
from ops_pipeline.usage.probes.targets import read_probes
from ops_pipeline.usage.progress import EARLIEST_HOUR, first_wanted_hour
from ops_pipeline.usage.tables import metadata, model_calls


def check_usage(engine: Engine, start: datetime) -> list[Check]:
    """Try the rights on every table, and compare the first call with the first partition.

    Args:
        engine: a database with the current schema.
        start: MODEL_CALL_STATS_START.
    """
    try:
        with writing(engine) as connection:
            _try_writes(connection)
            connection.rollback()
        with reading(engine) as connection:
            first = first_wanted_hour(connection, EARLIEST_HOUR)
    except (DatabaseProblem, SQLAlchemyError) as error:
        return [Check("tables", ok=False, detail=str(error).partition("\n")[0])]
    return [Check("tables", ok=True, detail="can be read and written"), _first_call(first, start)]


def _try_writes(connection: Connection) -> None:
    # A statement that touches no row asks for the same rights as one that does.
    for table in metadata.sorted_tables:
        key = table.primary_key.columns[0]
        connection.execute(update(table).where(false()).values({key: key}))
        if table is not model_calls:
            connection.execute(delete(table).where(false()))
            nothing = select(*(literal(None, column.type) for column in table.columns)).where(false())
            connection.execute(insert(table).from_select(list(table.columns.keys()), nothing))


def _first_call(first: datetime | None, start: datetime) -> Check:
    name = "model_calls"
    if first is None:
        return Check(name, ok=True, detail="there are no calls yet")
    if first < start:
        detail = (
            f"the first call lies in the hour {hour_text(first)}, before MODEL_CALL_STATS_START"
            f" ({hour_text(start)}): earlier hours are not metered. Set the start to the first hour that should be."
        )
        return Check(name, ok=True, detail=detail, warning=True)
    return Check(name, ok=True, detail=f"the first call lies in the hour {hour_text(first)}")


def check_probes(path: Path | None, variable: Callable[[str], SecretStr | None]) -> list[Check]:
    """Read the file of models to probe, and look for the keys that it names.

    Args:
        path: MODEL_PROBES_FILE.
        variable: the value of an environment variable; None when it is not set.
    """
    name = "MODEL_PROBES_FILE"
    if path is None:
        return []
    try:
        probes = read_probes(path, variable)
    except FileRefused as error:
        return [Check(name, ok=False, detail=line) for line in str(error).splitlines()]
    return [Check(name, ok=True, detail=f"{path} lists {len(probes.file.models)} models, and every key is set")]
