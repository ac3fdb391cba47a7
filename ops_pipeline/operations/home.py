"""Preparing Dagster's home folder for the local deployment of `make run`.

What belongs here: the instance file, Dagster's own schema on PostgreSQL, and the variables that the two commands
of Dagster need.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, text

from ops_pipeline.database.engine import connect, writing
from ops_pipeline.settings import Settings

DAGSTER_SCHEMA = "dagster"
"""Dagster's tables stay out of the way of ours, and of each other's `alembic_version`."""


def prepare_home(settings: Settings, project: Path, first_hour: Callable[[Engine], datetime]) -> str:
    """Write the instance file into DAGSTER_HOME and return shell `export` lines for Dagster's processes.

    Args:
        settings: the environment.
        project: the folder with `dagster.yaml` and `deploy/`.
        first_hour: tells the first partition when MODEL_CALL_STATS_START does not.

    Raises:
        DatabaseProblem: the operations database cannot be used.
    """
    home = settings.dagster_home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    engine = connect(settings.operations_url())
    exports: dict[str, str] = {}
    try:
        instance = project / "dagster.yaml"
        if engine.dialect.name == "postgresql":
            instance = project / "deploy" / "postgres" / "dagster.yaml"
            exports["DAGSTER_POSTGRES_URL"] = _dagster_url(engine)
        (home / "dagster.yaml").write_text(instance.read_text())
        if "model_call_stats_start" not in settings.model_fields_set:
            exports["MODEL_CALL_STATS_START"] = _remembered_start(home, engine, first_hour)
    finally:
        engine.dispose()
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exports.items())


def _remembered_start(home: Path, engine: Engine, first_hour: Callable[[Engine], datetime]) -> str:
    """The first partition, kept in a file: partitions must not move when old calls are pruned."""
    file = home / "model_call_stats_start"
    if not file.exists():
        file.write_text(first_hour(engine).isoformat())
    return file.read_text().strip()


def _dagster_url(engine: Engine) -> str:
    """The URL of Dagster's storage: the same database, a schema of its own, and the driver that it needs.

    Under SQLAlchemy 2.1 a plain `postgresql://` means psycopg 3, on which Dagster's NOTIFY fails.
    """
    with writing(engine) as connection:
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {DAGSTER_SCHEMA}"))
    url = engine.url.set(drivername="postgresql+psycopg2")
    return url.update_query_dict({"options": f"-csearch_path={DAGSTER_SCHEMA}"}).render_as_string(hide_password=False)
