"""What `ops-pipeline check` looks at first: folders and the database. Each domain has checks of its own.

What belongs here: the checks and their advice. What does not: printing.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError

from ops_pipeline.checking import Check
from ops_pipeline.database.engine import connect, reading, where
from ops_pipeline.database.errors import DatabaseProblem
from ops_pipeline.database.migrate import newest_version, schema_version
from ops_pipeline.settings import Settings

BROKER_SECONDS = 3


def check_deployment(settings: Settings, now: datetime) -> list[Check]:
    """Look at everything that a run will need; connects to what is configured and changes nothing."""
    return [
        _check_start(settings, now),
        _check_folder("DAGSTER_HOME", settings.dagster_home),
        _check_folder("REPORTS_DIR", settings.reports_folder()),
        *_check_database(settings),
        *_check_broker(settings),
    ]


def _check_start(settings: Settings, now: datetime) -> Check:
    start = settings.model_call_stats_start
    if start > now:
        return Check(
            "MODEL_CALL_STATS_START",
            ok=False,
            detail=f"{start:%Y-%m-%d %H:%M} UTC lies in the future: nothing is aggregated until then. Set it to the"
            " first hour whose calls should be counted.",
        )
    return Check("MODEL_CALL_STATS_START", ok=True, detail=f"calls are counted from {start:%Y-%m-%d %H:%M} UTC on")


def _check_folder(name: str, folder: Path) -> Check:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if not _missing(parent))
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        return Check(
            name, ok=False, detail=f"{folder} cannot be written by this user: correct its owner or the variable."
        )
    made = "" if folder.exists() else " (made when first needed)"
    return Check(name, ok=True, detail=f"{folder}{made}")


def _missing(path: Path) -> bool:
    """True when there is nothing at `path`; False also when this user may not look, as whoever tries will tell."""
    try:
        return not path.exists()
    except PermissionError:
        return False


def _check_database(settings: Settings) -> list[Check]:
    engine = connect(settings.operations_url())
    name = "DATABASE_URL"
    path = engine.url.database if engine.dialect.name == "sqlite" else None
    if path and "uri" not in engine.url.query and _missing(Path(path)):
        return [Check(name, ok=False, detail=f"{where(engine)} does not exist yet: run `ops-pipeline migrate`.")]
    try:
        with reading(engine) as connection:
            connection.execute(select(text("1")))
        version, newest = schema_version(engine), newest_version()
    except DatabaseProblem as problem:
        return [Check(name, ok=False, detail=str(problem))]
    except SQLAlchemyError as error:
        return [Check(name, ok=False, detail=f"{where(engine)}: {type(error).__name__}; look at the server's log.")]
    finally:
        engine.dispose()
    reached = Check(name, ok=True, detail=f"{where(engine)} answers")
    if version != newest:
        found = f"schema {version}" if version else "no schema"
        return [
            reached,
            Check("schema", ok=False, detail=f"{found}, but {newest} is needed: run `ops-pipeline migrate`."),
        ]
    return [reached, Check("schema", ok=True, detail=f"version {version}")]


def _check_broker(settings: Settings) -> list[Check]:
    name, url = "CELERY_BROKER_URL", settings.celery_broker_url.get_secret_value()
    if not url:
        return []
    try:
        # Where there is one machine it need not be installed.
        from kombu import Connection  # noqa: PLC0415
        from kombu.exceptions import KombuError, OperationalError  # noqa: PLC0415
    except ImportError:
        return [Check(name, ok=False, detail="Celery is not installed: pip install 'ops-pipeline[distributed]'.")]
    try:
        with Connection(url, connect_timeout=BROKER_SECONDS) as broker:
            broker.ensure_connection(max_retries=1, timeout=BROKER_SECONDS)
            return [Check(name, ok=True, detail=f"{broker.as_uri()} answers")]
    except OperationalError as error:
        # It names host and port, never the password.
        detail = f"runs cannot be sent to workers: {error} Start that Redis, or correct this URL."
    except (KombuError, KeyError, ValueError):
        detail = "this is no URL of a broker: give redis://:password@host:6379/1."
    return [Check(name, ok=False, detail=detail)]
