"""Preparing Dagster's home folder for the local deployment of `make run`.

What belongs here: the instance file, Dagster's own schema on PostgreSQL, and the variables that the two commands
of Dagster need.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, inspect, text

from ops_pipeline.database.engine import connect, where, writing
from ops_pipeline.settings import DEFAULT_START, Settings

OUR_INSTANCE = "# Dagster's instance for "
"""What our instance files begin with, whatever follows."""
DAGSTER_SCHEMA = "dagster"
"""Dagster's tables stay out of the way of ours, and of each other's `alembic_version`."""


def prepare_home(settings: Settings, project: Path, first_hour: Callable[[Engine], datetime]) -> dict[str, str]:
    """Write the instance file into DAGSTER_HOME and return the variables that Dagster's processes need besides.

    A dagster.yaml that is not ours stays. The first partition is remembered per database: partitions must not move
    when old calls are pruned, and another database has another first call.

    Args:
        settings: the environment.
        project: the folder with `dagster.yaml` and `deploy/`.
        first_hour: tells the first partition when MODEL_CALL_STATS_START does not.

    Returns:
        Variables by name; one of them holds a password and must not be shown.

    Raises:
        DatabaseProblem: the operations database cannot be used.
    """
    home = settings.dagster_home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    engine = connect(settings.operations_url())
    # The commands of Dagster read no .env, and are told their format by the script that starts them.
    exports = {"LOG_FORMAT": settings.log_format}
    try:
        instance = project / "dagster.yaml"
        if engine.dialect.name == "postgresql":
            broker = settings.celery_broker_url.get_secret_value()
            instance = project / "deploy" / ("distributed" if broker else "postgres") / "dagster.yaml"
            exports["DAGSTER_POSTGRES_URL"] = settings.dagster_postgres_url.get_secret_value() or _dagster_url(engine)
            if broker:
                exports["CELERY_BROKER_URL"] = broker
        _write_instance(home / "dagster.yaml", instance.read_text())
        if settings.model_call_stats_start == DEFAULT_START:
            exports["MODEL_CALL_STATS_START"] = _remembered_start(home, engine, first_hour)
    finally:
        engine.dispose()
    return exports


def _write_instance(file: Path, content: str) -> None:
    if not file.exists() or file.read_text().startswith(OUR_INSTANCE):
        file.write_text(content)


def _remembered_start(home: Path, engine: Engine, first_hour: Callable[[Engine], datetime]) -> str:
    """The first partition of this database, as it was when first asked for."""
    file = home / "model_call_stats_start.json"
    remembered: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    database = where(engine)
    if database not in remembered:
        remembered[database] = first_hour(engine).isoformat()
        # Written beside and renamed: a start killed here must not leave half a file.
        beside = file.with_suffix(".new")
        beside.write_text(json.dumps(remembered, indent=1))
        beside.replace(file)
    return remembered[database]


def _dagster_url(engine: Engine) -> str:
    """The URL of Dagster's storage: the same database, a schema of its own, and the driver that it needs.

    Under SQLAlchemy 2.1 a plain `postgresql://` means psycopg 3, on which Dagster's NOTIFY fails.
    """
    with writing(engine) as connection:
        # Looked for first: CREATE SCHEMA IF NOT EXISTS needs the right to create even where the schema exists.
        if not inspect(connection).has_schema(DAGSTER_SCHEMA):
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {DAGSTER_SCHEMA}"))
    url = engine.url.set(drivername="postgresql+psycopg2")
    return url.update_query_dict({"options": f"-csearch_path={DAGSTER_SCHEMA}"}).render_as_string(hide_password=False)
